"""Reads folders and mails from the database for the sessions, and keeps the states that sessions share."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakSet, WeakValueDictionary

from services.imap_out import view
from services.imap_out.current_folders import CurrentFolders, Look
from services.imap_out.fetch_answers import FetchAnswers
from services.imap_out.search.plain_mails import PlainMails
from services.imap_out.structure_store import StructureStore
from services.imap_out.view import FolderState
from shared.db.batch_loader import QUICK_SECONDS, BatchLoader
from shared.db.database import Database
from shared.errors import Temporary
from shared.store import blobs, folder_views, folders
from shared.store.blobs import SoughtText
from shared.store.folder_views import FolderCounts
from shared.store.folders import Folder, FolderRefused

MAX_CACHED_MAILS = 500_000
"""Mails in cached states: 40 octets of memory each."""
MAX_OPEN_MAILS = 3_000_000
"""Mails in the states of all sessions and in the cache: 40 octets of memory each. Above the limit SELECT fails
temporarily."""
MAX_CHANGES = 20_000
"""Changed rows up to which a state is updated; with more changes the whole folder is read."""
FOLDER_SECONDS = 20.0
"""Timeout of a query for folders: seconds; many sessions may wait for one query."""
MAX_READERS = 3
"""Queries of each kind at once: leaves pool connections for changes."""
HEADER_OCTETS = 16 * 1024
"""Octets in which a header is looked for first; most are shorter."""
MAX_COUNTS = 10_000
"""Folders whose counts are kept."""


class FolderStore:
    """The database as the sessions read it. Each call is a separate transaction.

    :ivar known: which cached states are current. :ivar structures: of mails. :ivar answers: to FETCH.
    :ivar plain: mails whose octets tell what SEARCH does not find in them.
    """

    def __init__(
        self, database: Database, max_cached_mails: int = MAX_CACHED_MAILS, max_open_mails: int = MAX_OPEN_MAILS
    ) -> None:
        """:param max_cached_mails: mails in cached states. :param max_open_mails: mails in all states."""
        self.database = database
        self.known = CurrentFolders()
        self._max_cached_mails = max_cached_mails
        self._max_open_mails = max_open_mails
        self._cached: OrderedDict[int, FolderState] = OrderedDict()  # by folder, oldest use first
        self._cached_mails = 0
        self._live: WeakSet[FolderState] = WeakSet()
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._folders: BatchLoader[int, Folder] = BatchLoader(
            self._read_folders, readers=2, quick_seconds=QUICK_SECONDS
        )
        self._named: BatchLoader[tuple[int, str], Folder] = BatchLoader(
            self._read_named, readers=2, quick_seconds=QUICK_SECONDS
        )
        self._reads = asyncio.Semaphore(MAX_READERS)
        self._heads: BatchLoader[int, bytes] = BatchLoader(self._read_heads, readers=MAX_READERS)
        self._headers: BatchLoader[int, bytes] = BatchLoader(self._read_headers, readers=MAX_READERS)
        self._span_reads = asyncio.Semaphore(MAX_READERS)
        self.structures = StructureStore(database, self.read_heads, self.read_span)
        self.answers = FetchAnswers()
        self.plain = PlainMails()
        self._counts: OrderedDict[int, tuple[int, FolderCounts]] = OrderedDict()  # by folder, with its version

    # ------------------------------------------------------------------------------------------ folders

    async def list_folders(self, local_id: int) -> list[Folder]:
        """List the folders of a person. :raises Temporary: the database is unavailable."""
        async with self.database.statement() as connection:
            return await folders.list_folders(connection, local_id)

    async def find_folder(self, local_id: int, name: str) -> Folder | None:
        """Return a person's folder. :raises Temporary: the database is unavailable."""
        return (await self._named.get([(local_id, name)])).get((local_id, name))

    async def _read_named(self, wanted: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Folder]:
        async with self.database.statement(FOLDER_SECONDS) as connection:
            return await folders.find_folders(connection, wanted)

    async def open_folder(self, local_id: int, name: str) -> FolderState | None:
        """Return a person's folder of this name as it is now; None: there is none. :raises: as ``load_state``."""
        look = self.known.begin(local_id)
        folder = await self.find_folder(local_id, name)
        return None if folder is None else await self._bring_to(folder, look)

    async def load_state(self, folder: Folder) -> FolderState:
        """Return a folder as it is now.

        :param folder: as it was once.
        :raises Temporary: the database is unavailable, or too many mails are in the states of sessions.
        :raises FolderRefused: NONEXISTENT: the folder was deleted.
        """
        look = self.known.begin(folder.local_id)
        now = (await self._folders.get([folder.id])).get(folder.id)
        if now is None:
            raise FolderRefused("NONEXISTENT", "there is no such folder")
        return await self._bring_to(now, look)

    def current_state(self, folder: Folder) -> FolderState | None:
        """Return a folder as it is now, if that is known without a query. :param folder: as it was once."""
        return self._cached.get(folder.id) if self.known.is_current(folder.local_id, folder.id) else None

    async def _read_folders(self, folder_ids: Sequence[int]) -> dict[int, Folder]:
        async with self.database.statement(FOLDER_SECONDS) as connection:
            return await folders.load_folders(connection, folder_ids)

    async def versions(self, folder_ids: Sequence[int]) -> dict[int, int]:
        """Return the version of each folder that is there. :raises Temporary: the database is unavailable."""
        async with self.database.statement(FOLDER_SECONDS) as connection:
            return await folders.load_versions(connection, folder_ids)

    async def _bring_to(self, folder: Folder, look: Look) -> FolderState:
        """Return the state of a folder at this version or a later one. :param look: has found the version."""
        lock = self._locks.setdefault(folder.id, asyncio.Lock())
        async with lock:  # sessions that start together read a large folder once
            known = self._cached.get(folder.id)
            if known is None:
                known = next((s for s in self._live if _is_at(s.folder, folder)), None)
            if known is None or known.folder.uidvalidity != folder.uidvalidity:  # a restore renews it
                known = await self._read(folder.id, None)
            elif known.folder.version < folder.version:
                known = await self._read(folder.id, known)
            self.keep_state(known)
        self.known.record(look, folder.id)
        return known

    async def _read(self, folder_id: int, old: FolderState | None) -> FolderState:
        """Read a folder, or only the changes since an old state."""
        async with self._reads, self.database.statement() as connection:
            changes = None
            if old is not None and old.folder.version >= old.folder.purged_version:
                changes = await folder_views.load_view_changes(connection, folder_id, old.folder.version, MAX_CHANGES)
            if old is not None and changes is not None and old.folder.version >= changes.folder.purged_version:
                current = view.apply_changes(old, changes)
            else:
                current = view.build_state(await folder_views.load_view(connection, folder_id))
        if self._open_mails() + len(current) > self._max_open_mails:
            self._cached.clear()
            self._cached_mails = 0
            others = self._open_mails()
            if others and others + len(current) > self._max_open_mails:
                raise Temporary(f"the folders of the open sessions have {others} mails, and this one {len(current)}")
        return current

    def _open_mails(self) -> int:
        return sum(map(len, self._live))

    def keep_state(self, state: FolderState) -> None:
        """Keep the latest state of a folder for other sessions."""
        before = self._cached.get(state.folder.id)
        if before is not None and _is_before(state.folder, before.folder):
            return
        self._cached.pop(state.folder.id, None)
        self._cached_mails -= 0 if before is None else len(before) + 1
        self._live.add(state)
        self._cached[state.folder.id] = state
        self._cached_mails += len(state) + 1
        while self._cached_mails > self._max_cached_mails and len(self._cached) > 1:
            _, dropped = self._cached.popitem(last=False)
            self._cached_mails -= len(dropped) + 1

    async def count_mails(self, wanted: Sequence[Folder]) -> dict[int, FolderCounts]:
        """Count the mails of folders, by id. :raises Temporary: the database is unavailable."""
        found: dict[int, FolderCounts] = {}
        unknown = []
        for folder in wanted:
            version, counts = self._counts.get(folder.id, (0, FolderCounts()))
            if version == folder.version:
                found[folder.id] = counts
            else:
                unknown.append(folder)
        if unknown:
            async with self._reads, self.database.statement() as connection:
                counted = await folder_views.count_mails(connection, [folder.id for folder in unknown])
            for folder in unknown:  # counted after ``folder`` was read: kept for its version, or a later one
                found[folder.id] = counted[folder.id]
                self._counts.pop(folder.id, None)
                self._counts[folder.id] = folder.version, counted[folder.id]
                if len(self._counts) > MAX_COUNTS:
                    self._counts.popitem(last=False)
        return found

    # ------------------------------------------------------------------------------------------ mails

    async def read_heads(self, blob_ids: Sequence[int], octets: int) -> dict[int, bytes]:
        """Return the first ``blobs.HEAD_OCTETS`` of mails, without those that are missing.

        :param octets: of all of them. :raises Temporary: the database is unavailable.
        """
        return await self._heads.get(blob_ids, octets)

    async def _read_heads(self, blob_ids: Sequence[int]) -> dict[int, bytes]:
        async with self.database.statement() as connection:
            return await blobs.heads(connection, blob_ids)

    async def read_headers(self, blob_ids: Sequence[int]) -> dict[int, bytes]:
        """Return the first HEADER_OCTETS of mails, without those that are missing.

        :raises Temporary: the database is unavailable.
        """
        return await self._headers.get(blob_ids, HEADER_OCTETS // 4 * len(blob_ids))

    async def _read_headers(self, blob_ids: Sequence[int]) -> dict[int, bytes]:
        async with self.database.statement() as connection:
            return await blobs.prefixes(connection, blob_ids, HEADER_OCTETS)

    async def find_texts(self, blob_ids: Sequence[int], texts: Sequence[SoughtText]) -> dict[int, list[bool]]:
        """Return which of these texts may be in mails (``blobs.find_texts``).

        :raises Temporary: the database is unavailable.
        """
        async with self._span_reads, self.database.statement() as connection:
            return await blobs.find_texts(connection, blob_ids, texts)

    async def read_span(self, blob_id: int, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes of a mail from ``start`` on; b"" at its end.

        :raises Temporary: the database is unavailable. :raises Permanent: the bytes are missing.
        """
        async with self._span_reads, self.database.statement() as connection:
            return await blobs.read_span(connection, blob_id, start, length)


def _is_at(one: Folder, other: Folder) -> bool:
    return (one.id, one.uidvalidity, one.version) == (other.id, other.uidvalidity, other.version)


def _is_before(one: Folder, other: Folder) -> bool:
    return one.uidvalidity == other.uidvalidity and one.version < other.version
