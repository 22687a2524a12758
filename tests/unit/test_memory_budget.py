"""shared/runtime/memory_budget.py: a limit for memory, with a queue of waiters."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from services.smtp_in.commit_queue import MEMORY_OCTETS, SMALL_OCTETS, SMALL_RESERVE_OCTETS, CommitQueue
from shared.runtime.memory_budget import MemoryBudget

MIB = 1024 * 1024
UNUSED = cast(Any, None)
LARGE = MEMORY_OCTETS - SMALL_RESERVE_OCTETS


def submission_memory(max_message_octets: int = 50 * MIB) -> MemoryBudget:
    """The budget of the submission service."""
    return CommitQueue(UNUSED, UNUSED, max_message_octets).memory


async def test_waiting_reservations_are_served_in_order_when_memory_is_released() -> None:
    memory, done = submission_memory(), list[int]()

    async def reserve(number: int, octets: int) -> None:
        assert await memory.reserve(octets, 10)
        done.append(number)

    assert await memory.reserve(LARGE, 10)
    waiting = [
        asyncio.create_task(reserve(number, octets)) for number, octets in enumerate((LARGE, 50 * MIB, 50 * MIB))
    ]
    await asyncio.sleep(0.01)
    assert done == []
    memory.release(LARGE)
    await asyncio.sleep(0.01)
    assert done == [0]
    memory.release(LARGE)
    await asyncio.gather(*waiting)
    assert done == [0, 1, 2] and memory.in_use == 100 * MIB


async def test_a_reservation_that_timed_out_or_was_cancelled_takes_nothing() -> None:
    memory = submission_memory()
    assert await memory.reserve(LARGE, 10)
    assert not await memory.reserve(50 * MIB, 0.01)
    cancelled = asyncio.create_task(memory.reserve(50 * MIB, 10))
    behind = asyncio.create_task(memory.reserve(20 * MIB, 10))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    memory.release(LARGE)
    assert await behind and memory.in_use == 20 * MIB
    # also when memory is released at the moment of the cancellation
    memory.release(20 * MIB)
    assert await memory.reserve(LARGE, 10)
    late = asyncio.create_task(memory.reserve(50 * MIB, 10))
    await asyncio.sleep(0)
    memory.release(LARGE)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert memory.in_use == 0


async def test_small_reservations_succeed_beside_large_ones() -> None:
    memory = submission_memory()
    assert await memory.reserve(LARGE, 10)
    assert not memory.try_reserve(SMALL_OCTETS + 1)
    assert memory.try_reserve(SMALL_OCTETS)


async def test_one_mail_of_the_largest_size_is_always_admitted() -> None:
    memory = submission_memory(2 * MEMORY_OCTETS)
    assert memory.try_reserve(2 * MEMORY_OCTETS)


async def test_memory_that_is_only_counted_may_exceed_the_limit() -> None:
    memory = MemoryBudget(100)
    memory.add(130)
    assert memory.available == -30
    assert memory.try_reserve(0) is False and not memory.try_reserve(1)
    waiting = asyncio.create_task(memory.reserve(100, 10))
    await asyncio.sleep(0)
    memory.release(130)
    assert await waiting and memory.available == 0
