"""shared/runtime/memory_budget.py: a limit for memory, and shares of it."""

from __future__ import annotations

from shared.runtime.memory_budget import MemoryBudget


def test_memory_that_is_only_counted_may_exceed_the_limit() -> None:
    memory = MemoryBudget(100)
    memory.add(130)
    assert memory.available == -30
    memory.release(130)
    assert memory.available == 100 and memory.whole is memory


def test_what_a_share_counts_counts_in_the_whole_budget_too() -> None:
    whole = MemoryBudget(100)
    first, second = MemoryBudget(30, whole), MemoryBudget(30, whole)
    first.add(40)
    second.add(10)
    assert (first.available, second.available, whole.available) == (-10, 20, 50)
    first.release(40)
    assert (first.available, second.available, whole.available) == (30, 20, 90)
