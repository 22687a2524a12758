"""One side of bench.paired: the services of the checkout in the working directory, with its own modules.

It reads the name of a benchmark from standard input, runs it, and prints two lines of JSON: the processes, before the
measured part, and the number of mails, after it. After each line it waits for a line of input. For names that differ
between checkouts it tries several.
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
    """Import the first of these modules that the checkout has."""
    return importlib.import_module(next(name for name in names if Path(*name.split(".")).with_suffix(".py").exists()))


servers = module("bench.baselines", "bench.anchors")


def settle(gateway: Any) -> None:
    """Do the background work now, and stop the console's search index, which adds mails some seconds later."""
    (getattr(gateway, "wait_until_idle", None) or gateway.settle)()
    progress = _table(gateway, "search_progress", "catalogued")
    gateway.connection.execute(f"update {progress} set up_to = 9223372036854775807")


@contextmanager
def counted(gateway: Any, mails: int) -> Iterator[None]:
    """Enclose the measured part of a benchmark."""
    _say(pids=gateway.pids(), without=gateway.connection.info.backend_pid)
    yield
    _say(items=mails)


def _say(**words: object) -> None:
    print(json.dumps(words), flush=True)
    if not sys.stdin.readline():
        raise SystemExit


def pipeline(environment: Any) -> None:
    """Fetch and deliver a maildrop."""
    fill_source(environment)
    gateway, name = environment.gateway, f"source{next(_numbers)}"
    account, reader = f"{name}@provider.example", f"{name}@{DOMAIN}"
    settle(gateway)
    fields = external(account, environment.dovecot.port, login="source", aliases=[ADDRESS])
    due = gateway.add([fields], [person(name, account, user_name="Alex")], DUE_IN)
    time.sleep(max(0.0, due - time.time() - BEFORE))
    with counted(gateway, MAILS):
        gateway.await_value(
            MAILS,
            """select count(*) from folder_mails r join folders f on f.id = r.folder_id and f.special_use = 'inbox'
           join local_accounts l on l.id = f.local_id
               where l.address = %s and l.removed_at is null""",
            reader,
        )
    compare(gateway, reader, MAILS)
    gateway.remove([account], [reader])


def submission(environment: Any) -> None:
    """Submit mails of 4 KB in 16 sessions, without the sender."""
    environment.gateway.stop("sender")
    settle(environment.gateway)
    with counted(environment.gateway, SUBMITTED):
        _submit(
            environment.gateway, "u{i}@" + DOMAIN, mails=SUBMITTED, octets=4096, concurrency=16, users=servers.USERS
        )
    environment.gateway.start("sender")
    drain(environment.gateway)


def relay(environment: Any) -> None:
    """Relay mails of 10 KB over 20 connections; all but one are queued before."""
    gateway, name = environment.gateway, f"author{next(_numbers)}"
    account, author = f"{name}@provider.example", f"{name}@{DOMAIN}"
    gateway.add([external(account, smtp_port=environment.sink.port)], [person(name, account)])
    _hold(gateway, account, "1 day", failures=1)
    _submit(gateway, author, mails=RELAYED - 1, octets=OCTETS, concurrency=8)
    gateway.await_value(RELAYED - 1, "select count(*) from submissions where state = 'queued'")
    settle(gateway)
    before = environment.sink.count()
    with counted(gateway, RELAYED):
        _hold(gateway, account, "0 seconds", failures=0)
        with smtplib.SMTP("127.0.0.1", gateway.settings.smtp_port) as smtp:
            smtp.login(author, servers.PASSWORD)
            smtp.sendmail(author, "someone@example.net", mail(OCTETS, author=author))
        servers.await_until(lambda: environment.sink.count() - before >= RELAYED, LONGEST_SECONDS)
        drain(gateway)
    gateway.remove([account], [author])


def retr(environment: Any) -> None:
    """Read mails of 10 KB in 16 sessions from a server that was just started."""
    gateway, users = environment.gateway, range(servers.USERS)
    if "u" not in environment.filled:
        for number in users:
            gateway.fill(f"u{number}@{DOMAIN}", (mail(OCTETS, each) for each in range(READ)))
        environment.filled.add("u")
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
    """Return the first of these tables that the checkout's schema has."""
    return next(name for name in names if gateway.value("select to_regclass(%s)", name) is not None)


def _hold(gateway: Any, account: str, within: str, failures: int) -> None:
    """Let the next mail be relayed after this time. The sender's sweep would end a wait without failure and pause."""
    relays = _table(gateway, "relays", "relay_status")
    gateway.connection.execute(
        f"""update {relays} set next_try_at = now() + %s::interval, failures = %s,
               paused_at = case when %s > 0 then now() end from external_accounts e
           where e.id = external_id and e.address = %s""",
        (within, failures, failures, account),
    )


def main() -> None:
    """Run benchmarks until standard input ends."""
    works: dict[str, Callable[[Any], None]] = {w.__name__: w for w in (pipeline, submission, relay, retr)}
    found = module("bench.environment", "bench.stand")
    environment_class = getattr(found, "Environment", None) or found.Stand
    with scratch() as folder, environment_class(folder) as environment:
        for line in sys.stdin:
            works[line.strip()](environment)


if __name__ == "__main__":
    main()
