"""services/fetcher/memory_budget.py: large mails of many accounts share one memory limit."""

from __future__ import annotations

import asyncio

import pytest

from services.fetcher import memory_budget
from services.fetcher.memory_budget import MemoryShare, OverflowBudget


async def read(share: MemoryShare, steps: int, most: list[int], whole: OverflowBudget) -> None:
    """Simulate a mail that grows step by step, is committed and released."""
    for _ in range(steps):
        await share.reserve_octets(1)
        most.append(whole.in_use)
        await asyncio.sleep(0)
    taken = share.finish_mail()
    await asyncio.sleep(0)
    share.release(taken)


async def test_many_growing_mails_all_end_within_the_budget_and_one_more() -> None:
    whole, most = OverflowBudget(100), list[int]()
    async with asyncio.timeout(20):
        await asyncio.gather(*(read(MemoryShare(whole), 50, most, whole) for _ in range(30)))
    assert max(most) <= 150 and whole.in_use == 0


async def test_a_mail_that_does_not_grow_loses_its_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a mail that has reserved all memory and the exception
    monkeypatch.setattr(memory_budget, "PATIENCE_SECONDS", 0.2)
    whole = OverflowBudget(10)
    slow, other = MemoryShare(whole), MemoryShare(whole)
    await slow.reserve_octets(10)
    await slow.reserve_octets(1)
    # when another mail needs memory
    started = asyncio.get_running_loop().time()
    await other.reserve_octets(1)
    # then it waits until the exception expires
    assert 0.15 < asyncio.get_running_loop().time() - started < 1.0


async def test_a_poll_that_ends_releases_its_memory_and_wakes_waiters() -> None:
    whole = OverflowBudget(10)
    first, second = MemoryShare(whole), MemoryShare(whole)
    await first.reserve_octets(11)
    waiting = asyncio.create_task(second.reserve_octets(1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    first.close()
    await asyncio.wait_for(waiting, 1)
    second.close()
    assert whole.in_use == 0
