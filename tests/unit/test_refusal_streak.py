"""shared/amqp/broker.py: a broker that refuses every message (RefusalStreak)."""

from __future__ import annotations

from shared.amqp.broker import FORGOTTEN_SECONDS, REFUSING_SECONDS, RefusalStreak


def test_a_broker_that_has_refused_everything_for_a_while_is_unusable() -> None:
    refusals = RefusalStreak()
    refusals.add(100.0)
    assert not refusals.is_lasting(100.0 + REFUSING_SECONDS - 0.1)
    refusals.add(100.0 + REFUSING_SECONDS)
    assert refusals.is_lasting(100.0 + REFUSING_SECONDS)


def test_one_accepted_message_ends_the_streak() -> None:
    refusals = RefusalStreak()
    refusals.add(100.0)
    refusals.reset()
    refusals.add(104.0)
    assert not refusals.is_lasting(106.0)


def test_old_refusals_do_not_count() -> None:
    refusals = RefusalStreak()
    refusals.add(100.0)
    later = 100.0 + FORGOTTEN_SECONDS + 1
    assert not refusals.is_lasting(later)
    refusals.add(later)
    assert not refusals.is_lasting(later + 1)
