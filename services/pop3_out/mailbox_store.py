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

ENTRIES = 500_000
"""Mails in the snapshots that are kept, about 60 octets each with the answers to LIST and UIDL."""
MOST_ENTRIES = 5_000_000
"""Mails in the mailboxes of all open sessions, 16 octets each, and in the snapshots that are kept. Sessions that would
have more in them are told to come later."""
CHANGES = 20_000
"""Rows by which a snapshot is brought up to date; if there are more, the mailbox is read anew."""
FRESH_SECONDS = 6 * 3600.0
"""A snapshot that nobody asked for so long is read anew: tombstones that it has not seen may be purged meanwhile."""
VERSION_SECONDS = 20.0
"""For a look at versions: many logins may wait for one."""
READERS = 3
"""Queries for bytes under way at once, of whole mails and of pieces each: the pool has connections for logins still."""
_ANNOUNCED_AT_ONCE = 200


class DatabaseStore:
    """The database as the sessions use it. Every call is a transaction of its own."""

    def __init__(
        self,
        database: Database,
        entries: int = ENTRIES,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_ENTRIES,
    ) -> None:
        """:param entries: mails in the snapshots kept at most. :param clock: monotonic seconds.
        :param most: mails in all snapshots, those that sessions work on among them."""
        self._most = most
        self._database = database
        self._entries = entries
        self._clock = clock
        self._kept: OrderedDict[int, tuple[Snapshot, float]] = OrderedDict()  # least recently used first
        self._in_use = 0  # mails in them
        self._heads: BatchLoader[int, bytes] = BatchLoader(self._read_heads, readers=READERS)
        self._spans = asyncio.Semaphore(READERS)
        self._versions: BatchLoader[int, int] = BatchLoader(self._read_versions, readers=2)
        self._boxes = asyncio.Semaphore(READERS)
        self._live: WeakSet[Snapshot] = WeakSet()
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def snapshot(self, local_id: int) -> Snapshot:
        """The mailbox as it is now.

        :raises Temporary: the database is away, or there is no room for a mailbox of this size now.
        :raises Permanent: the account has no mailbox.
        """
        lock = self._locks.setdefault(local_id, asyncio.Lock())
        async with lock:  # many sessions that start at once read a large mailbox once
            kept, asked_at = self._kept.get(local_id, (None, 0.0))
            version = (await self._versions.get([local_id])).get(local_id)
            if version is None:
                raise Permanent(f"no mailbox for local account {local_id}")
            if kept is None and (shared := self._shared(local_id, version)) is not None:
                kept, asked_at = shared, self._clock()
            # An older version than the one that we know is that of a restored backup.
            if kept is None or kept.version > version or self._clock() - asked_at > FRESH_SECONDS:
                found = await self._read(local_id, None)
            elif kept.version < version:
                found = await self._read(local_id, kept)
            else:
                found = kept
            self._keep(found)
            return found

    async def _read_versions(self, local_ids: Sequence[int]) -> dict[int, int]:
        async with self._database.statement(VERSION_SECONDS) as connection:
            return await maildrops.load_versions(connection, local_ids)

    async def _read(self, local_id: int, kept: Snapshot | None) -> Snapshot:
        """Read a mailbox, or what changed in it since the snapshot that is kept."""
        async with self._boxes, self._database.statement() as connection:
            changes = None
            if kept is not None and kept.version > 0:
                changes = await maildrops.load_changes(connection, local_id, kept.version, CHANGES)
            if kept is not None and changes is not None:
                found = snapshot.renewed(kept, changes)
            else:
                found = snapshot.first(local_id, await maildrops.load_contents(connection, local_id))
        if self._open() + len(found) > self._most:
            self._keep_none()
            others = self._open()  # the sessions' own
            if others and others + len(found) > self._most:
                raise Temporary(f"the mailboxes of the open sessions have {others} mails, and this one {len(found)}")
        self._live.add(found)
        return found

    def _keep_none(self) -> None:
        for dropped, _ in self._kept.values():
            dropped.forget()
        self._kept.clear()
        self._in_use = 0

    def _shared(self, local_id: int, version: int) -> Snapshot | None:
        """What other sessions hold of this mailbox as it is now, though it is kept no longer."""
        return next((box for box in self._live if box.local_id == local_id and box.version == version), None)

    def _open(self) -> int:
        """Mails in all snapshots that somebody holds."""
        return sum(map(len, self._live))

    def _keep(self, found: Snapshot) -> None:
        before, _ = self._kept.pop(found.local_id, (None, 0.0))
        self._in_use -= 0 if before is None else len(before) + 1
        if before is not None and before is not found:
            before.forget()
        self._kept[found.local_id] = found, self._clock()
        found.kept = True
        self._in_use += len(found) + 1
        while self._in_use > self._entries and len(self._kept) > 1:
            _, (dropped, _) = self._kept.popitem(last=False)
            dropped.forget()
            self._in_use -= len(dropped) + 1

    async def whole(self, blob_ids: Sequence[int], octets: int) -> dict[int, bytes]:
        """The bytes of mails of up to ``blobs.HEAD_OCTETS``; those that are gone are left out.

        :param octets: of all of them.
        :raises Temporary: the database is away.
        """
        return await self._heads.get(blob_ids, octets)

    async def _read_heads(self, blob_ids: Sequence[int]) -> dict[int, bytes]:
        async with self._database.statement() as connection:
            return await blobs.heads(connection, blob_ids)

    async def span(self, blob_id: int, start: int, length: int) -> bytes:
        """Up to ``length`` bytes of a mail from ``start`` on; b"" at its end.

        :raises Temporary: the database is away.
        :raises Permanent: the bytes are gone.
        """
        async with self._spans, self._database.statement() as connection:
            return await blobs.read_span(connection, blob_id, start, length)

    async def remove(self, local: Local, row_ids: Sequence[int]) -> None:
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
