"""Measures SMTP submission with AUTH and a durable commit, beside Postfix with its hold queue and Dovecot's SASL.

Postfix only stores the mail, so the sender is stopped for equal work; another line measures submission while the mail
is relayed.
"""

from __future__ import annotations

from functools import partial

from bench import Wrong
from bench.baselines import PASSWORD, USERS, used
from bench.environment import Environment
from bench.gateway import DOMAIN, Gateway
from bench.processes import Run, generate, measured
from bench.table import Goal, Line, rate_line

_SUBMITTED = "select count(*) from submissions"
_WAITING = "select count(*) from submissions where state <> 'done'"
_DRAIN_SECONDS = 300.0


def submission(environment: Environment, pairs: int) -> list[Line]:
    """Measure submission without the sender, then with all services."""
    lines = []
    environment.gateway.stop("sender")
    for work, goal, options in (
        ("mails of 4 KB, 16 sessions", 1.2, {"mails": 1500, "octets": 4096, "concurrency": 16}),
        ("the same, 1 session", 0.8, {"mails": 500, "octets": 4096, "concurrency": 1}),
        ("mails of 50 KB, 16 sessions", 1.1, {"mails": 1000, "octets": 51_200, "concurrency": 16}),
    ):
        anchor, ours = environment.alternate(
            pairs, partial(_to_postfix, environment, **options), partial(_to_us, environment, **options)
        )
        lines.append(rate_line(work, ours, anchor, Goal("≥", goal), "mails/s", "Postfix"))
    environment.gateway.start("sender")
    drain(environment.gateway)
    everything = []
    for _ in range(pairs):
        everything.append(_to_us(environment, mails=1500, octets=4096, concurrency=16))
        drain(environment.gateway)
    return [*lines, rate_line("mails of 4 KB, 16 sessions, relayed at the same time", everything, [], None, "mails/s")]


def drain(gateway: Gateway) -> None:
    """Wait until all submissions are relayed. :raises Temporary: not within the time limit."""
    gateway.await_value(0, _WAITING, seconds=_DRAIN_SECONDS)


def _to_us(environment: Environment, **options: int) -> Run:
    before = environment.gateway.value(_SUBMITTED)
    run = measured(
        partial(_load, environment.gateway.settings.smtp_port, "u{i}@" + DOMAIN, **options), environment.gateway.used
    )
    if (found := environment.gateway.value(_SUBMITTED) - before) != options["mails"]:
        raise Wrong(f"{found} of {options['mails']} submissions are in the database")
    return run


def _to_postfix(environment: Environment, **options: int) -> Run:
    run = measured(
        partial(_load, environment.postfix.port, "u{i}", **options),
        partial(used, environment.postfix, environment.dovecot),
    )
    if (found := len(environment.postfix.held())) != options["mails"]:
        raise Wrong(f"{found} of {options['mails']} mails are in Postfix's queue")
    environment.postfix.clear()
    return run


def _load(port: int, user: str, **options: int) -> Run:
    return generate(
        "smtp_load", port=port, user=user, sender="u{i}@" + DOMAIN, users=USERS, password=PASSWORD, **options
    )
