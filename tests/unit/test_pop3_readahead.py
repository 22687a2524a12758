"""services/pop3_out/readahead.py: which mails are read ahead, and in how much memory."""

from __future__ import annotations

from services.pop3_out.readahead import (
    MAX_MAILS,
    PROCESS_OCTETS,
    SESSION_OCTETS,
    PrefetchBuffer,
    plan_reading,
)
from shared.runtime.memory_budget import SHARE, MemoryBudget, reserve_share

NOTHING = PrefetchBuffer(MemoryBudget(PROCESS_OCTETS))


def sizes(*octets: int | None) -> dict[int, int | None]:
    return dict(enumerate(octets, 1))


def test_for_a_client_that_requests_one_mail_one_is_read() -> None:
    assert plan_reading([1], [], sizes(10, 10, 10).get, NOTHING, SESSION_OCTETS) == [1]


def test_the_next_mails_are_read_together_with_the_requested_one() -> None:
    mails = sizes(*[10] * 10)
    assert plan_reading([2], range(3, 5), mails.get, NOTHING, SESSION_OCTETS) == [2, 3, 4]
    assert plan_reading([8, 3], range(4, 20), mails.get, NOTHING, SESSION_OCTETS) == [8, 3, 4, 5, 6, 7, 9, 10]
    assert plan_reading([], range(9, 20), mails.get, NOTHING, SESSION_OCTETS) == [9, 10]


def test_pipelined_requests_are_read_together() -> None:
    assert plan_reading([5, 3, 1, 5], [], sizes(10, 10, 10, 10, 10).get, NOTHING, SESSION_OCTETS) == [5, 3, 1]


def test_no_deleted_and_no_missing_mail_is_read() -> None:
    assert plan_reading([1, 2, 0, 9], [2, 3, 4], sizes(10, None, 10).get, NOTHING, SESSION_OCTETS) == [1, 3]


def test_mails_that_are_buffered_or_being_read_are_not_read_again() -> None:
    buffer = PrefetchBuffer(MemoryBudget(PROCESS_OCTETS))
    buffer.reserve({2: 10, 3: 10})
    buffer.store({2: bytes(10)})
    assert plan_reading([1, 2], range(2, 6), sizes(*[10] * 5).get, buffer, SESSION_OCTETS) == [1, 4, 5]


def test_prefetched_mails_fit_into_the_available_memory() -> None:
    assert plan_reading([1, 2, 3, 4], [], sizes(500, 40, 40, 40).get, NOTHING, 100) == [1, 2, 3]
    assert plan_reading([1, 2, 3, 4], [], sizes(500, 40, 40, 40).get, NOTHING, 0) == [1]
    assert len(plan_reading(range(1, 500), [], lambda number: 0, NOTHING, SESSION_OCTETS)) == MAX_MAILS


def test_a_buffer_returns_its_memory() -> None:
    # given two sessions that share a budget
    budget = MemoryBudget(800)
    one, two = PrefetchBuffer(budget), PrefetchBuffer(budget)
    # when one of them waits for mails
    one.reserve({1: 30, 2: 40, 3: 90})
    # then the other has room for its part of the rest
    assert two.available == 640 // SHARE
    # and more once mails are sent, are missing, or the session ends
    one.store({1: bytes(30), 2: bytes(40)})
    one.drop_missing([1, 2, 3])
    assert two.available == 730 // SHARE
    assert one.pop(1) == bytes(30)
    assert one.pop(1) is None
    assert two.available == 760 // SHARE
    one.clear()
    assert budget.available == 800
    assert one.pop(2) is None


def test_a_mail_that_arrives_after_the_session_paused_is_dropped() -> None:
    budget = MemoryBudget(800)
    buffer = PrefetchBuffer(budget)
    buffer.reserve({1: 30})
    buffer.clear()
    buffer.store({1: bytes(30)})
    buffer.drop_missing([1])
    assert buffer.pop(1) is None
    assert budget.available == 800


def test_an_exhausted_budget_grants_no_memory() -> None:
    budget = MemoryBudget(80)
    assert reserve_share(budget, 4) == 4
    assert reserve_share(budget, 80) == 76 // SHARE
    budget.in_use = 85
    assert reserve_share(budget, 4) == 0
    assert budget.available == -5
