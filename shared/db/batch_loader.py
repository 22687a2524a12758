"""Group reads: one query answers whoever waits.

A query costs a round trip and some work on both sides, whether it asks for one row or for fifty. So there is no query
a session: a reader takes what has queued and asks for all of it. There is no timer: while one query is under way, the
next one queues. What is asked for is always read by a query that starts afterwards, so an answer is never older than
its question.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from shared.errors import Temporary

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_Request = tuple[Sequence[Key], int, asyncio.Future[dict[Key, Value]]]


class BatchLoader(Generic[Key, Value]):
    """Reads values of one kind by their keys, for everyone of the process."""

    def __init__(
        self,
        read: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]],
        *,
        readers: int = 1,
        max_keys: int = 200,
        max_weight: int = 1024 * 1024,
    ) -> None:
        """Reads nothing yet.

        :param read: one query; keys that it does not find are missing in its result.
        :param readers: queries under way at once at most.
        :param most: keys in a query, and ``heaviest``: their weight; a single wish may be more than either.
        """
        self._read = read
        self._readers = readers
        self._most = max_keys
        self._heaviest = max_weight
        self._queue: deque[_Request[Key, Value]] = deque()
        self._working: set[asyncio.Task[None]] = set()

    async def get(self, keys: Sequence[Key], weight: int = 1) -> dict[Key, Value]:
        """The values of these keys; without those that are not found. :param weight: of all of them, say octets.

        :raises Temporary: the query failed.
        :raises Exception: whatever ``read`` raised for these keys alone.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[Key, Value]] = loop.create_future()
        self._queue.append((keys, weight, future))
        if len(self._working) < self._readers:
            task = loop.create_task(self._work())
            self._working.add(task)
        return await future

    async def _work(self) -> None:
        """Work the queue off."""
        try:
            while batch := self._take():
                await self._answer(batch)
        finally:  # in the same step in which the queue was seen empty: what comes next finds that nobody works
            task = asyncio.current_task()
            assert task is not None
            self._working.discard(task)

    def _take(self) -> list[_Request[Key, Value]]:
        batch: list[_Request[Key, Value]] = []
        count = octets = 0
        while self._queue:
            keys, weight, future = self._queue[0]
            if batch and (count + len(keys) > self._most or octets + weight > self._heaviest):
                break
            self._queue.popleft()
            if not future.done():  # who asked may be gone
                batch.append((keys, weight, future))
                count += len(keys)
                octets += weight
        return batch

    async def _answer(self, batch: Sequence[_Request[Key, Value]]) -> None:
        keys = list(dict.fromkeys(key for wish in batch for key in wish[0]))
        try:
            found = await self._read(keys)
        except asyncio.CancelledError:  # the process ends
            for _, _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # whatever it is: who waits is to hear of it
            if len(batch) > 1 and not isinstance(error, Temporary):  # a bad key harms nobody else
                for wish in batch:
                    await self._answer([wish])
                return
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for wanted, _, future in batch:
            if not future.done():
                future.set_result({key: found[key] for key in wanted if key in found})
