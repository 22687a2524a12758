"""Changes of folders by mail clients (IMAP): copy, move, expunge, and copies in Sent (table folder_mails).

APPEND and STORE are in shared/store/folder_batches.py. Each function locks the folders that it changes
(``folders.lock_folders``) and is one transaction's work: the caller opens it. Tombstones that a move leaves are not
offered for undelete, as the mail has another row. COPY and MOVE write rows and no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.store import folder_mails, folders
from shared.store.folder_views import DELETED, SEEN
from shared.store.folders import Folder

LOCK_SENT = """select id, local_id from folders
    where local_id = any(%s::bigint[]) and special_use = 'sent' order by id for no key update skip locked"""
"""SQL: lock the folder Sent of these people, as a part of a larger statement. One that others change now is left out:
their change must not delay the mail of all others."""

FILE_NEW = f"""with_copy as (
        select distinct on (sent.id, new.message_id) sent.id as folder_id, new.*
        from new join sent on sent.local_id = new.author_id
        where new.envelope_from <> '' and (
            select r.uid from folder_mails r
            where r.folder_id = sent.id and r.message_id = new.message_id and r.expunged_at is null limit 1) is null
        order by sent.id, new.message_id, new.place),
    changed_sent as (
        update folders f set version = f.version + 1, uidnext = f.uidnext + n.mails
        from (select folder_id, count(*) as mails from with_copy group by folder_id) n
        where f.id = n.folder_id returning f.id, f.version, f.uidnext - n.mails as uid),
    new_copies as (
        insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version, flags, message_id)
        select f.id, f.uid + row_number() over (partition by f.id order by c.place) - 1, c.blob_id, c.id, c.octets,
            f.version, {SEEN}, c.message_id
        from with_copy c join changed_sent f on f.id = c.folder_id)"""
"""SQL: files a copy of each submission in ``new`` in the folder of ``sent`` (LOCK_SENT), as parts of a larger
statement. There is none for a null sender, nor if the client has stored its own copy before."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """The result of a copy or move (RFC 4315: COPYUID)."""

    source: Folder  # as they are now
    target: Folder
    uids: Sequence[tuple[int, int]]  # the UID in the source and the new one in the target, ascending


@dataclass(frozen=True, slots=True)
class Expunged:
    """The result of an expunge."""

    folder: Folder  # as it is now
    uids: Sequence[int]  # ascending
    mail_ids: Sequence[int]  # for the history of the mails


async def _advance(connection: Connection, folder: Folder, mails: int = 0) -> Folder:
    """Increment the version of a locked folder, which has new mails. :return: the folder as it is now."""
    await connection.execute(
        "update folders set version = version + 1, uidnext = uidnext + %s where id = %s", (mails, folder.id)
    )
    return (await folders.load_folders(connection, [folder.id]))[folder.id]


async def copy_mails(
    connection: Connection, local_id: int, source_id: int, target_id: int, uids: Sequence[int]
) -> Transferred:
    """Copy mails into a folder, with flags, keywords and internal dates, in the order of their UIDs.

    UIDs that name no mail are skipped.

    :raises FolderRefused: NONEXISTENT: one of the folders. :raises Permanent: the account ended.
    """
    return await _transfer(connection, local_id, source_id, target_id, uids, move=False)


async def move_mails(
    connection: Connection, local_id: int, source_id: int, target_id: int, uids: Sequence[int] | None
) -> Transferred:
    """Move mails into a folder, as ``copy_mails``. :param uids: None: all mails."""
    return await _transfer(connection, local_id, source_id, target_id, uids, move=True)


_ALL = "folder_id = %(folder)s"
_COLUMNS = "uid, blob_id, mail_id, octets, internal_date, flags, keywords, message_id"


async def _transfer(
    connection: Connection, local_id: int, source_id: int, target_id: int, uids: Sequence[int] | None, *, move: bool
) -> Transferred:
    known = await folders.lock_folders(connection, local_id, [source_id, target_id], only_enabled=True)
    source, target = known[source_id], known[target_id]
    condition = f"{_ALL if uids is None else folder_mails.NAMED} and expunged_at is null"
    chosen = f"select {_COLUMNS} from folder_mails where {condition}"
    if move:
        chosen = f"""update folder_mails set expunged_at = now(), expunged_as = 'moved', version = %(source_version)s
            where {condition} returning {_COLUMNS}"""
    cursor = await connection.execute(
        f"""with chosen as ({chosen}),
            numbered as (select *, %(uidnext)s + row_number() over (order by uid) - 1 as new_uid from chosen),
            added as (
                insert into folder_mails (folder_id, uid, version, {_COLUMNS.removeprefix("uid, ")})
                select %(target)s, new_uid, %(target_version)s, {_COLUMNS.removeprefix("uid, ")}
                from numbered order by new_uid)
            select uid, new_uid from numbered order by uid""",
        {
            "folder": source_id,
            "target": target_id,
            "uids": array_literal(uids or ()),
            "uidnext": target.uidnext,
            "source_version": source.version + 1,
            "target_version": target.version + 1,
        },
    )
    pairs = [(int(uid), int(new)) for uid, new in await cursor.fetchall()]
    if pairs:
        target = await _advance(connection, target, len(pairs))
        if source_id == target_id:
            source = target
        elif move:
            source = await _advance(connection, source)
    return Transferred(source, target, pairs)


async def expunge_mails(
    connection: Connection, local_id: int, folder_id: int, uids: Sequence[int] | None = None
) -> Expunged:
    """Expunge the mails with the flag \\Deleted (RFC 9051 sections 6.4.3 and 6.4.9).

    :param uids: only these mails; None: all.
    :raises FolderRefused: NONEXISTENT. :raises Permanent: the account ended.
    """
    return await _expunge(connection, local_id, folder_id, uids, f"flags & {DELETED} <> 0")


async def delete_folder(connection: Connection, local_id: int, folder_id: int) -> Expunged:
    """Delete a folder with its mails; undelete puts them into INBOX. Folders below it stay.

    :raises FolderRefused: CANNOT: a standard folder; NONEXISTENT. :raises Permanent: the account ended.
    """
    expunged = await _expunge(connection, local_id, folder_id, None, "true")
    await folders.hide_folder(connection, local_id, folder_id)
    return expunged


async def _expunge(
    connection: Connection, local_id: int, folder_id: int, uids: Sequence[int] | None, condition: str
) -> Expunged:
    folder = (await folders.lock_folders(connection, local_id, [folder_id], only_enabled=True))[folder_id]
    cursor = await connection.execute(
        f"""update folder_mails set expunged_at = now(), expunged_as = %(as)s, version = %(version)s
            where {_ALL if uids is None else folder_mails.NAMED} and expunged_at is null and {condition}
            returning uid, mail_id""",
        {
            "folder": folder_id,
            "uids": array_literal(uids or ()),
            "as": "draft" if folder.special_use == "drafts" else "deleted",
            "version": folder.version + 1,
        },
    )
    rows = sorted(await cursor.fetchall())
    return Expunged(
        await _advance(connection, folder) if rows else folder, [row[0] for row in rows], [row[1] for row in rows]
    )


async def rename_inbox(connection: Connection, local_id: int, name: str) -> Transferred:
    """Move all mails of INBOX into a new folder (RFC 9051 section 6.3.6). Errors as ``folders.create_folder``."""
    target = await folders.create_folder(connection, local_id, name)
    inbox = await folders.find_special(connection, local_id, "inbox")
    return await move_mails(connection, local_id, inbox.id, target.id, None)
