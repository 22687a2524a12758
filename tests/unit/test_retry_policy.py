"""services/sender/retry_policy.py: the times of retries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.sender.retry_policy import DAY, EXPIRY, HOUR, MINUTE, reconnect_delay, retry_delay

chances = st.floats(0, 1)


@pytest.mark.parametrize(
    ("tries", "delay"),
    [
        (1, MINUTE),
        (2, 5 * MINUTE),
        (3, 15 * MINUTE),
        (4, 30 * MINUTE),
        (5, HOUR),
        (16, HOUR),
        (17, 4 * HOUR),
        (1000, 4 * HOUR),
    ],
)
def test_retries_come_after_minutes_then_hourly_then_every_four_hours(tries: int, delay: float) -> None:
    assert retry_delay(tries, 0.5) == delay


@given(st.integers(1, 100), chances)
def test_retries_are_spread_by_a_tenth_to_either_side(tries: int, chance: float) -> None:
    exact = retry_delay(tries, 0.5)
    assert 0.9 * exact <= retry_delay(tries, chance) <= 1.1 * exact


def test_about_forty_tries_fit_into_the_five_days() -> None:
    elapsed, tries = 0.0, 0
    while elapsed < EXPIRY:
        tries += 1
        elapsed += retry_delay(tries, 0.5)
    assert 35 < tries < 50
    assert 5 * DAY == EXPIRY


@given(st.integers(1, 10_000), chances)
def test_an_unreachable_account_is_retried_within_minutes(failures: int, chance: float) -> None:
    assert 9.0 <= reconnect_delay(failures, chance) <= 5.5 * MINUTE


def test_the_first_failure_to_connect_costs_seconds() -> None:
    assert [reconnect_delay(failures, 0.5) for failures in (1, 2, 3)] == [10, 20, 40]


@given(st.integers(1, 10_000), chances)
def test_a_server_that_does_not_answer_is_retried_every_few_seconds(failures: int, chance: float) -> None:
    assert 1.0 <= reconnect_delay(failures, chance, unreachable=True) <= 9.0


def test_a_mail_whose_connection_ended_is_tried_again_within_seconds_twice() -> None:
    assert [retry_delay(tries, 0.5, interrupted=True) for tries in (1, 2)] == [5.0, 15.0]


def test_a_mail_whose_connection_ends_is_tried_as_often_as_a_refused_one() -> None:
    assert [retry_delay(tries, 0.5, interrupted=True) for tries in range(3, 30)] == [
        retry_delay(tries, 0.5) for tries in range(1, 28)
    ]
