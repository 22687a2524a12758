"""One side of bench.paired: the services of the checkout that is the working directory, with its own modules.

It reads the name of a work from standard input, does it, and answers with two lines of JSON: before the part that is
measured, with the processes, and behind it, with the number of mails. After each it waits for a line. Names that only
some checkouts have are looked for.
"""

from __future__ import annotations

import importlib
import itertools
import json
import smtplib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.gateway import DOMAIN, external, person
from bench.mails import ADDRESS, mail
from bench.pipeline import MAILS, OCTETS, compare, fill_source
from bench.processes import generate
from bench.submission import drain
from tests.servers import scratch

DUE_IN, BEFORE = 1.5, 0.2
SUBMITTED, RELAYED, READ = 1_500, 1_000, 1_000
LONGEST_SECONDS = 120.0
_numbers = itertools.count(1)


def module(*names: str) -> Any:
    """The first of these that the checkout has."""
    return importlib.import_module(next(name for name in names if Path(*name.split(".")).with_suffix(".py").exists()))


servers = module("bench.baselines", "bench.anchors")


def settle(gateway: Any) -> None:
    """Do now what would be done later; and the console's catalogue, which takes mails in some seconds later, rests."""
    gateway.settle()
    progress = _table(gateway, "search_progress", "catalogued")
    gateway.connection.execute(f"update {progress} set up_to = 9223372036854775807")


@contextmanager
def counted(gateway: Any, mails: int) -> Iterator[None]:
    """The part of a work that is measured."""
    _say(pids=gateway.pids(), without=gateway.connection.info.backend_pid)
    yield
    _say(items=mails)


def _say(**words: object) -> None:
    print(json.dumps(words), flush=True)
    if not sys.stdin.readline():
        raise SystemExit


def pipeline(stand: Any) -> None:
    """From the provider's maildrop to readable."""
    fill_source(stand)
    gateway, name = stand.gateway, f"source{next(_numbers)}"
    account, reader = f"{name}@provider.example", f"{name}@{DOMAIN}"
    settle(gateway)
    fields = external(account, stand.dovecot.port, login="source", aliases=[ADDRESS])
    due = gateway.add([fields], [person(name, account, user_name="Alex")], DUE_IN)
    time.sleep(max(0.0, due - time.time() - BEFORE))
    with counted(gateway, MAILS):
        gateway.await_value(
            MAILS,
            """select count(*) from maildrop_mails r join local_accounts l on l.id = r.local_id
               where l.address = %s and l.removed_at is null""",
            reader,
        )
    compare(gateway, reader, MAILS)
    gateway.remove([account], [reader])


def submission(stand: Any) -> None:
    """4 KB, 16 sessions, without the sender."""
    stand.gateway.stop("sender")
    settle(stand.gateway)
    with counted(stand.gateway, SUBMITTED):
        _submit(stand.gateway, "u{i}@" + DOMAIN, mails=SUBMITTED, octets=4096, concurrency=16, users=servers.USERS)
    stand.gateway.start("sender")
    drain(stand.gateway)


def relay(stand: Any) -> None:
    """10 KB over 20 connections, all waiting already but one."""
    gateway, name = stand.gateway, f"author{next(_numbers)}"
    account, author = f"{name}@provider.example", f"{name}@{DOMAIN}"
    gateway.add([external(account, smtp_port=stand.sink.port)], [person(name, account)])
    _resume(gateway, account, "1 day")
    _submit(gateway, author, mails=RELAYED - 1, octets=OCTETS, concurrency=8)
    gateway.await_value(RELAYED - 1, "select count(*) from submissions where state = 'queued'")
    settle(gateway)
    before = stand.sink.count()
    with counted(gateway, RELAYED):
        _resume(gateway, account, "0 seconds")
        with smtplib.SMTP("127.0.0.1", gateway.settings.smtp_port) as smtp:
            smtp.login(author, servers.PASSWORD)
            smtp.sendmail(author, "someone@example.net", mail(OCTETS, author=author))
        servers.await_until(lambda: stand.sink.count() - before >= RELAYED, LONGEST_SECONDS)
        drain(gateway)
    gateway.remove([account], [author])


def retr(stand: Any) -> None:
    """10 KB, 16 sessions, by a server that has just started."""
    gateway, users = stand.gateway, range(servers.USERS)
    if "u" not in stand.filled:
        for number in users:
            gateway.fill(f"u{number}@{DOMAIN}", (mail(OCTETS, each) for each in range(READ)))
        stand.filled.add("u")
    gateway.restart("pop3_out")
    load = partial(
        generate, "pop3_load", port=gateway.settings.pop3_port, user="u{i}@" + DOMAIN, users=len(users),
        password=servers.PASSWORD, sessions=len(users),
    )  # fmt: skip
    load("login", concurrency=4)
    settle(gateway)
    with counted(gateway, READ * len(users)):
        load("retr", mails=READ, octets=OCTETS, concurrency=len(users))


def _submit(gateway: Any, author: str, **options: int) -> None:
    generate(
        "smtp_load", port=gateway.settings.smtp_port, user=author, sender=author, password=servers.PASSWORD, **options
    )


def _table(gateway: Any, *names: str) -> str:
    """The first of these tables that the checkout's schema has."""
    return next(name for name in names if gateway.value("select to_regclass(%s)", name) is not None)


def _resume(gateway: Any, account: str, within: str) -> None:
    relays = _table(gateway, "relay_status", "relays")
    gateway.connection.execute(
        f"""update {relays} set next_try_at = now() + %s::interval from external_accounts e
           where e.id = external_id and e.address = %s""",
        (within, account),
    )


def main() -> None:
    """Benchmark until standard input ends."""
    works: dict[str, Callable[[Any], None]] = {w.__name__: w for w in (pipeline, submission, relay, retr)}
    found = module("bench.environment", "bench.stand")
    environment = getattr(found, "Environment", None) or found.Stand
    with scratch() as folder, environment(folder) as stand:
        for line in sys.stdin:
            works[line.strip()](stand)


if __name__ == "__main__":
    main()
