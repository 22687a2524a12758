"""Measures relaying to the provider, beside Postfix: queued mails are released together, over at most 20 connections.

In mailgroup they are queued because the account backs off for a day; then its back-off is ended, and one more mail is
submitted, which wakes the sender. The time counts from the release until smtp-sink has accepted every mail and the
queue is empty.
"""

from __future__ import annotations

import smtplib
import subprocess
import time
from functools import partial

from bench import Wrong
from bench.baselines import PASSWORD, Postfix, await_until, used
from bench.environment import ROUND_TRIP, Environment
from bench.gateway import DOMAIN, external, person
from bench.mails import mail
from bench.processes import Run, generate, measured
from bench.submission import drain
from bench.table import Goal, Line, rate_line
from deploy.machine.programs import PATH

MAILS, FAR_MAILS, OCTETS = 1_000, 600, 10_240
_DRAIN_SECONDS = 120.0


def relay(environment: Environment, pairs: int) -> list[Line]:
    """Measure with a near and a distant provider."""
    lines = [
        _in_turn(
            environment, pairs, environment.sink.port, "near", MAILS, "mails of 10 KB to smtp-sink, 20 connections", 1.5
        )
    ]
    with environment.far(environment.sink.port) as port:
        lines.append(_in_turn(environment, pairs, port, "far", FAR_MAILS, f"the same, {ROUND_TRIP} ms away", 2.3))
    return lines


def _in_turn(environment: Environment, pairs: int, port: int, name: str, mails: int, work: str, goal: float) -> Line:
    account, author = f"{name}@provider.example", f"{name}-author"
    environment.gateway.add([external(account, smtp_port=port)], [person(author, account)])
    with Postfix(environment.folder / f"postfix-{name}", port) as postfix:
        anchor, ours = environment.alternate(
            pairs,
            partial(_by_postfix, environment, postfix, mails),
            partial(_by_us, environment, account, f"{author}@{DOMAIN}", mails),
        )
    environment.gateway.remove([account], [f"{author}@{DOMAIN}"])
    return rate_line(work, ours, anchor, Goal("≥", goal), "mails/s", "Postfix")


def _by_postfix(environment: Environment, postfix: Postfix, mails: int) -> Run:
    subprocess.run(
        ["smtp-source", "-d", "-s", "8", "-m", str(mails), "-l", str(OCTETS), "-f", "a@bench.example",
         "-t", "b@example.net", f"127.0.0.1:{postfix.port}"],
        check=True, env={"PATH": PATH},
    )  # fmt: skip
    if (found := len(postfix.held())) != mails:
        raise Wrong(f"{found} of {mails} mails are in Postfix's queue")
    before = environment.sink.count()

    def work() -> Run:
        began = time.perf_counter()
        postfix.release()
        await_until(lambda: environment.sink.count() - before >= mails and postfix.is_empty(), _DRAIN_SECONDS)
        return Run(mails, time.perf_counter() - began)

    run = measured(work, partial(used, postfix))
    _check(environment, before, mails)
    return run


def _by_us(environment: Environment, account: str, author: str, mails: int) -> Run:
    gateway = environment.gateway
    drain(gateway)
    # The sender's sweep would end a wait without a failure and a pause.
    gateway.connection.execute(
        """update relays set next_try_at = now() + interval '1 day', failures = 1, paused_at = now()
           from external_accounts e
           where e.id = external_id and e.address = %s""",
        (account,),
    )
    generate(
        "smtp_load",
        port=gateway.settings.smtp_port,
        user=author,
        sender=author,
        password=PASSWORD,
        mails=mails - 1,
        octets=OCTETS,
        concurrency=8,
    )
    gateway.await_value(mails - 1, "select count(*) from submissions where state = 'queued'")
    before = environment.sink.count()

    def work() -> Run:
        began = time.perf_counter()
        gateway.connection.execute(
            """update relays set next_try_at = now(), failures = 0, paused_at = null
               from external_accounts e
               where e.id = external_id and e.address = %s""",
            (account,),
        )
        with smtplib.SMTP(
            "127.0.0.1", gateway.settings.smtp_port
        ) as smtp:  # in this process, as a new one needs time to start
            smtp.login(author, PASSWORD)
            smtp.sendmail(author, "someone@example.net", mail(OCTETS, author=author))
        await_until(lambda: environment.sink.count() - before >= mails, _DRAIN_SECONDS)
        drain(gateway)
        return Run(mails, time.perf_counter() - began)

    run = measured(work, gateway.used)
    _check(environment, before, mails)
    return run


def _check(environment: Environment, before: int, mails: int) -> None:
    if (found := environment.sink.count() - before) != mails:
        raise Wrong(f"{found} mails were relayed instead of {mails}")
