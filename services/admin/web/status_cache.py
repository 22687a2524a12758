"""How the system is: asked in the background, so that no page waits for it."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Any

import structlog

from services.admin.context import AdminContext
from services.admin.monitoring import daily_stats, status
from services.admin.monitoring.daily_stats import DailyStats
from shared.db.database import Connection
from shared.errors import Temporary

SECONDS, IDLE_SECONDS, LONGEST_SECONDS = 4.0, 30.0, 300.0
"""Between two looks: while somebody looks at it, and at least and at most while nobody does."""
IDLE_SHARE = 0.002
"""Of the time: so much do looks take while nobody looks at it. Those at a large store are fewer."""
_WATCHED_SECONDS = 60.0

log = structlog.get_logger()


class StatusCache:
    """The latest status. found: in the form of ``status --json``; empty until the first look is done. day: in numbers.

    number: how many looks there have been.
    """

    def __init__(self, system: AdminContext, stopping: asyncio.Event) -> None:
        self.status: dict[str, Any] = {}
        self.day: DailyStats | None = None
        self.gathered_at = 0.0
        self.generation = 0
        self._system = system
        self._stopping = stopping
        self._asked_at = 0.0
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words."""
        return list(self.status.get("problems", []))

    def get_latest(self) -> dict[str, Any]:
        """The latest status; it is looked at more often from now on."""
        if time.monotonic() - self._asked_at > _WATCHED_SECONDS:
            self._wake.set()
        self._asked_at = time.monotonic()
        return self.status

    async def get_fresh(self) -> dict[str, Any]:
        """As ``look``; it waits for a new look where the latest one is old, or there has been none."""
        generation = self.generation
        self.get_latest()
        if time.time() - self.gathered_at > IDLE_SECONDS:
            await self.wait_for_newer(generation)
        return self.status

    async def wait_for_newer(self, generation: int, seconds: float = 15.0) -> int:
        """Wait for a look after the one of this number, for a while. :return: the number of the latest one."""
        self.get_latest()
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self.generation > generation)
        except TimeoutError:
            pass
        return self.generation

    async def count_day(self, connection: Connection) -> None:
        """Count the last day anew."""
        self.day = await daily_stats.load_daily_stats(connection, datetime.datetime.now(datetime.UTC))

    async def run(self) -> None:
        """Look until stopped."""
        while not self._stopping.is_set():
            self._wake.clear()
            began = time.monotonic()
            try:
                self.status = await status.gather(self._system)
                async with self._system.database.transaction() as connection:
                    await self.count_day(connection)
            except Temporary:
                pass  # what was found says that the database is away
            except Exception:  # whatever it is, the next look may succeed; what was found before would be no news
                log.exception("the status cannot be told")
                self.status = {"ok": False, "problems": ["the status cannot be told; see the log of the service admin"]}
            self.gathered_at = time.time()
            async with self._changed:
                self.generation += 1
                self._changed.notify_all()
            now = time.monotonic()
            idle = min(max(IDLE_SECONDS, (now - began) / IDLE_SHARE), LONGEST_SECONDS)
            try:
                async with asyncio.timeout(SECONDS if now - self._asked_at < _WATCHED_SECONDS else idle):
                    await self._wake.wait()
            except TimeoutError:
                pass
