"""Connections to PostgreSQL that wait at little cost.

psycopg registers its socket with the event loop anew for each wait, and takes what has come 16 KiB at a time with a
wait after each: for an answer of a megabyte that is more work than the rest of the query. Here the loop is told once
about a socket, and an answer is taken as long as there is more of it.
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
"""Of an answer, taken in one turn of the event loop."""
CANCEL_SECONDS = 5.0


class WatchedConnection(psycopg.AsyncConnection[Row]):
    """psycopg's connection with another way of waiting."""

    _watch: _SocketWatcher | None = None

    async def wait(
        self,
        gen: PQGen[Value],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109  # the signature is psycopg's
    ) -> Value:
        """Let one of psycopg's generators do its work whenever the socket is ready for it.

        :param interval: of no use here. :param timeout: whoever has one gets psycopg's own waiting.
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
        """Cancel the query under way, so that the connection can be used again; else end the connection."""
        try:
            async with asyncio.timeout(2 * CANCEL_SECONDS):
                with suppress(psycopg.errors.QueryCanceled):
                    await self.cancel_safe(timeout=CANCEL_SECONDS)
                    await super().wait(gen)
        except (psycopg.Error, TimeoutError):
            self.pgconn.finish()

    async def close(self) -> None:
        """End the connection."""
        if self._watch is not None:
            self._watch.end()
        await super().close()


class _SocketWatcher:
    """Tells when a socket is ready, by a descriptor of our own: libpq closes its own one whenever it likes."""

    def __init__(self, fileno: int) -> None:
        self._fileno = os.dup(fileno)
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(self._fileno, select.POLLIN)
        self._told = False  # whether the loop tells when there is something to read
        self._waiter: asyncio.Future[None] | None = None
        self._found = Ready.NONE

    def readable(self) -> bool:
        """Whether there is something to read now."""
        return bool(self._poll.poll(0))

    async def ready(self, wanted: Wait) -> Ready:
        """Wait until one of these is possible. :return: what is."""
        if not self._told:
            self._loop.add_reader(self._fileno, self._wake, READY_R)
            self._told = True
        if wanted & WAIT_W:
            self._loop.add_writer(self._fileno, self._wake, READY_W)
        self._found, self._waiter = Ready.NONE, self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            if wanted & WAIT_W:
                self._loop.remove_writer(self._fileno)
        return self._found

    def _wake(self, ready: Ready) -> None:
        if self._waiter is None:  # something comes that nobody waits for now, the end of the connection, say
            self._loop.remove_reader(self._fileno)
            self._told = False
        else:
            self._found = ready
            if not self._waiter.done():
                self._waiter.set_result(None)

    def end(self) -> None:
        """Watch no longer. May be called again."""
        if self._fileno >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fileno)
                self._loop.remove_writer(self._fileno)
            os.close(self._fileno)
            self._fileno = -1
