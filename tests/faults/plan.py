"""The numbers of mails and faults of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run; a field without a comment is the number of faults of a kind."""

    mails: int  # offered within ``seconds``
    submissions: int  # offered within ``seconds``
    seconds: float
    kills: int
    restarts: int  # of each server: PostgreSQL, RabbitMQ, Dovecot, Postfix
    wipes: int
    stops: int
    cuts: int
    disks: int
    clocks: int
    misbehaviours: int
    slow_retries: bool  # providers also refuse temporarily, after which the sender waits a minute
    hands_off_seconds: float  # from the last progress after the last fault until later submissions are retried
    settle_seconds: float  # from the last progress until missing mail counts as lost


FULL = Plan(
    10_000, 10_000, 840, 200, 20, 5, 20, 60, 3, 6, 120, slow_retries=True, hands_off_seconds=100, settle_seconds=420
)
SHORT = Plan(300, 300, 20, 14, 1, 1, 2, 6, 0, 2, 10, slow_retries=False, hands_off_seconds=40, settle_seconds=160)
