"""How much happens in a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """mails, submissions: how many are offered, within ``seconds``. The others: how many faults of a kind.

    restarts: of each server: PostgreSQL, RabbitMQ, Dovecot, Postfix. slow_retries: providers also refuse for now, after
    which a minute passes. hands_off_seconds: so long after the last fault everything has to go by itself; then retries
    that are due later are hurried. settle_seconds: after the last fault everything has to have arrived.
    """

    mails: int
    submissions: int
    seconds: float
    kills: int
    restarts: int
    wipes: int
    stops: int
    cuts: int
    disks: int
    clocks: int
    misbehaviours: int
    slow_retries: bool
    hands_off_seconds: float
    settle_seconds: float


FULL = Plan(
    10_000, 10_000, 840, 200, 20, 5, 20, 60, 3, 6, 120, slow_retries=True, hands_off_seconds=100, settle_seconds=420
)
SHORT = Plan(300, 300, 20, 14, 1, 1, 2, 6, 0, 2, 10, slow_retries=False, hands_off_seconds=40, settle_seconds=160)
