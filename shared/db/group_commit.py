"""Group commits: one writer takes whatever has queued and commits it together.

A commit waits for the disk; a hundred sessions that commit together wait once. There is no timer: while one batch is
being committed, the next one queues.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from shared.db.database import Connection, Database
from shared.errors import Temporary

Item = TypeVar("Item")
Result = TypeVar("Result")

log = structlog.get_logger()


class OutcomeUnknown(Temporary):
    """The server went away during the commit: it may have happened, or not."""


class GroupCommit(Generic[Item, Result]):
    """Writes items of one kind. What was handed in is written also if whoever did so goes away meanwhile."""

    def __init__(
        self,
        database: Database,
        write: Callable[[Connection, Sequence[Item]], Awaitable[Sequence[Result]]],
        on_commit: Callable[[Sequence[Result]], None],
        weight: Callable[[Item], int],
        *,
        max_items: int = 200,
        max_octets: int = 32 * 1024 * 1024,
        is_single_statement: Callable[[Sequence[Item]], bool] | None = None,
        gather: bool = False,
    ) -> None:
        """A writer; ``run`` is to run beside.

        :param write: writes items in one transaction and returns a result for each, in order.
        :param committed: told the results of a batch after its commit, before anybody who waits. Must not raise.
        :param weight: octets of an item. A batch has up to ``most`` items and ``heaviest`` octets, at least one item.
        :param single: whether ``write`` writes these items by one statement. That is a transaction by itself, and takes
            one round trip instead of three.
        :param gathering: whether a batch waits for those who are about to hand something in: as long as each turn of
            the event loop brings more. Where one process is busy it makes fewer commits; where it is not, none is late.
        """
        self._database = database
        self._write = write
        self._committed = on_commit
        self._weight = weight
        self._most = max_items
        self._heaviest = max_octets
        self._single = is_single_statement
        self._gathering = gather
        self._queue: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def commit(self, item: Item) -> Result:
        """Hand in an item and wait for its commit.

        :raises Unsettled: nobody knows whether it was committed. :raises Temporary: it was not.
        :raises Exception: whatever ``write`` raised for this item alone.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        self._filled.set()
        self._idle.clear()
        return await future  # cancelling the caller cancels the future, not the commit

    async def run(self) -> None:
        """Write for ever; cancel when ``drain`` has returned."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                if self._gathering:
                    await self._gather()
                await self._save(self._take())
            self._idle.set()

    async def drain(self) -> None:
        """Wait until everything handed in is settled."""
        await self._idle.wait()

    async def _gather(self) -> None:
        count = 0
        while count < len(self._queue) < self._most:
            count = len(self._queue)
            await asyncio.sleep(0)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        octets = 0
        while self._queue and len(batch) < self._most:
            octets += self._weight(self._queue[0][0])
            if batch and octets > self._heaviest:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _save(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        """Commit a batch; if it fails, each item by itself, so that a bad one harms no other."""
        items = [item for item, _ in batch]
        # A single statement is begun and committed at once: without an answer nobody knows how far it came.
        single = self._single is not None and self._single(items)
        written = False
        try:
            async with self._database.statement() if single else self._database.transaction() as connection:
                written = single
                results = await self._write(connection, items)
                written = True
        except Exception as failure:  # whatever it is: who waits is to hear of it
            error = OutcomeUnknown(str(failure)) if written and _cut_off(failure) else failure
            # A commit without an answer may have happened: repeating it here would double the mails of everybody.
            if len(batch) == 1 or isinstance(error, OutcomeUnknown):
                for _, future in batch:
                    _fail(future, error)
                return
            log.warning("batch failed, item by item", items=len(batch), reason=f"{type(error).__name__}: {error}")
            for position, pair in enumerate(batch):
                if isinstance(error, Temporary) and not await self._database.ready():
                    for _, future in batch[position:]:
                        _fail(future, error)
                    return
                await self._save([pair])
            return
        self._committed(results)
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


def _cut_off(failure: Exception) -> bool:
    """Whether the server went away instead of saying what failed. A reason of its own class says that nothing was
    committed; that it shuts down (57) or that the connection broke (08) says nothing."""
    code = getattr(failure.__cause__, "sqlstate", None)
    return isinstance(failure, Temporary) and (code is None or code.startswith(("57", "08")))


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # seen: who handed it in may be gone
