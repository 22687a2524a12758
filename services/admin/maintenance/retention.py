"""Retention: purges deleted mail, submissions, unreferenced bytes and old traces after their retention time.

One process at a time purges, by a lease, in small batches with pauses, so it blocks no other work. One transaction
purges what belongs together: the last copy of a mail, the mail, and its bytes. A batch that does not finish in time is
halved. A step that fails all the same does not stop the others.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections import Counter as Counts
from collections.abc import Awaitable, Callable, Sequence

import structlog
from prometheus_client import Counter

from services.admin.access import audit
from services.admin.mail import search_index, unknown_names
from services.admin.monitoring.background_work import repeat
from shared.db import leases
from shared.db.database import Connection, Database
from shared.errors import Temporary
from shared.runtime.process import Service
from shared.store import (
    account_changes,
    blobs,
    folder_mails,
    inbound_admin,
    maillog,
    relay_usage,
    sent_mail,
    submissions_admin,
    uidl_ledger,
)

PURGED = Counter("mailgroup_purged_total", "Rows that were purged after their retention time.", ["kind"])
for _kind in (
    "copies",
    "mails",
    "bytes",
    "submissions",
    "secrets",
    "ledger",
    "events",
    "authors",
    "index",
    "names",
    "folders",
    "sign_ins",
    "usage",
):
    PURGED.labels(_kind)

FIRST_SECONDS = 300.0
"""Seconds from the start of the process to the first purge."""
EVERY_SECONDS = 6 * 3600.0
"""Seconds between two purges."""
RETRY_SECONDS = 300.0
"""Seconds until another try after a purge that failed."""
LEASE = "purge"
"""Name of the lease in the database."""
BATCH, PAUSE_SECONDS = 500, 0.1
"""Rows that one transaction purges, at most, and the pause after it."""
BATCH_SECONDS = 30.0
"""Time limit of a batch: seconds; a batch that takes longer is halved."""
SCAN_FACTOR = 100
"""Rows that one transaction scans for each row of a batch, of a table without an index on the age: 50,000 rows take a
tenth of a second, as long as the pause. With fewer, the pauses would let a purge of 300 million mails take hours."""
DRAFT_AGE = datetime.timedelta(hours=1)
"""Retention of an expunged draft: a client replaces its draft every minute or so, and nobody undeletes one."""
TRACE_AGE = datetime.timedelta(days=90)
"""Retention of sign-ins, unknown names and the trace; of the last two longer if deleted mail is kept longer."""
VANISHED_AGE = datetime.timedelta(days=365)
"""Time after which the ledger entry of a mail that the provider no longer lists is deleted."""
ORPHAN_AGE = datetime.timedelta(days=1)
"""Least age of unreferenced bytes that are purged: longer than any session or transaction lasts."""

log = structlog.get_logger()

Purged = tuple[Counts[str], int | None]
"""Rows purged by a batch, by kind; and the id to continue after, None at the end."""
Step = Callable[[Connection, int, int], Awaitable[Purged]]
"""Purges a batch. Arguments: the id to continue after, 0 at first; the rows of the batch."""


class StepsFailed(Exception):
    """Some steps of a purge failed; the others are done."""


async def database_time(connection: Connection) -> datetime.datetime:
    """Return the time of the database's clock."""
    cursor = await connection.execute("select now()")
    [now] = await cursor.fetchone() or (datetime.datetime.now(datetime.UTC),)
    result: datetime.datetime = now
    return result


async def run_retention(service: Service) -> None:
    """Purge every few hours until the service is to stop."""
    due = _Schedule(service)
    await repeat(
        "purge", RETRY_SECONDS, due.purge_if_due, service.database, service.wait_for_stop, first_pause=FIRST_SECONDS
    )
    try:
        async with service.database.transaction(5.0) as connection:
            await leases.release_lease(connection, LEASE, service.owner)
    except Temporary as error:
        log.warning("purge lease not released", error=str(error))


class _Schedule:
    """Decides when this process purges."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._due = 0.0  # monotonic seconds

    async def purge_if_due(self) -> None:
        """Purge if the last one is long enough ago, unless another process has the lease; try again after a failure.

        :raises Exception: as ``Purge.run``.
        """
        if time.monotonic() < self._due:
            return
        service = self._service
        async with service.database.transaction() as connection:
            mine = await leases.take_lease(connection, LEASE, service.owner, EVERY_SECONDS)
        if mine:
            await Purge(service.database, service.settings.retention_days, service.stopping).run()
        self._due = time.monotonic() + EVERY_SECONDS


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
        """Purge expired rows. :return: the number of rows by kind. A later failure does not undo committed batches.

        :raises Temporary: the database is unavailable. :raises StepsFailed: some steps failed, the others are done.
        """
        async with self._database.transaction() as connection:
            now = await self._clock(connection)
        total: Counts[str] = Counts()
        failed = []
        for step in _steps(now, now - self._retention):
            try:
                await self._run_step(step, total)
            except Exception as error:
                if not await self._database.ready():
                    raise
                failed.append(step.__name__)
                log.error("purge step failed", step=step.__name__, error=repr(error))
        log.info("purge finished", **total)
        if failed:
            raise StepsFailed(f"{', '.join(failed)}: see the log")
        return total

    async def _run_step(self, step: Step, total: Counts[str]) -> None:
        """Run a step to its end in batches, each half as large as one that took too long."""
        size = self._batch
        after: int | None = 0
        while after is not None and not self._stopping.is_set():
            try:
                async with self._database.transaction(BATCH_SECONDS) as connection:
                    gone, following = await step(connection, after, size)
            except Temporary as error:
                if size == 1 or not await self._database.ready():
                    raise
                size //= 2
                log.warning("purge batch halved", step=step.__name__, rows=size, error=str(error))
                continue
            after = following
            total.update(gone)
            for kind, count in gone.items():
                PURGED.labels(kind).inc(count)
            await asyncio.sleep(PAUSE_SECONDS)


def _steps(now: datetime.datetime, kept: datetime.datetime) -> Sequence[Step]:
    """Return the steps in their order. :param kept: what was deleted before is purged."""
    traced = min(now - TRACE_AGE, kept)

    drafted = now - DRAFT_AGE

    async def marks(connection: Connection, after: int, size: int) -> Purged:
        _, following = await folder_mails.mark_purgeable(connection, after, kept, size)
        return Counts(), following

    async def tombstones(connection: Connection, after: int, size: int) -> Purged:
        return _until_nothing(await _copies(connection, await folder_mails.purge_tombstones(connection, kept, size)))

    async def draft_marks(connection: Connection, after: int, size: int) -> Purged:
        _, following = await folder_mails.mark_purgeable(connection, after, drafted, size, drafts=True)
        return Counts(), following

    async def drafts(connection: Connection, after: int, size: int) -> Purged:
        gone = await folder_mails.purge_tombstones(connection, drafted, size, drafts=True)
        return _until_nothing(await _copies(connection, gone))

    async def mailboxes(connection: Connection, after: int, size: int) -> Purged:
        removed = await account_changes.list_removed_locals(connection, kept)
        return _until_nothing(await _copies(connection, await folder_mails.purge_mailboxes(connection, removed, size)))

    async def folders(connection: Connection, after: int, size: int) -> Purged:
        return _until_nothing(Counts(folders=await folder_mails.purge_folders(connection, kept, size)))

    async def discarded(connection: Connection, after: int, size: int) -> Purged:
        return _until_nothing(await _mails(connection, await inbound_admin.list_discarded(connection, kept, size)))

    async def secrets(connection: Connection, after: int, size: int) -> Purged:
        return _until_nothing(Counts(secrets=await account_changes.erase_secrets(connection, kept)))

    async def events(connection: Connection, after: int, size: int) -> Purged:
        return _until_nothing(Counts(events=await maillog.purge_maillog(connection, traced, SCAN_FACTOR * size)))

    async def authorship(connection: Connection, after: int, size: int) -> Purged:
        return _until_nothing(Counts(authors=await sent_mail.purge_authorship(connection, now, size)))

    async def names(connection: Connection, after: int, size: int) -> Purged:
        return _until_nothing(Counts(names=await unknown_names.purge_names(connection, traced, size)))

    async def sent(connection: Connection, after: int, size: int) -> Purged:
        freed, following = await submissions_admin.purge_submissions(connection, after, kept, size)
        return Counts(submissions=len(freed), bytes=await blobs.purge_blobs(connection, freed)), following

    async def ledger(connection: Connection, after: int, size: int) -> Purged:
        count, following = await uidl_ledger.purge_ledger(
            connection, after, kept, now - VANISHED_AGE, SCAN_FACTOR * size
        )
        return Counts(ledger=count), following

    async def orphans(connection: Connection, after: int, size: int) -> Purged:
        found, following = await blobs.list_orphans(connection, after, now - ORPHAN_AGE, SCAN_FACTOR * size)
        return Counts(bytes=await blobs.purge_blobs(connection, found) if found else 0), following

    async def index(connection: Connection, after: int, size: int) -> Purged:
        count, following = await search_index.purge_index(connection, after, SCAN_FACTOR * size)
        return Counts(index=count), following

    async def sign_ins(connection: Connection, after: int, size: int) -> Purged:
        count, following = await audit.purge_sign_ins(connection, after, now - TRACE_AGE, SCAN_FACTOR * size)
        return Counts(sign_ins=count), following

    async def usage(connection: Connection, after: int, size: int) -> Purged:
        return _until_nothing(Counts(usage=await relay_usage.purge_usage(connection)))

    return (
        marks,
        tombstones,
        draft_marks,
        drafts,
        mailboxes,
        folders,
        discarded,
        secrets,
        events,
        authorship,
        names,
        sent,
        ledger,
        orphans,
        index,
        sign_ins,
        usage,
    )


def _until_nothing(gone: Counts[str]) -> Purged:
    """Return the result of a step that is repeated until it purges nothing."""
    return gone, 0 if gone.total() else None


async def _copies(connection: Connection, blob_ids: list[int]) -> Counts[str]:
    """Count purged copies with these bytes, and purge the mails without any copy and the bytes."""
    gone = Counts(copies=len(blob_ids))
    gone.update(await _mails(connection, sorted(set(blob_ids))))
    return gone


async def _mails(connection: Connection, blob_ids: list[int]) -> Counts[str]:
    mails = await inbound_admin.purge_inbound(connection, blob_ids)
    return Counts(mails=mails, bytes=await blobs.purge_blobs(connection, blob_ids))
