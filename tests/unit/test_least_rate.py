"""shared/net/least_rate.py: the deadline of a slow transfer."""

from __future__ import annotations

from shared.net.least_rate import LeastRate


def ends_at(rate: LeastRate) -> float:
    return rate.seconds_left(0)


def test_a_transfer_at_the_least_rate_never_ends_and_a_slower_one_does() -> None:
    for octets, late in ((1000, False), (900, True)):
        rate = LeastRate(1000, 60, 0)
        for second in range(1, 3600):
            rate.record(octets, second)
        assert (rate.seconds_left(3600) < 0) is late


def test_octets_that_came_quickly_allow_no_longer_pause() -> None:
    rate = LeastRate(1000, 60, 0)
    rate.record(50_000_000, 5)
    assert ends_at(rate) == 65
    for second in range(6, 66):  # an octet a second is a pause
        rate.record(1, second)
    assert rate.seconds_left(66) < 0


def test_the_time_in_which_the_server_is_slow_does_not_count() -> None:
    rate = LeastRate(1000, 60, 0)
    rate.extend(30)
    assert ends_at(rate) == 90
    rate.record(0, 10)
    assert ends_at(rate) == 70
