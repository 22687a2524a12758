"""The cached status of the system, gathered in the background so that no page waits for it."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Any

import structlog

from services.admin.context import AdminContext
from services.admin.monitoring import daily_stats, status
from services.admin.monitoring.background_work import run_once
from services.admin.monitoring.daily_stats import DailyStats
from shared.db.database import Connection
from shared.errors import Temporary

SECONDS, IDLE_SECONDS, MAX_IDLE_SECONDS = 4.0, 30.0, 300.0
"""Interval between two checks: while a page shows the status; at least and at most while none does. Seconds."""
IDLE_SHARE = 0.002
"""Largest share of the time that checks take while no page shows the status; a large store is checked less often."""
_WATCHED_SECONDS = 60.0
"""Time after the last request during which a page counts as open: seconds."""

log = structlog.get_logger()


class StatusCache:
    """The latest status of the system, checked in the background."""

    def __init__(self, system: AdminContext, stopping: asyncio.Event) -> None:
        self.status: dict[str, Any] = {}  # as ``status --json`` prints it; empty until the first check is done
        self.day: DailyStats | None = None  # counts of the last 24 hours
        self.gathered_at = 0.0  # time of the last check, seconds since the epoch; 0.0: none
        self.generation = 0  # number of checks
        self._system = system
        self._stopping = stopping
        self._asked_at = 0.0
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()

    @property
    def problems(self) -> list[str]:
        """Return the texts of the problems."""
        return list(self.status.get("problems", []))

    def get_latest(self) -> dict[str, Any]:
        """Return the latest status without waiting. The checks are more frequent for a while."""
        if time.monotonic() - self._asked_at > _WATCHED_SECONDS:
            self._wake.set()
        self._asked_at = time.monotonic()
        return self.status

    async def get_fresh(self) -> dict[str, Any]:
        """Return the latest status, after a new check if the latest one is old or missing."""
        generation = self.generation
        self.get_latest()
        if time.time() - self.gathered_at > IDLE_SECONDS:
            await self.wait_for_newer(generation)
        return self.status

    async def wait_for_newer(self, generation: int, seconds: float = 15.0) -> int:
        """Wait for a check after this generation, at most ``seconds``. :return: the latest generation."""
        self.get_latest()
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self.generation > generation)
        except TimeoutError:
            pass
        return self.generation

    async def count_day(self, connection: Connection) -> None:
        """Count the mail of the last 24 hours."""
        self.day = await daily_stats.load_daily_stats(connection, datetime.datetime.now(datetime.UTC))

    async def _count_day(self) -> None:
        async with self._system.database.transaction() as connection:
            await self.count_day(connection)

    async def run(self) -> None:
        """Check the system until the process stops."""
        while not self._stopping.is_set():
            self._wake.clear()
            started = time.monotonic()
            try:
                self.status = await status.gather(self._system)
            except Exception:  # the next check may succeed; until then an old status would mislead
                log.exception("status check failed")
                self.status = {"ok": False, "problems": ["the status is unknown; see the log of the service admin"]}
            try:
                await run_once("day count", self._count_day, self._system.database)
            except Temporary as error:  # the status reports a database that is unavailable
                log.warning("day count failed", error=str(error))
            except Exception:
                log.exception("day count failed")
            self.gathered_at = time.time()
            async with self._changed:
                self.generation += 1
                self._changed.notify_all()
            now = time.monotonic()
            idle = min(max(IDLE_SECONDS, (now - started) / IDLE_SHARE), MAX_IDLE_SECONDS)
            try:
                async with asyncio.timeout(SECONDS if now - self._asked_at < _WATCHED_SECONDS else idle):
                    await self._wake.wait()
            except TimeoutError:
                pass
