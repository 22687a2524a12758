"""Changes of folders by mail clients (IMAP): append, copy, move, flags, expunge (table folder_mails).

Each function locks the folders that it changes (``folders.lock_folders``) and is one transaction's work: the caller
opens it. Tombstones that a move leaves are not offered for undelete, as the mail has another row. COPY and MOVE write
rows and no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shared.db.arrays import array_literal
from shared.db.database import Connection, storable
from shared.model import Content
from shared.store import blobs, folders
from shared.store.blobs import UploadedBlob
from shared.store.folder_views import DELETED, SEEN
from shared.store.folders import Folder, FolderRefused

MAX_KEYWORDS, MAX_KEYWORD = 50, 100
"""Limits of the keywords of a mail, and of the characters of one: octets in the database that a client can add."""
FILED_SECONDS = 3600.0
"""Age up to which a filed copy gives way to the client's own one: seconds. Clients store theirs right after the
submission, or when they are online again."""


LOCK_SENT = """select id, local_id from folders
    where local_id = any(%s::bigint[]) and special_use = 'sent' order by id for no key update skip locked"""
"""SQL: lock the folder Sent of these people, as a part of a larger statement. One that others change now is left out:
their change must not delay the mail of all others."""

FILE_NEW = f"""with_copy as (
        select distinct on (sent.id, new.message_id) sent.id as folder_id, new.*
        from new join sent on sent.local_id = new.author_id
        where new.envelope_from <> '' and not exists (
            select from folder_mails r
            where r.folder_id = sent.id and r.message_id = new.message_id and r.expunged_at is null)
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
class AppendedMail:
    """A mail that a client appends."""

    content: Content | UploadedBlob
    flags: int = 0  # bits, as folder_views.SEEN
    keywords: Sequence[str] = ()
    internal_date: datetime | None = None  # None: now
    message_id: str | None = None  # Message-ID without its brackets


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of an append."""

    folder: Folder  # as it is now
    uids: Sequence[int]  # of the new mails, in their order
    replaced: Sequence[int]  # UIDs of filed copies that became tombstones


@dataclass(frozen=True, slots=True)
class Transferred:
    """The result of a copy or move (RFC 4315: COPYUID)."""

    source: Folder  # as they are now
    target: Folder
    uids: Sequence[tuple[int, int]]  # the UID in the source and the new one in the target, ascending


@dataclass(frozen=True, slots=True)
class Flagged:
    """A mail with its flags after a change."""

    uid: int
    flags: int
    keywords: Sequence[str]


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The result of a change of flags."""

    folder: Folder  # as it is now; its version is the MODSEQ of the changed mails
    changed: Sequence[Flagged]  # mails that have other flags now, by UID
    refused: Sequence[int]  # UIDs of mails that others changed after ``unchanged_since``


@dataclass(frozen=True, slots=True)
class Expunged:
    """The result of an expunge."""

    folder: Folder  # as it is now
    uids: Sequence[int]  # ascending
    mail_ids: Sequence[int]  # for the history of the mails


async def append_mails(
    connection: Connection, local_id: int, folder_id: int, mails: Sequence[AppendedMail]
) -> Appended:
    """Store mails in a folder, in this order.

    In Sent, a copy of the same submission that was filed less than FILED_SECONDS ago becomes a tombstone.

    :raises FolderRefused: NONEXISTENT; LIMIT: too many or long keywords. :raises Permanent: the account ended.
    """
    for mail in mails:
        _check_keywords(mail.keywords)
    blob_ids = await _store_contents(connection, [mail.content for mail in mails])
    folder = (await folders.lock_folders(connection, local_id, [folder_id], only_enabled=True))[folder_id]
    sent = folder.special_use == "sent"
    message_ids = [storable(mail.message_id) if sent and mail.message_id else None for mail in mails]
    replaced = await _replace_filed(connection, folder, [each for each in message_ids if each is not None])
    await connection.execute(
        """insert into folder_mails
               (folder_id, uid, blob_id, mail_id, octets, version, internal_date, flags, keywords, message_id)
           select %(folder)s, %(uid)s + m.position - 1, m.blob_id, nextval('mail_ids'), m.octets, %(version)s,
               coalesce(m.internal_date, now()), m.flags, nullif(m.keywords::text[], '{}'), m.message_id
           from unnest(%(blob_ids)s::bigint[], %(octets)s::bigint[], %(dates)s::timestamptz[], %(flags)s::smallint[],
                    %(keywords)s::text[], %(message_ids)s::text[])
                with ordinality as m (blob_id, octets, internal_date, flags, keywords, message_id, position)""",
        {
            "folder": folder_id,
            "uid": folder.uidnext,
            "version": folder.version + 1,
            "blob_ids": array_literal(blob_ids),
            "octets": array_literal(mail.content.octets for mail in mails),
            "dates": [mail.internal_date for mail in mails],
            "flags": array_literal(mail.flags for mail in mails),
            "keywords": array_literal(array_literal(mail.keywords) for mail in mails),
            "message_ids": message_ids,
        },
    )
    now = await _advance(connection, folder, len(mails))
    return Appended(now, range(folder.uidnext, now.uidnext), replaced)


async def _store_contents(connection: Connection, contents: Sequence[Content | UploadedBlob]) -> list[int]:
    """Store the mails, and finish those that were uploaded. :return: their blob ids, in their order."""
    stored = iter(await blobs.store_blobs(connection, [each for each in contents if isinstance(each, Content)]))
    ids = []
    for each in contents:
        if isinstance(each, UploadedBlob):
            await blobs.finish_upload(connection, each)
            ids.append(each.id)
        else:
            ids.append(next(stored))
    return ids


async def _replace_filed(connection: Connection, folder: Folder, message_ids: Sequence[str]) -> list[int]:
    """Make tombstones of the filed copies of these Message-IDs in a locked folder. :return: their UIDs."""
    if not message_ids:
        return []
    cursor = await connection.execute(
        """update folder_mails r set expunged_at = now(), expunged_as = 'deleted', version = %(version)s
           where folder_id = %(folder)s and message_id = any(%(message_ids)s) and expunged_at is null
               and internal_date > now() - make_interval(secs => %(seconds)s)
               and exists (select from submissions s where s.id = r.mail_id)
           returning uid""",
        {
            "folder": folder.id,
            "version": folder.version + 1,
            "message_ids": list(message_ids),
            "seconds": FILED_SECONDS,
        },
    )
    return sorted(int(row[0]) for row in await cursor.fetchall())


async def _advance(connection: Connection, folder: Folder, mails: int = 0) -> Folder:
    """Increment the version of a locked folder, which has new mails. :return: the folder as it is now."""
    await connection.execute(
        "update folders set version = version + 1, uidnext = uidnext + %s where id = %s", (mails, folder.id)
    )
    return (await folders.load_folders(connection, [folder.id]))[folder.id]


def _check_keywords(keywords: Sequence[str]) -> None:
    if len(keywords) > MAX_KEYWORDS or any(len(keyword) > MAX_KEYWORD for keyword in keywords):
        raise FolderRefused("LIMIT", f"a mail has {MAX_KEYWORDS} keywords of {MAX_KEYWORD} characters at most")


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


_CHOSEN = "r.folder_id = %(source)s and (r.uid = any(%(uids)s::bigint[]) or %(all)s) and r.expunged_at is null"
_COLUMNS = "uid, blob_id, mail_id, octets, internal_date, flags, keywords, message_id"


async def _transfer(
    connection: Connection, local_id: int, source_id: int, target_id: int, uids: Sequence[int] | None, *, move: bool
) -> Transferred:
    known = await folders.lock_folders(connection, local_id, [source_id, target_id], only_enabled=True)
    source, target = known[source_id], known[target_id]
    chosen = f"select {_COLUMNS} from folder_mails r where {_CHOSEN}"
    if move:
        chosen = f"""update folder_mails r set expunged_at = now(), expunged_as = 'moved', version = %(source_version)s
            where {_CHOSEN} returning {_COLUMNS}"""
    cursor = await connection.execute(
        f"""with chosen as ({chosen}),
            numbered as (select *, %(uidnext)s + row_number() over (order by uid) - 1 as new_uid from chosen),
            added as (
                insert into folder_mails (folder_id, uid, version, {_COLUMNS.removeprefix("uid, ")})
                select %(target)s, new_uid, %(target_version)s, {_COLUMNS.removeprefix("uid, ")}
                from numbered order by new_uid)
            select uid, new_uid from numbered order by uid""",
        {
            "source": source_id,
            "target": target_id,
            "uids": array_literal(uids or ()),
            "all": uids is None,
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


async def store_flags(
    connection: Connection,
    local_id: int,
    folder_id: int,
    uids: Sequence[int],
    action: Literal["add", "remove", "replace"],
    flags: int,
    keywords: Sequence[str] = (),
    *,
    unchanged_since: int | None = None,
) -> StoreResult:
    """Change the flags of mails (RFC 9051 section 6.4.6). UIDs that name no mail are skipped.

    Keywords are compared in any case of letters, and stay as they were written first. A mail keeps MAX_KEYWORDS.

    :param flags: bits, as folder_views.SEEN.
    :param unchanged_since: leave mails with a higher MODSEQ as they are (RFC 7162 section 3.1.3); None: none.
    :raises FolderRefused: NONEXISTENT; LIMIT: too many or long keywords. :raises Permanent: the account ended.
    """
    _check_keywords(keywords)
    folder = (await folders.lock_folders(connection, local_id, [folder_id], only_enabled=True))[folder_id]
    new_flags = {"add": "r.flags | %(flags)s", "remove": "r.flags & ~%(flags)s", "replace": "%(flags)s"}[action]
    kept = {"add": "true", "remove": "lower(k) <> all(lower_all(%(keywords)s))", "replace": "false"}[action]
    added = "'{}'::text[]" if action == "remove" else "%(keywords)s::text[]"
    new_keywords = "r.keywords"
    if keywords or action == "replace":
        new_keywords = f"""(select array_agg(k order by position) from (
            select distinct on (lower(k)) k, position
            from unnest(array(select k from unnest(r.keywords) k where {kept}) || {added})
                with ordinality as each (k, position) order by lower(k), position limit {MAX_KEYWORDS}) kept)"""
    cursor = await connection.execute(
        f"""with chosen as (
                select uid, version, ({new_flags})::smallint as flags, {new_keywords} as keywords,
                    r.flags as old_flags, r.keywords as old_keywords
                from folder_mails r
                where folder_id = %(folder)s and uid = any(%(uids)s::bigint[]) and expunged_at is null),
            changed as (
                update folder_mails r set flags = chosen.flags, keywords = chosen.keywords, version = %(version)s
                from chosen where r.folder_id = %(folder)s and r.uid = chosen.uid and chosen.version <= %(since)s
                    and (chosen.flags, chosen.keywords) is distinct from (old_flags, old_keywords)
                returning r.uid, r.flags, r.keywords)
            select uid, flags, coalesce(keywords, '{{}}'), true from changed
            union all select uid, 0, '{{}}', false from chosen where version > %(since)s order by 1""",
        {
            "folder": folder_id,
            "uids": array_literal(uids),
            "flags": flags,
            "keywords": list(keywords),
            "version": folder.version + 1,
            "since": 2**62 if unchanged_since is None else unchanged_since,
        },
    )
    rows = await cursor.fetchall()
    changed = [Flagged(uid, bits, words) for uid, bits, words, is_changed in rows if is_changed]
    refused = [uid for uid, _, _, is_changed in rows if not is_changed]
    return StoreResult(await _advance(connection, folder) if changed else folder, changed, refused)


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
            where folder_id = %(folder)s and (uid = any(%(uids)s::bigint[]) or %(all)s) and expunged_at is null
                and {condition}
            returning uid, mail_id""",
        {
            "folder": folder_id,
            "uids": array_literal(uids or ()),
            "all": uids is None,
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
