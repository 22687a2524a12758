"""Reads mailboxes and mails from the database for the sessions, caches snapshots, and deletes mails."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakSet, WeakValueDictionary

from services.pop3_out import snapshot
from services.pop3_out.snapshot import Snapshot
from shared.db.batch_loader import QUICK_SECONDS, BatchLoader
from shared.db.database import Database
from shared.errors import Permanent, Temporary
from shared.model import Local
from shared.store import blobs, folder_mails, folders, inbound, maillog

MAX_CACHED_MAILS = 500_000
"""Mails in cached snapshots: about 60 octets of memory each, with the replies to LIST and UIDL."""
MAX_OPEN_MAILS = 5_000_000
"""Mails in the snapshots of all open sessions and in the cache: 16 octets of memory each. Above the limit logins fail
temporarily."""
MAX_CHANGES = 20_000
"""Changed rows up to which a snapshot is updated; with more changes the whole mailbox is read."""
MAX_AGE_SECONDS = 6 * 3600.0
"""Age of a cached snapshot: seconds since its last use; in an older one, purged tombstones may be missing."""
VERSION_SECONDS = 20.0
"""Timeout of a query for mailbox versions: seconds; many logins may wait for one query."""
MAX_READERS = 3
"""Queries for mails, for pieces and for snapshots at once, each kind: leaves pool connections for logins."""


class DatabaseStore:
    """The database as the sessions use it. Each call is a separate transaction."""

    def __init__(
        self,
        database: Database,
        max_cached_mails: int = MAX_CACHED_MAILS,
        clock: Callable[[], float] = time.monotonic,
        max_open_mails: int = MAX_OPEN_MAILS,
        announce_change: Callable[[Local], None] | None = None,
    ) -> None:
        """:param max_cached_mails: mails in cached snapshots. :param clock: monotonic seconds.
        :param max_open_mails: mails in all snapshots, cached or used by sessions.
        :param announce_change: tells other processes that a mailbox has changed."""
        self._announce_change = announce_change
        self._max_open_mails = max_open_mails
        self._database = database
        self._max_cached_mails = max_cached_mails
        self._clock = clock
        self._cached: OrderedDict[int, tuple[Snapshot, float]] = OrderedDict()  # with its last use; oldest first
        self._cached_mails = 0
        self._mail_loader: BatchLoader[int, bytes] = BatchLoader(self._read_heads, readers=MAX_READERS)
        self._span_reads = asyncio.Semaphore(MAX_READERS)
        self._version_loader: BatchLoader[int, int] = BatchLoader(
            self._read_versions, readers=2, quick_seconds=QUICK_SECONDS
        )
        self._snapshot_reads = asyncio.Semaphore(MAX_READERS)
        self._live: WeakSet[Snapshot] = WeakSet()
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def load_snapshot(self, local_id: int) -> Snapshot:
        """Return the mailbox as it is now.

        :raises Temporary: the database is unavailable, or too many mails are in open snapshots.
        :raises Permanent: the account has no mailbox.
        """
        lock = self._locks.setdefault(local_id, asyncio.Lock())
        async with lock:  # sessions that start together read a large mailbox once
            cached, used_at = self._cached.get(local_id, (None, 0.0))
            version = (await self._version_loader.get([local_id])).get(local_id)
            if version is None:
                raise Permanent(f"no mailbox for local account {local_id}")
            if cached is None and (live := self._find_live(local_id, version)) is not None:
                cached, used_at = live, self._clock()
            # A version older than the cached one comes from a restored backup.
            if cached is None or cached.version > version or self._clock() - used_at > MAX_AGE_SECONDS:
                current = await self._read(local_id, None)
            elif cached.version < version:
                current = await self._read(local_id, cached)
            else:
                current = cached
            self._cache(current)
            return current

    async def _read_versions(self, local_ids: Sequence[int]) -> dict[int, int]:
        async with self._database.statement(VERSION_SECONDS) as connection:
            return await folders.load_inbox_versions(connection, local_ids)

    async def _read(self, local_id: int, old: Snapshot | None) -> Snapshot:
        """Read a mailbox, or only the changes since an old snapshot."""
        async with self._snapshot_reads, self._database.statement() as connection:
            changes = None
            if old is not None and old.version > 0:
                changes = await folder_mails.load_changes(connection, local_id, old.version, MAX_CHANGES)
            if old is not None and changes is not None:
                current = snapshot.apply_changes(old, changes)
            else:
                current = snapshot.build_snapshot(local_id, await folder_mails.load_contents(connection, local_id))
        if self._open_mails() + len(current) > self._max_open_mails:
            self._clear_cache()
            others = self._open_mails()  # without the cache: those of open sessions
            if others and others + len(current) > self._max_open_mails:
                raise Temporary(f"the mailboxes of the open sessions have {others} mails, and this one {len(current)}")
        self._live.add(current)
        return current

    def _clear_cache(self) -> None:
        for dropped, _ in self._cached.values():
            dropped.drop_replies()
        self._cached.clear()
        self._cached_mails = 0

    def _find_live(self, local_id: int, version: int) -> Snapshot | None:
        """A snapshot of this version that another session uses, though it is cached no longer."""
        return next((box for box in self._live if box.local_id == local_id and box.version == version), None)

    def _open_mails(self) -> int:
        """Mails in all snapshots, cached or used by sessions."""
        return sum(map(len, self._live))

    def _cache(self, current: Snapshot) -> None:
        before, _ = self._cached.pop(current.local_id, (None, 0.0))
        self._cached_mails -= 0 if before is None else len(before) + 1
        if before is not None and before is not current:
            before.drop_replies()
        self._cached[current.local_id] = current, self._clock()
        current.keeps_replies = True
        self._cached_mails += len(current) + 1
        while self._cached_mails > self._max_cached_mails and len(self._cached) > 1:
            _, (dropped, _) = self._cached.popitem(last=False)
            dropped.drop_replies()
            self._cached_mails -= len(dropped) + 1

    async def read_mails(self, blob_ids: Sequence[int], octets: int) -> dict[int, bytes]:
        """Return the bytes of mails of up to ``blobs.HEAD_OCTETS``, without those that are missing.

        :param octets: of all of them.
        :raises Temporary: the database is unavailable.
        """
        return await self._mail_loader.get(blob_ids, octets)

    async def _read_heads(self, blob_ids: Sequence[int]) -> dict[int, bytes]:
        async with self._database.statement() as connection:
            return await blobs.heads(connection, blob_ids)

    async def read_span(self, blob_id: int, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes of a mail from ``start`` on; b"" at its end.

        :raises Temporary: the database is unavailable.
        :raises Permanent: the bytes are missing.
        """
        async with self._span_reads, self._database.statement() as connection:
            return await blobs.read_span(connection, blob_id, start, length)

    async def delete_mails(self, local: Local, uids: Sequence[int]) -> None:
        """Delete all of these mails from the account's mailbox, or none.

        :raises Permanent: the account was removed or disabled since the login.
        :raises Temporary: the database is unavailable; if only its reply was lost, the mails are deleted.
        """
        async with self._database.transaction() as connection:
            deleted = await folder_mails.tombstone_mails(connection, local.id, uids, only_enabled=True)
            events = await inbound.record_deletions(connection, local.address, deleted)
        if self._announce_change is not None:
            self._announce_change(local)
        await maillog.announce_in_turns(events)
