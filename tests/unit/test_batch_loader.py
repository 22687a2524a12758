"""shared/db/batch_loader.py: which query answers which request, and how failures are distributed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shared.db.batch_loader import BatchLoader
from shared.errors import Temporary


class Table:
    """Squares of numbers; each query waits at the gate."""

    def __init__(self) -> None:
        self.queries: list[list[int]] = []
        self.gate = asyncio.Event()
        self.failure: Exception | None = None
        self.begun = asyncio.Semaphore(0)  # released by each query

    async def read(self, keys: Sequence[int]) -> dict[int, int]:
        self.queries.append(list(keys))
        self.begun.release()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if 13 in keys:
            raise ValueError("13 cannot be read")
        return {key: key * key for key in keys if key != 7}


async def test_keys_that_arrive_during_a_query_are_read_by_the_next_one() -> None:
    # given one query under way
    table = Table()
    loader: BatchLoader[int, int] = BatchLoader(table.read)
    asked = [asyncio.create_task(loader.get([1]))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # when others ask, one of them for the same
    asked += [asyncio.create_task(loader.get(keys)) for keys in ([1], [2, 3], [3, 7])]
    await asyncio.sleep(0)
    table.gate.set()
    # then each gets its own value, from one query that started after the requests
    assert list(await asyncio.gather(*asked)) == [{1: 1}, {1: 1}, {2: 4, 3: 9}, {3: 9}]
    assert table.queries == [[1], [1, 2, 3, 7]]


async def test_a_query_reads_no_more_octets_than_allowed() -> None:
    table = Table()
    table.gate.set()
    loader: BatchLoader[int, int] = BatchLoader(table.read, max_keys=3, max_weight=100)
    asks = [([1, 2, 3, 4], 10), ([5], 60), ([6], 60), ([8], 500), ([9], 1)]
    await asyncio.gather(*(loader.get(keys, weight) for keys, weight in asks))
    assert table.queries == [[1, 2, 3, 4], [5], [6], [8], [9]]


async def test_the_number_of_concurrent_queries_is_limited() -> None:
    table = Table()
    loader: BatchLoader[int, int] = BatchLoader(table.read, readers=2, max_keys=1)
    asked = [asyncio.create_task(loader.get([key])) for key in range(5)]
    await asyncio.sleep(0.01)
    assert len(table.queries) == 2
    table.gate.set()
    await asyncio.gather(*asked)
    assert len(table.queries) == 5


async def test_a_further_query_begins_if_one_is_slow() -> None:
    # given a query that gets no answer
    table = Table()
    loader: BatchLoader[int, int] = BatchLoader(table.read, readers=2, quick_seconds=0.03)
    asked = [asyncio.create_task(loader.get([1]))]
    await table.begun.acquire()
    # when others ask meanwhile
    asked += [asyncio.create_task(loader.get([key])) for key in (2, 3)]
    # then a second query reads for them, though nobody asks again
    async with asyncio.timeout(30):
        await table.begun.acquire()
    assert table.queries == [[1], [2, 3]]
    table.gate.set()
    assert list(await asyncio.gather(*asked)) == [{1: 1}, {2: 4}, {3: 9}]


async def test_quick_queries_are_made_one_after_the_other() -> None:
    # given a query that is soon answered
    table = Table()
    loader: BatchLoader[int, int] = BatchLoader(table.read, readers=2, quick_seconds=30)
    asked = [asyncio.create_task(loader.get([key])) for key in (1, 2)]
    await table.begun.acquire()
    # when others ask meanwhile
    asked += [asyncio.create_task(loader.get([key])) for key in (3, 4)]
    await asyncio.sleep(0)
    table.gate.set()
    # then they share the next one
    await asyncio.gather(*asked)
    assert table.queries == [[1, 2], [3, 4]]


async def test_a_key_that_cannot_be_read_fails_alone() -> None:
    table = Table()
    table.gate.set()
    loader: BatchLoader[int, int] = BatchLoader(table.read)
    one, bad, two = await asyncio.gather(*(loader.get([key]) for key in (1, 13, 2)), return_exceptions=True)
    assert (one, two) == ({1: 1}, {2: 4})
    assert isinstance(bad, ValueError)


async def test_a_failure_reaches_every_caller_and_the_next_query_works() -> None:
    table = Table()
    table.gate.set()
    table.failure = Temporary("away")
    loader: BatchLoader[int, int] = BatchLoader(table.read)
    assert all(
        isinstance(found, Temporary)
        for found in await asyncio.gather(*(loader.get([key]) for key in range(4)), return_exceptions=True)
    )
    assert len(table.queries) == 1
    table.failure = None
    assert await loader.get([3]) == {3: 9}


async def test_no_caller_waits_for_ever_if_it_asks_as_a_reader_ends() -> None:
    # given askers that ask again in the very step in which they are answered
    table = Table()
    table.gate.set()
    loader: BatchLoader[int, int] = BatchLoader(table.read)

    async def ask(key: int) -> None:
        for _ in range(200):
            async with asyncio.timeout(30):
                assert await loader.get([key]) == {key: key * key}
            for _ in range(key % 4):
                await asyncio.sleep(0)

    await asyncio.gather(*(ask(key) for key in (1, 2, 3, 4)))


async def test_the_keys_of_a_cancelled_caller_are_not_read() -> None:
    table = Table()
    loader: BatchLoader[int, int] = BatchLoader(table.read)
    first, gone, last = (asyncio.create_task(loader.get([key])) for key in (1, 2, 3))
    await asyncio.sleep(0.01)
    asked = [asyncio.create_task(loader.get([key])) for key in (4, 5)]
    await asyncio.sleep(0.01)
    asked[0].cancel()
    await asyncio.sleep(0.01)
    table.gate.set()
    assert list(await asyncio.gather(first, gone, last, asked[1])) == [{1: 1}, {2: 4}, {3: 9}, {5: 25}]
    assert 4 not in [key for query in table.queries for key in query]
    with pytest.raises(asyncio.CancelledError):
        await asked[0]
