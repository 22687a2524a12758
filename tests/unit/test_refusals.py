"""A broker that answers and refuses every message."""

from __future__ import annotations

from shared.amqp.broker import FORGOTTEN_SECONDS, REFUSING_SECONDS, RefusalStreak


def test_a_broker_is_of_no_use_once_it_has_refused_everything_for_a_while() -> None:
    refusals = RefusalStreak()
    refusals.add(100.0)
    assert not refusals.is_lasting(100.0 + REFUSING_SECONDS - 0.1)
    refusals.add(100.0 + REFUSING_SECONDS)
    assert refusals.is_lasting(100.0 + REFUSING_SECONDS)


def test_one_message_that_it_takes_ends_that() -> None:
    refusals = RefusalStreak()
    refusals.add(100.0)
    refusals.reset()
    refusals.add(104.0)
    assert not refusals.is_lasting(106.0)


def test_refusals_of_long_ago_say_nothing() -> None:
    refusals = RefusalStreak()
    refusals.add(100.0)
    later = 100.0 + FORGOTTEN_SECONDS + 1
    assert not refusals.is_lasting(later)
    refusals.add(later)
    assert not refusals.is_lasting(later + 1)
