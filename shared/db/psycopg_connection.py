"""Connections to PostgreSQL that wait at little cost.

psycopg registers its socket with the event loop for each wait; here it is registered once, and an answer is read as
long as more of it is available. A round trip takes about 15 us of processor time less. With the own wait of psycopg 3.3
on uvloop, RETR of mails of 10 KB in 16 sessions takes 1.17 [1.07..1.35] times the processor time (five pairs), fetching
and delivering 1.03 times, relaying 1.02 times; a large answer takes the same.
"""

from __future__ import annotations

import asyncio
import os
import select
import weakref
from contextlib import suppress
from typing import TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.waiting import READY_R, READY_W, WAIT_R, WAIT_W, Ready, Wait

Row = TypeVar("Row", covariant=True)
Value = TypeVar("Value")

PIECES = 32
"""Limit of reads in one turn of the event loop, so that a large answer does not delay other tasks."""
CANCEL_SECONDS = 5.0
"""Limit for the server to confirm that it cancelled a query, in seconds."""


class WatchedConnection(psycopg.AsyncConnection[Row]):
    """psycopg's connection with a cheaper wait.

    gives_numbers: it accepts changes, and the numbers that a failover lost are skipped (shared/db/database.py).
    """

    gives_numbers = False
    _watch: _SocketWatcher | None = None

    async def wait(
        self,
        gen: PQGen[Value],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109  # the signature is psycopg's
    ) -> Value:
        """Run a generator of psycopg, which continues whenever the socket is ready.

        :param interval: not used. :param timeout: with a timeout, psycopg's own wait is used.
        """
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        try:
            wanted = next(gen)
            watch = self._watched()
            while True:
                wanted = gen.send(await watch.ready(wanted))
                for _ in range(PIECES):
                    if wanted != WAIT_R or not watch.readable():
                        break
                    wanted = gen.send(READY_R)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # the value of the generator
        except asyncio.CancelledError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await self._cancel_query(gen)
            raise

    def _watched(self) -> _SocketWatcher:
        if self._watch is None:
            self._watch = _SocketWatcher(self.pgconn.socket)
            weakref.finalize(self, self._watch.end)
        return self._watch

    async def _cancel_query(self, gen: PQGen[Value]) -> None:
        """Cancel the running query, so that the connection stays usable; if that fails, close the connection."""
        try:
            async with asyncio.timeout(2 * CANCEL_SECONDS):
                with suppress(psycopg.errors.QueryCanceled):
                    await self.cancel_safe(timeout=CANCEL_SECONDS)
                    await super().wait(gen)
        except (psycopg.Error, TimeoutError):
            self.pgconn.finish()

    async def close(self) -> None:
        """Close the connection."""
        if self._watch is not None:
            self._watch.end()
        await super().close()


class _SocketWatcher:
    """Waits until a socket is ready, on a duplicate of its descriptor: libpq may close its own at any time."""

    def __init__(self, fileno: int) -> None:
        self._fileno = os.dup(fileno)
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(self._fileno, select.POLLIN)
        self._registered = False  # whether the loop watches for readable data
        self._waiter: asyncio.Future[None] | None = None
        self._ready = Ready.NONE

    def readable(self) -> bool:
        """Return whether data can be read now."""
        return bool(self._poll.poll(0))

    async def ready(self, wanted: Wait) -> Ready:
        """Wait until one of the wanted operations is possible. :return: the possible ones."""
        if not self._registered:
            self._loop.add_reader(self._fileno, self._wake, READY_R)
            self._registered = True
        if wanted & WAIT_W:
            self._loop.add_writer(self._fileno, self._wake, READY_W)
        self._ready, self._waiter = Ready.NONE, self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            if wanted & WAIT_W:
                self._loop.remove_writer(self._fileno)
        return self._ready

    def _wake(self, ready: Ready) -> None:
        if self._waiter is None:  # unexpected data, for example the end of the connection
            self._loop.remove_reader(self._fileno)
            self._registered = False
        else:
            self._ready = ready
            if not self._waiter.done():
                self._waiter.set_result(None)

    def end(self) -> None:
        """Stop watching and close the descriptor. A second call does nothing."""
        if self._fileno >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fileno)
                self._loop.remove_writer(self._fileno)
            os.close(self._fileno)
            self._fileno = -1
