"""The accounts as they are now, in memory: every time somebody asks, the database is asked whether they changed.

One question serves all sessions that wait for it, over a connection that is kept: to take one from the pool costs more
than the answer. The accounts themselves are read only when they changed, so their number costs nothing. Until the
answer comes, ``known`` tells how they were when somebody last asked: mostly as they are.
"""

from __future__ import annotations

import asyncio

import structlog

from services.smtp_in.recipient_policy import Directory
from shared.db.database import Connection, Database
from shared.errors import Temporary
from shared.store import accounts

ANSWER_SECONDS = 20.0

log = structlog.get_logger()


class DirectoryCache:
    """Answers with a directory. ``run`` is to run beside. known: the latest answer, at first nobody."""

    def __init__(self, database: Database) -> None:
        """Asks nothing yet."""
        self._database = database
        self.cached, self._version = Directory.from_accounts([], []), ""
        self._waiting: list[asyncio.Future[Directory]] = []
        self._requested = asyncio.Event()
        self._has_answered = False  # whether the connection in use has answered

    def refresh(self) -> asyncio.Future[Directory]:
        """The accounts as they are after this call, so that a change that was committed before it counts. It is
        ``known`` itself if there was none.

        :raises Temporary: (the future) the database is away.
        """
        future: asyncio.Future[Directory] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._requested.set()
        return future

    async def run(self) -> None:
        """Answer for ever; cancel to end."""
        while True:
            await self._requested.wait()
            self._has_answered = False
            try:
                async with self._database.statement(None) as connection:
                    await self._answer_requests(connection)
            except Temporary as failure:
                if not self._has_answered:  # otherwise it broke while nobody used it: another one may do
                    self._fail_waiting(failure)
            except Exception as error:  # whatever it is: who waits is to hear of it, and who comes next is served
                log.exception("accounts not read")
                self._fail_waiting(error)

    async def _answer_requests(self, connection: Connection) -> None:
        """Answer as long as the connection works. :raises Temporary, psycopg.Error: it does not any more."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            asking, self._waiting = self._waiting, []  # who asks from here on may know of a change that this misses
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._reload_if_changed(connection)
            except BaseException as error:
                self._waiting = asking + self._waiting
                self._requested.set()
                if isinstance(error, TimeoutError):
                    raise Temporary(f"database: no answer within {ANSWER_SECONDS:g} s") from error
                raise
            self._has_answered = True
            for future in asking:
                if not future.done():
                    future.set_result(self.cached)

    async def _reload_if_changed(self, connection: Connection) -> None:
        version = await accounts.load_version(connection)
        if version != self._version:
            externals = await accounts.load_externals(connection)
            locals_ = await accounts.load_locals(connection, known=self.cached.local_ids)
            self.cached, self._version = Directory.from_accounts(externals, locals_), version

    def _fail_waiting(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, []
        self._requested.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: who asked may be gone
