"""SMTP submission with AUTH, answered after the mail is durable, beside Postfix with its hold queue and Dovecot's SASL.

Postfix only takes the mail and keeps it. So the sender is stopped, to make the work equal; what it costs when the mail
is relayed at the same time is a line of its own.
"""

from __future__ import annotations

from functools import partial

from bench import Wrong
from bench.baselines import PASSWORD, USERS, used
from bench.environment import Environment
from bench.gateway import DOMAIN, Gateway
from bench.processes import Run, generate, measured
from bench.table import Goal, Line, of_runs

_SUBMITTED = "select count(*) from submissions"
_WAITING = "select count(*) from submissions where state <> 'done'"
_DRAIN_SECONDS = 300.0


def submission(stand: Environment, pairs: int) -> list[Line]:
    """Every work with its mails, then all services together."""
    lines = []
    stand.gateway.stop("sender")
    for work, goal, options in (
        ("mails of 4 KB, 16 sessions", 1.7, {"mails": 1500, "octets": 4096, "concurrency": 16}),
        ("the same, 1 session", 1.3, {"mails": 500, "octets": 4096, "concurrency": 1}),
        ("mails of 50 KB, 16 sessions", 1.1, {"mails": 1000, "octets": 51_200, "concurrency": 16}),
    ):
        anchor, ours = stand.alternate(pairs, partial(_to_postfix, stand, **options), partial(_to_us, stand, **options))
        lines.append(of_runs(work, ours, anchor, Goal("≥", goal), "mails/s", "Postfix"))
    stand.gateway.start("sender")
    drain(stand.gateway)
    everything = []
    for _ in range(pairs):
        everything.append(_to_us(stand, mails=1500, octets=4096, concurrency=16))
        drain(stand.gateway)
    return [*lines, of_runs("mails of 4 KB, 16 sessions, relayed at the same time", everything, [], None, "mails/s")]


def drain(gateway: Gateway) -> None:
    """Wait until all that was submitted is relayed. :raises Temporary: some of it never is."""
    gateway.await_value(0, _WAITING, seconds=_DRAIN_SECONDS)


def _to_us(stand: Environment, **options: int) -> Run:
    before = stand.gateway.value(_SUBMITTED)
    run = measured(partial(_load, stand.gateway.settings.smtp_port, "u{i}@" + DOMAIN, **options), stand.gateway.used)
    if (found := stand.gateway.value(_SUBMITTED) - before) != options["mails"]:
        raise Wrong(f"{found} of {options['mails']} submissions are in the database")
    return run


def _to_postfix(stand: Environment, **options: int) -> Run:
    run = measured(partial(_load, stand.postfix.port, "u{i}", **options), partial(used, stand.postfix, stand.dovecot))
    if (found := len(stand.postfix.held())) != options["mails"]:
        raise Wrong(f"{found} of {options['mails']} mails are in Postfix's queue")
    stand.postfix.clear()
    return run


def _load(port: int, user: str, **options: int) -> Run:
    return generate(
        "smtp_load", port=port, user=user, sender="u{i}@" + DOMAIN, users=USERS, password=PASSWORD, **options
    )
