"""services/smtp_in/commit_queue.py: room in memory for the mails that come in."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from services.smtp_in import commit_queue
from services.smtp_in.commit_queue import MEMORY_OCTETS, SMALL_OCTETS, SMALL_RESERVE_OCTETS, CommitQueue

MIB = 1024 * 1024
NOBODY = cast(Any, None)


def room() -> CommitQueue:
    """It has asked no database yet."""
    return CommitQueue(NOBODY, NOBODY, 50 * MIB)


async def test_who_waits_for_room_gets_it_in_order_and_as_soon_as_it_is_there() -> None:
    hands, done = room(), list[int]()
    large = MEMORY_OCTETS - SMALL_RESERVE_OCTETS

    async def come(number: int, octets: int) -> None:
        assert await hands.reserve_memory(octets, 10)
        done.append(number)

    assert await hands.reserve_memory(large, 10)
    waiting = [asyncio.create_task(come(number, octets)) for number, octets in enumerate((large, 50 * MIB, 50 * MIB))]
    await asyncio.sleep(0.01)
    assert done == []
    hands.release_memory(large)
    await asyncio.sleep(0.01)
    assert done == [0]
    hands.release_memory(large)
    await asyncio.gather(*waiting)
    assert done == [0, 1, 2] and hands._in_use == 100 * MIB


async def test_who_waited_in_vain_or_left_takes_nothing_and_holds_up_nobody() -> None:
    hands = room()
    large = MEMORY_OCTETS - SMALL_RESERVE_OCTETS
    assert await hands.reserve_memory(large, 10)
    assert not await hands.reserve_memory(50 * MIB, 0.01)
    left = asyncio.create_task(hands.reserve_memory(50 * MIB, 10))
    behind = asyncio.create_task(hands.reserve_memory(20 * MIB, 10))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.sleep(0)
    hands.release_memory(large)
    assert await behind and hands._in_use == 20 * MIB
    # also when room comes at the moment of leaving
    hands.release_memory(20 * MIB)
    assert await hands.reserve_memory(large, 10)
    late = asyncio.create_task(hands.reserve_memory(50 * MIB, 10))
    await asyncio.sleep(0)
    hands.release_memory(large)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert hands._in_use == 0


async def test_small_mails_find_room_beside_large_ones() -> None:
    hands = room()
    assert await hands.reserve_memory(MEMORY_OCTETS - SMALL_RESERVE_OCTETS, 10)
    assert not hands.try_reserve(SMALL_OCTETS + 1)
    assert hands.try_reserve(SMALL_OCTETS)


async def test_one_mail_of_the_largest_size_always_finds_room() -> None:
    hands = CommitQueue(NOBODY, NOBODY, 2 * commit_queue.MEMORY_OCTETS)
    assert hands.try_reserve(2 * commit_queue.MEMORY_OCTETS)
