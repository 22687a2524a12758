"""How much happens in a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """mails, submissions: how many are offered, within ``seconds``. The others: how many faults of a kind.

    restarts: of each server: PostgreSQL, RabbitMQ, Dovecot, Postfix. settle_seconds: for everything to arrive, after
    the last fault. slow_retries: providers also refuse for now, after which a minute passes.
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
    settle_seconds: float


FULL = Plan(10_000, 10_000, 840, 200, 20, 5, 20, 60, 3, 6, 120, slow_retries=True, settle_seconds=420)
SHORT = Plan(300, 300, 20, 14, 1, 1, 2, 6, 0, 2, 10, slow_retries=False, settle_seconds=100)
