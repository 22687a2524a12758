"""The accounts in memory. A query checks whether they have changed.

The query serves all sessions that wait, over a connection that stays open, because the pool's checkout costs more than
the query. The accounts are read again only after a change, so their number costs nothing. ``cached`` holds the accounts
as of the last query: enough to accept a command, not to refuse one (envelope_policy.py).
"""

from __future__ import annotations

import asyncio
import time

import structlog

from services.smtp_in.recipient_policy import Directory
from shared.db.database import Connection, Database
from shared.errors import Temporary
from shared.store import accounts

CACHE_SECONDS = 1.0
"""Age from which on ``cached`` is refreshed in the background: seconds. A removed recipient is then mostly refused at
RCPT, and not after the whole mail."""
ANSWER_SECONDS = 20.0
"""Timeout of one query: seconds."""

log = structlog.get_logger()


class DirectoryCache:
    """Answers requests while ``run`` runs.

    :ivar cached: the accounts as of the last query; empty at first.
    """

    def __init__(self, database: Database) -> None:
        """Send no query yet."""
        self._database = database
        self.cached = Directory.from_accounts([], [])
        self._requested_at = -CACHE_SECONDS  # monotonic seconds
        self._waiting: list[asyncio.Future[Directory]] = []
        self._requested = asyncio.Event()
        self._has_answered = False  # the open connection has answered a query

    def refresh_in_background(self) -> None:
        """Refresh ``cached`` soon, if that was not requested within the last CACHE_SECONDS."""
        if time.monotonic() - self._requested_at > CACHE_SECONDS:
            self.refresh()

    def refresh(self) -> asyncio.Future[Directory]:
        """Request the accounts including all changes that were committed before this call.

        The result is the ``cached`` object itself if nothing has changed.

        :raises Temporary: (the future) the database is unavailable.
        """
        future: asyncio.Future[Directory] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._requested.set()
        self._requested_at = time.monotonic()
        return future

    async def run(self) -> None:
        """Answer requests. Never returns."""
        while True:
            await self._requested.wait()
            self._has_answered = False
            try:
                async with self._database.statement(None) as connection:
                    await self._answer_requests(connection)
            except Temporary as failure:
                if not self._has_answered:  # else the idle connection was lost: try another one
                    self._fail_waiting(failure)
            except Exception as error:  # fail the waiting requests, and serve the next ones
                log.exception("account query failed")
                self._fail_waiting(error)

    async def _answer_requests(self, connection: Connection) -> None:
        """Answer requests over this connection. :raises Temporary, psycopg.Error: the connection is lost."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            requests, self._waiting = self._waiting, []  # later requests may follow a change that this query misses
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._reload_if_changed(connection)
            except BaseException as error:
                self._waiting = requests + self._waiting
                self._requested.set()
                if isinstance(error, TimeoutError):
                    raise Temporary(f"database: no answer within {ANSWER_SECONDS:g} s") from error
                raise
            self._has_answered = True
            for future in requests:
                if not future.done():
                    future.set_result(self.cached)

    async def _reload_if_changed(self, connection: Connection) -> None:
        version = await accounts.load_version(connection)
        if version != self.cached.version:
            externals = await accounts.load_externals(connection)
            people = await accounts.load_locals(connection, known=self.cached.local_ids)
            self.cached = Directory.from_accounts(externals, people, version)

    def _fail_waiting(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, []
        self._requested.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # mark as retrieved: the session may have ended
