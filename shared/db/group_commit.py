"""Group commit: one writer commits all queued items together.

A commit waits for the disk; a hundred sessions that commit together wait once. There is no timer: items queue while
the previous batch is being committed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from shared.db.database import Connection, Database
from shared.db.errors import is_outcome_unknown
from shared.errors import Temporary

Item = TypeVar("Item")
Result = TypeVar("Result")

log = structlog.get_logger()


class CommitOutcomeUnknown(Temporary):
    """The connection was lost during the commit: the items may be committed or not."""


@dataclass(frozen=True, slots=True)
class Committed(Generic[Result]):
    """The server confirmed the commit. results: one for each item, in order."""

    results: Sequence[Result]


@dataclass(frozen=True, slots=True)
class NotCommitted:
    """The server has committed no item of the batch."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer to the commit arrived. A second commit here could duplicate the mails of all items."""

    error: CommitOutcomeUnknown


class GroupCommit(Generic[Item, Result]):
    """Writes items of one kind. A queued item is written even if its caller is cancelled."""

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
        """Create a writer; its ``run`` must be started by the caller.

        :param write: writes items in one transaction and returns a result for each, in order.
        :param on_commit: called with the results of a batch after its commit and before the callers continue. Must not
            raise.
        :param weight: returns the octets of an item.
        :param max_items: limit of a batch. :param max_octets: limit of a batch with more than one item.
        :param is_single_statement: whether ``write`` writes these items by one statement. The server commits it by
            itself, in one round trip instead of three.
        :param gather: wait before a batch as long as each turn of the event loop queues more items. A busy process
            makes fewer commits; an idle one commits without delay.
        """
        self._database = database
        self._write = write
        self._on_commit = on_commit
        self._weight = weight
        self._max_items = max_items
        self._max_octets = max_octets
        self._is_single_statement = is_single_statement
        self._gather = gather
        self._queue: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def commit(self, item: Item) -> Result:
        """Queue an item and wait for its commit.

        :raises CommitOutcomeUnknown: it may be committed or not. :raises Temporary: it is not committed.
        :raises Exception: the error of ``write`` for this item alone.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        self._filled.set()
        self._idle.clear()
        return await future  # cancelling the caller cancels the future, not the commit

    async def run(self) -> None:
        """Write until cancelled; cancel after ``drain`` has returned."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                if self._gather:
                    await self._gather_items()
                await self._save(self._next_batch())
            self._idle.set()

    async def drain(self) -> None:
        """Wait until every queued item has its outcome."""
        await self._idle.wait()

    async def _gather_items(self) -> None:
        count = 0
        while count < len(self._queue) < self._max_items:
            count = len(self._queue)
            await asyncio.sleep(0)

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        octets = 0
        while self._queue and len(batch) < self._max_items:
            octets += self._weight(self._queue[0][0])
            if batch and octets > self._max_octets:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _save(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        """Commit a batch and answer its callers."""
        outcome = await self._commit_batch([item for item, _ in batch])
        if isinstance(outcome, NotCommitted) and len(batch) > 1:
            log.warning(
                "batch commit failed, committing item by item",
                items=len(batch),
                error=str(outcome.error) if isinstance(outcome.error, Temporary) else repr(outcome.error),
            )
            await self._save_one_by_one(batch, outcome.error)
        else:
            self._answer(batch, outcome)

    async def _save_one_by_one(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]], failure: Exception) -> None:
        """Commit each item by itself, so that an invalid item harms no other. :param failure: of the whole batch."""
        for position, pair in enumerate(batch):
            if isinstance(failure, Temporary) and not await self._database.ready():
                self._answer(batch[position:], NotCommitted(failure))
                return
            self._answer([pair], await self._commit_batch([pair[0]]))

    async def _commit_batch(self, items: Sequence[Item]) -> Committed[Result] | NotCommitted | Unknown:
        """Try once to commit these items."""
        single = self._is_single_statement is not None and self._is_single_statement(items)
        # A lost answer leaves the outcome open only after the commit was sent. A single statement commits itself, so
        # that is from its beginning; in a transaction it is at the end of the block.
        commit_sent = False
        try:
            async with self._database.statement() if single else self._database.transaction() as connection:
                commit_sent = single
                results = await self._write(connection, items)
                commit_sent = True
        except Exception as error:  # every kind: the callers must get it
            if commit_sent and is_outcome_unknown(error):
                return Unknown(CommitOutcomeUnknown(str(error)))
            return NotCommitted(error)
        return Committed(results)

    def _answer(
        self,
        batch: Sequence[tuple[Item, asyncio.Future[Result]]],
        outcome: Committed[Result] | NotCommitted | Unknown,
    ) -> None:
        if isinstance(outcome, Committed):
            self._on_commit(outcome.results)
            for (_, future), result in zip(batch, outcome.results, strict=True):
                if not future.done():
                    future.set_result(result)
        else:
            for _, future in batch:
                if not future.done():
                    future.set_exception(outcome.error)
                    future.exception()  # marks it as retrieved: the caller may be gone
