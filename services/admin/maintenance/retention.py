"""Retention: purges deleted mail, submissions, unreferenced bytes and old traces after their retention time.

One process at a time purges, by a lease, in small batches with pauses, so it blocks no other work. One transaction
purges what belongs together: the last copy of a mail, the mail, and its bytes.
"""

from __future__ import annotations

import asyncio
import datetime
from collections import Counter as Counts
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from prometheus_client import Counter

from shared.db import leases
from shared.db.database import Connection, Database
from shared.errors import Temporary
from shared.runtime.process import Service
from shared.runtime.queue_worker import FAILURES
from shared.store import (
    account_changes,
    blobs,
    inbound_admin,
    maildrops,
    maillog,
    sent_mail,
    submissions_admin,
    uidl_ledger,
)

PURGED = Counter(
    "mailgroup_purged_total", "Rows that were purged after their retention time.", ["kind"]
)  # copies, mails, bytes, submissions, mailboxes, secrets, ledger, events, authors

FIRST_SECONDS = 300.0
"""Seconds from the start of the process to the first purge."""
EVERY_SECONDS = 6 * 3600.0
"""Seconds between two purges."""
LEASE = "purge"
"""Name of the lease in the database."""
BATCH, PAUSE_SECONDS = 500, 0.1
"""Rows that one transaction purges, at most, and the pause after it."""
SCAN_ROWS = 5000
"""Rows that one transaction scans of a table without an index on the age."""
TRACE_AGE = datetime.timedelta(days=90)
"""Retention of the history of a mail; longer if deleted mail is kept longer."""
VANISHED_AGE = datetime.timedelta(days=365)
"""Time after which the ledger entry of a mail that the provider no longer lists is deleted."""
ORPHAN_AGE = datetime.timedelta(days=1)
"""Least age of unreferenced bytes that are purged: longer than any session or transaction lasts."""

log = structlog.get_logger()

Batch = Callable[[Connection], Awaitable[Counts[str]]]


async def database_time(connection: Connection) -> datetime.datetime:
    """Return the time of the database's clock."""
    cursor = await connection.execute("select now()")
    [now] = await cursor.fetchone() or (datetime.datetime.now(datetime.UTC),)
    result: datetime.datetime = now
    return result


async def run_retention(service: Service) -> None:
    """Purge every few hours until the service is to stop."""
    days = service.settings.retention_days
    pause = FIRST_SECONDS
    while not await service.wait_for_stop(pause):
        pause = EVERY_SECONDS
        try:
            async with service.database.transaction() as connection:
                mine = await leases.take_lease(connection, LEASE, service.owner, EVERY_SECONDS)
            if mine:
                await Purge(service.database, days, service.stopping).run()
        except Temporary as error:
            log.warning("purge postponed, database unavailable", error=str(error))
            pause = FIRST_SECONDS
        except Exception:  # a fault here must not end the console and the monitor
            FAILURES.labels("purge", "fault").inc()
            log.exception("purge failed")
    try:
        async with service.database.transaction(5.0) as connection:
            await leases.release_lease(connection, LEASE, service.owner)
    except Temporary as error:
        log.warning("purge lease not released", error=str(error))


class Purge:
    """One pass over all tables."""

    def __init__(
        self,
        database: Database,
        retention_days: int,
        stopping: asyncio.Event,
        clock: Callable[[Connection], Awaitable[datetime.datetime]] = database_time,
        batch: int = BATCH,
    ) -> None:
        """:param retention_days: how long deleted mail, removed accounts and submissions are kept."""
        self._database = database
        self._retention = datetime.timedelta(days=retention_days)
        self._stopping = stopping
        self._clock = clock
        self._batch = batch

    async def run(self) -> Counts[str]:
        """Purge. :return: the number of rows by kind. :raises Temporary: the database is unavailable; committed batches
        stay purged."""
        async with self._database.transaction() as connection:
            now = await self._clock(connection)
        kept = now - self._retention
        total: Counts[str] = Counts()
        async for gone in self._steps(now, kept):
            total.update(gone)
            for kind, count in gone.items():
                PURGED.labels(kind).inc(count)
            if self._stopping.is_set():
                break
        log.info("purge finished", **total)
        return total

    async def _steps(self, now: datetime.datetime, kept: datetime.datetime) -> AsyncIterator[Counts[str]]:
        async def tombstones(connection: Connection) -> Counts[str]:
            return await _copies(connection, await maildrops.purge_tombstones(connection, kept, self._batch))

        async def mailboxes(connection: Connection) -> Counts[str]:
            removed = await account_changes.list_removed_locals(connection, kept)
            return await _copies(connection, await maildrops.purge_mailboxes(connection, removed, self._batch))

        async def discarded(connection: Connection) -> Counts[str]:
            return await _mails(connection, await inbound_admin.list_discarded(connection, kept, self._batch))

        async def secrets(connection: Connection) -> Counts[str]:
            return Counts(secrets=await account_changes.erase_secrets(connection, kept))

        async def events(connection: Connection) -> Counts[str]:
            before = now - max(TRACE_AGE, self._retention)
            return Counts(events=await maillog.purge_maillog(connection, before, 10 * self._batch))

        async def authorship(connection: Connection) -> Counts[str]:
            before = now - datetime.timedelta(days=sent_mail.AUTHORSHIP_YEARS * 366)
            return Counts(authors=await sent_mail.purge_authorship(connection, before, self._batch))

        for step in (tombstones, mailboxes, discarded, secrets, events, authorship):
            async for gone in self._until_nothing(step):
                yield gone
        for walk in (self._submissions, self._ledger, self._orphans):
            async for gone in walk(now, kept):
                yield gone

    async def _until_nothing(self, step: Batch) -> AsyncIterator[Counts[str]]:
        """Repeat the batch until it purges nothing."""
        while True:
            async with self._database.transaction() as connection:
                gone = await step(connection)
            if not gone.total():
                return
            yield gone
            await asyncio.sleep(PAUSE_SECONDS)

    async def _submissions(self, now: datetime.datetime, kept: datetime.datetime) -> AsyncIterator[Counts[str]]:
        after: int | None = 0
        while after is not None:
            async with self._database.transaction() as connection:
                freed, after = await submissions_admin.purge_submissions(connection, after, kept, self._batch)
                gone = Counts(submissions=len(freed), bytes=await blobs.purge_blobs(connection, freed))
            yield gone
            await asyncio.sleep(PAUSE_SECONDS)

    async def _ledger(self, now: datetime.datetime, kept: datetime.datetime) -> AsyncIterator[Counts[str]]:
        after: int | None = 0
        while after is not None:
            async with self._database.transaction() as connection:
                count, after = await uidl_ledger.purge_ledger(connection, after, kept, now - VANISHED_AGE, SCAN_ROWS)
            yield Counts(ledger=count)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _orphans(self, now: datetime.datetime, kept: datetime.datetime) -> AsyncIterator[Counts[str]]:
        after: int | None = 0
        while after is not None:
            async with self._database.transaction() as connection:
                found, after = await blobs.list_orphans(connection, after, now - ORPHAN_AGE, SCAN_ROWS)
                gone = Counts(bytes=await blobs.purge_blobs(connection, found) if found else 0)
            yield gone
            await asyncio.sleep(PAUSE_SECONDS)


async def _copies(connection: Connection, inbound_ids: list[int]) -> Counts[str]:
    """Count purged copies of these mails, and purge the mails without any copy and their bytes."""
    gone = Counts(copies=len(inbound_ids))
    gone.update(await _mails(connection, sorted(set(inbound_ids))))
    return gone


async def _mails(connection: Connection, inbound_ids: list[int]) -> Counts[str]:
    freed = await inbound_admin.purge_inbound(connection, inbound_ids)
    return Counts(mails=len(freed), bytes=await blobs.purge_blobs(connection, freed))
