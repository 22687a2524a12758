"""What clients of IMAP read of a folder: its mails, the changes since a version, and counts (table folder_mails)."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.db.database import Connection
from shared.store.folder_mails import VERSION_GAP, numbers
from shared.store.folders import Folder, FolderRefused

SEEN, ANSWERED, FLAGGED, DELETED, DRAFT = 1, 2, 4, 8, 16
"""Bits of the system flags of a mail (RFC 9051 section 2.3.2)."""


@dataclass(frozen=True, slots=True)
class FolderCounts:
    """The mails of a folder, without tombstones."""

    mails: int = 0
    unseen: int = 0
    deleted: int = 0  # with the flag \\Deleted
    octets: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """The mails of a folder at a version, ordered by UID; the arrays have one item for each mail."""

    folder: Folder  # with this version
    uids: array[int]
    blob_ids: array[int]
    octets: array[int]
    flags: array[int]  # bits, as SEEN
    versions: array[int]  # MODSEQ
    dates: array[int]  # the internal date: microseconds since 1970 in UTC
    keywords: Mapping[int, Sequence[str]]  # by UID, of the mails that have some


@dataclass(frozen=True, slots=True)
class MailState:
    """A mail of a folder as it is now, or its tombstone."""

    uid: int
    blob_id: int
    octets: int
    flags: int  # bits, as SEEN
    keywords: Sequence[str]
    version: int  # MODSEQ
    internal_date: datetime
    expunged: bool  # VANISHED; the other fields are as before


@dataclass(frozen=True, slots=True)
class ViewChanges:
    """The mails of a folder that changed after a version, ordered by UID."""

    folder: Folder  # with the version of these changes
    rows: Sequence[MailState]


_FOLDER = "f.id, f.local_id, f.name, f.special_use, f.uidvalidity, f.uidnext, f.version, f.purged_version, f.subscribed"
_FOLDER_FIELDS = 9
_GONE = "there is no such folder"


async def count_mails(connection: Connection, folder_ids: Collection[int]) -> dict[int, FolderCounts]:
    """Count the mails of folders, by id: reads all their rows. A count holds as long as the folder's version."""
    cursor = await connection.execute(
        f"""select folder_id, count(*), count(*) filter (where flags & {SEEN} = 0),
                count(*) filter (where flags & {DELETED} <> 0), sum(octets)::bigint
            from folder_mails where folder_id = any(%s) and expunged_at is null group by folder_id""",
        (list(folder_ids),),
    )
    found = {row[0]: FolderCounts(*row[1:]) for row in await cursor.fetchall()}
    return {folder_id: found.get(folder_id, FolderCounts()) for folder_id in folder_ids}


async def load_view(connection: Connection, folder_id: int) -> View:
    """Load all mails of a folder. :raises FolderRefused: NONEXISTENT: it was deleted."""
    cursor = connection.cursor(binary=True)
    # One statement and one row: see load_contents.
    await cursor.execute(
        f"""select {_FOLDER}, a.*
            from folders f, lateral (
                select string_agg(int8send(uid), ''), string_agg(int8send(blob_id), ''),
                    string_agg(int8send(octets), ''), string_agg(int8send(flags), ''),
                    string_agg(int8send(version), ''),
                    string_agg(int8send((extract(epoch from internal_date) * 1000000)::bigint), ''),
                    string_agg(int8send(uid), '') filter (where keywords is not null),
                    jsonb_agg(keywords) filter (where keywords is not null)
                from (select uid, blob_id, octets, flags, version, internal_date, keywords from folder_mails
                      where folder_id = f.id and expunged_at is null order by uid) r) a
            where f.id = %s and f.deleted_at is null""",
        (folder_id,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise FolderRefused("NONEXISTENT", _GONE)
    uids, blob_ids, octets, flags, versions, dates, with_keywords = map(numbers, row[_FOLDER_FIELDS:-1])
    keywords = dict(zip(with_keywords, map(tuple, row[-1] or ()), strict=True))
    return View(Folder(*row[:_FOLDER_FIELDS]), uids, blob_ids, octets, flags, versions, dates, keywords)


async def load_view_changes(
    connection: Connection, folder_id: int, since_version: int, max_rows: int
) -> ViewChanges | None:
    """Load the changes of a folder after a version.

    Tombstones up to the folder's ``purged_version`` may be missing: with an older version, compare the UIDs.

    :return: None if they are more than ``max_rows`` rows, or if a failover has undone some of the changes before that
        version: load the whole folder then.
    :raises FolderRefused: NONEXISTENT: the folder was deleted.
    """
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        f"""select {_FOLDER}, r.uid, r.blob_id, r.octets, r.flags, coalesce(r.keywords, '{{}}'), r.version,
                r.internal_date, r.expunged_at is not null
            from folders f left join folder_mails r on r.folder_id = f.id and r.version > %s
            where f.id = %s and f.deleted_at is null order by r.uid limit %s""",
        (since_version, folder_id, max_rows + 1),
    )
    result = await cursor.fetchall()
    if not result:
        raise FolderRefused("NONEXISTENT", _GONE)
    folder = Folder(*result[0][:_FOLDER_FIELDS])
    rows = [MailState(*row[_FOLDER_FIELDS:]) for row in result if row[_FOLDER_FIELDS] is not None]
    if folder.version - since_version >= VERSION_GAP or len(rows) > max_rows:
        return None
    return ViewChanges(folder, rows)


async def find_expunged(connection: Connection, folder_id: int, uids: Collection[int]) -> list[int]:
    """Return those of these UIDs that name no mail of the folder any more, in ascending order."""
    cursor = await connection.execute(
        """select given.uid from unnest(%s::bigint[]) as given (uid) where not exists (
               select from folder_mails r where r.folder_id = %s and r.uid = given.uid and r.expunged_at is null)
           order by given.uid""",
        (list(uids), folder_id),
    )
    return [int(row[0]) for row in await cursor.fetchall()]
