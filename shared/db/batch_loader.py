"""Batch loader: one query reads the keys of all waiting callers.

A query costs a round trip and work on both sides, for one row as for fifty. Sessions therefore share queries: a reader
takes the queued requests and reads all their keys at once. There is no timer: requests queue while a query runs. A
request is always answered by a query that starts after it, so an answer is never older than its request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from shared.errors import Temporary

QUICK_SECONDS = 0.02
"""For ``quick_seconds``, of queries that look for a few rows by an index: most take less than a millisecond."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_Request = tuple[Sequence[Key], int, asyncio.Future[dict[Key, Value]]]


class BatchLoader(Generic[Key, Value]):
    """Reads values of one kind by their keys, for all callers in the process."""

    def __init__(
        self,
        read: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]],
        *,
        readers: int = 1,
        quick_seconds: float = 0.0,
        max_keys: int = 200,
        max_weight: int = 1024 * 1024,
    ) -> None:
        """Create a loader without any query.

        :param read: runs one query; its result leaves out keys that do not exist.
        :param readers: limit of queries at the same time.
        :param quick_seconds: a further query begins only while the latest one takes longer than this. So more requests
            share a query, and a slow one holds up no others. 0: it begins at once.
        :param max_keys: limit of a query. :param max_weight: limit of a query. A single request may exceed both.
        """
        self._read = read
        self._readers = readers
        self._quick_seconds = quick_seconds
        self._max_keys = max_keys
        self._max_weight = max_weight
        self._queue: deque[_Request[Key, Value]] = deque()
        self._working: set[asyncio.Task[None]] = set()
        self._began = 0.0  # the latest query: seconds of the event loop's clock
        self._helps: asyncio.TimerHandle | None = None  # looks whether a further query is needed

    async def get(self, keys: Sequence[Key], weight: int = 1) -> dict[Key, Value]:
        """Return the values of these keys; keys that do not exist are left out.

        :param weight: of all these keys together, for example octets.
        :raises Temporary: the query failed.
        :raises Exception: the error of ``read`` for these keys alone.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[Key, Value]] = loop.create_future()
        self._queue.append((keys, weight, future))
        if not self._working or not self._quick_seconds:
            self._start_reader()
        elif self._helps is None and len(self._working) < self._readers:
            self._helps = loop.call_later(self._quick_seconds, self._help)
        return await future

    def _start_reader(self) -> None:
        if len(self._working) < self._readers:
            self._working.add(asyncio.get_running_loop().create_task(self._work()))

    def _help(self) -> None:
        """Start a further query for the requests that wait, if the latest one takes long."""
        self._helps = None
        if self._queue and len(self._working) < self._readers:
            loop = asyncio.get_running_loop()
            left = self._began + self._quick_seconds - loop.time()
            if left <= 0:
                self._start_reader()
            else:
                self._helps = loop.call_later(left, self._help)

    async def _work(self) -> None:
        """Answer requests until the queue is empty."""
        try:
            while batch := self._next_batch():
                self._began = asyncio.get_running_loop().time()
                await self._answer(batch)
        finally:  # without an await since the queue was empty: the next request starts another reader
            task = asyncio.current_task()
            assert task is not None
            self._working.discard(task)

    def _next_batch(self) -> list[_Request[Key, Value]]:
        batch: list[_Request[Key, Value]] = []
        count = total = 0
        while self._queue:
            keys, weight, future = self._queue[0]
            if batch and (count + len(keys) > self._max_keys or total + weight > self._max_weight):
                break
            self._queue.popleft()
            if not future.done():  # a cancelled caller needs no answer
                batch.append((keys, weight, future))
                count += len(keys)
                total += weight
        return batch

    async def _answer(self, batch: Sequence[_Request[Key, Value]]) -> None:
        keys = list(dict.fromkeys(key for request in batch for key in request[0]))
        try:
            values = await self._read(keys)
        except asyncio.CancelledError:  # the process stops
            for _, _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # every kind: the callers must get it
            if len(batch) > 1 and not isinstance(error, Temporary):  # an invalid key must harm no other request
                for request in batch:
                    await self._answer([request])
                return
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for requested, _, future in batch:
            if not future.done():
                future.set_result({key: values[key] for key in requested if key in values})
