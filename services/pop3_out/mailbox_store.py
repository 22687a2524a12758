"""What sessions read from the database and write to it: snapshots of mailboxes, bytes of mails, deletions."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakSet, WeakValueDictionary

from services.pop3_out import snapshot
from services.pop3_out.snapshot import Snapshot
from shared.db.batch_loader import BatchLoader
from shared.db.database import Database
from shared.errors import Permanent, Temporary
from shared.model import Local
from shared.store import blobs, maildrops, maillog
from shared.store.maillog import MailEvent

MAX_CACHED_MAILS = 500_000
"""Mails in the snapshots that are kept, about 60 octets each with the answers to LIST and UIDL."""
MAX_OPEN_MAILS = 5_000_000
"""Mails in the mailboxes of all open sessions, 16 octets each, and in the snapshots that are kept. Sessions that would
have more in them are told to come later."""
MAX_CHANGES = 20_000
"""Rows by which a snapshot is brought up to date; if there are more, the mailbox is read anew."""
MAX_AGE_SECONDS = 6 * 3600.0
"""A snapshot that nobody asked for so long is read anew: tombstones that it has not seen may be purged meanwhile."""
VERSION_SECONDS = 20.0
"""For a look at versions: many logins may wait for one."""
MAX_READERS = 3
"""Queries for bytes under way at once, of whole mails and of pieces each: the pool has connections for logins still."""
_ANNOUNCED_AT_ONCE = 200


class DatabaseStore:
    """The database as the sessions use it. Every call is a transaction of its own."""

    def __init__(
        self,
        database: Database,
        max_cached_mails: int = MAX_CACHED_MAILS,
        clock: Callable[[], float] = time.monotonic,
        max_open_mails: int = MAX_OPEN_MAILS,
    ) -> None:
        """:param entries: mails in the snapshots kept at most. :param clock: monotonic seconds.
        :param most: mails in all snapshots, those that sessions work on among them."""
        self._max_open_mails = max_open_mails
        self._database = database
        self._max_cached_mails = max_cached_mails
        self._clock = clock
        self._cached: OrderedDict[int, tuple[Snapshot, float]] = OrderedDict()  # least recently used first
        self._cached_mails = 0  # mails in them
        self._mail_loader: BatchLoader[int, bytes] = BatchLoader(self._read_heads, readers=MAX_READERS)
        self._span_reads = asyncio.Semaphore(MAX_READERS)
        self._version_loader: BatchLoader[int, int] = BatchLoader(self._read_versions, readers=2)
        self._snapshot_reads = asyncio.Semaphore(MAX_READERS)
        self._live: WeakSet[Snapshot] = WeakSet()
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def load_snapshot(self, local_id: int) -> Snapshot:
        """The mailbox as it is now.

        :raises Temporary: the database is away, or there is no room for a mailbox of this size now.
        :raises Permanent: the account has no mailbox.
        """
        lock = self._locks.setdefault(local_id, asyncio.Lock())
        async with lock:  # many sessions that start at once read a large mailbox once
            kept, asked_at = self._cached.get(local_id, (None, 0.0))
            version = (await self._version_loader.get([local_id])).get(local_id)
            if version is None:
                raise Permanent(f"no mailbox for local account {local_id}")
            if kept is None and (shared := self._find_live(local_id, version)) is not None:
                kept, asked_at = shared, self._clock()
            # An older version than the one that we know is that of a restored backup.
            if kept is None or kept.version > version or self._clock() - asked_at > MAX_AGE_SECONDS:
                found = await self._read(local_id, None)
            elif kept.version < version:
                found = await self._read(local_id, kept)
            else:
                found = kept
            self._cache(found)
            return found

    async def _read_versions(self, local_ids: Sequence[int]) -> dict[int, int]:
        async with self._database.statement(VERSION_SECONDS) as connection:
            return await maildrops.load_versions(connection, local_ids)

    async def _read(self, local_id: int, kept: Snapshot | None) -> Snapshot:
        """Read a mailbox, or what changed in it since the snapshot that is kept."""
        async with self._snapshot_reads, self._database.statement() as connection:
            changes = None
            if kept is not None and kept.version > 0:
                changes = await maildrops.load_changes(connection, local_id, kept.version, MAX_CHANGES)
            if kept is not None and changes is not None:
                found = snapshot.apply_changes(kept, changes)
            else:
                found = snapshot.build_snapshot(local_id, await maildrops.load_contents(connection, local_id))
        if self._open_mails() + len(found) > self._max_open_mails:
            self._clear_cache()
            others = self._open_mails()  # the sessions' own
            if others and others + len(found) > self._max_open_mails:
                raise Temporary(f"the mailboxes of the open sessions have {others} mails, and this one {len(found)}")
        self._live.add(found)
        return found

    def _clear_cache(self) -> None:
        for dropped, _ in self._cached.values():
            dropped.drop_replies()
        self._cached.clear()
        self._cached_mails = 0

    def _find_live(self, local_id: int, version: int) -> Snapshot | None:
        """What other sessions hold of this mailbox as it is now, though it is kept no longer."""
        return next((box for box in self._live if box.local_id == local_id and box.version == version), None)

    def _open_mails(self) -> int:
        """Mails in all snapshots that somebody holds."""
        return sum(map(len, self._live))

    def _cache(self, found: Snapshot) -> None:
        before, _ = self._cached.pop(found.local_id, (None, 0.0))
        self._cached_mails -= 0 if before is None else len(before) + 1
        if before is not None and before is not found:
            before.drop_replies()
        self._cached[found.local_id] = found, self._clock()
        found.kept = True
        self._cached_mails += len(found) + 1
        while self._cached_mails > self._max_cached_mails and len(self._cached) > 1:
            _, (dropped, _) = self._cached.popitem(last=False)
            dropped.drop_replies()
            self._cached_mails -= len(dropped) + 1

    async def read_mails(self, blob_ids: Sequence[int], octets: int) -> dict[int, bytes]:
        """The bytes of mails of up to ``blobs.HEAD_OCTETS``; those that are gone are left out.

        :param octets: of all of them.
        :raises Temporary: the database is away.
        """
        return await self._mail_loader.get(blob_ids, octets)

    async def _read_heads(self, blob_ids: Sequence[int]) -> dict[int, bytes]:
        async with self._database.statement() as connection:
            return await blobs.heads(connection, blob_ids)

    async def read_span(self, blob_id: int, start: int, length: int) -> bytes:
        """Up to ``length`` bytes of a mail from ``start`` on; b"" at its end.

        :raises Temporary: the database is away.
        :raises Permanent: the bytes are gone.
        """
        async with self._span_reads, self._database.statement() as connection:
            return await blobs.read_span(connection, blob_id, start, length)

    async def delete_mails(self, local: Local, row_ids: Sequence[int]) -> None:
        """Delete mails from the account's mailbox, all of them or none.

        :raises Temporary: the database is away: they are there still, or (if just the answer was lost) not.
        """
        async with self._database.transaction() as connection:
            gone = await maildrops.tombstone(connection, local.id, row_ids)
            events = [MailEvent("deleted", inbound_id=inbound_id, who=local.address) for inbound_id in gone]
            await maillog.record_events(connection, events)
        for start in range(0, len(events), _ANNOUNCED_AT_ONCE):
            maillog.announce(events[start : start + _ANNOUNCED_AT_ONCE])
            await asyncio.sleep(0)
