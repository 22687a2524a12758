"""The folders of local accounts, and all SQL on them but that of their mails (table folders).

A folder is a mailbox in the sense of IMAP (RFC 9051); POP3 serves INBOX. Each writer of a folder locks its row first,
and several in the order of their ids (``lock_folders``). A removal or disabling of an account locks all its folders: no
writer relies on an account that ends before its commit.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.errors import Permanent

SpecialUse = Literal["inbox", "sent", "drafts", "junk", "trash", "archive"]
STANDARD_NAMES: Mapping[SpecialUse, str] = {
    "inbox": "INBOX",
    "sent": "Sent",
    "drafts": "Drafts",
    "junk": "Junk",
    "trash": "Trash",
    "archive": "Archive",
}
"""The folders that each account has from its creation; a client may rename them."""
SEPARATOR = "/"
"""Between the levels of a name."""
MAX_FOLDERS = 1_000
"""Limit of folders of an account: rows that a client can add. No client makes as many."""
MAX_NAME = 255
"""Limit of a name: characters."""

Reason = Literal["NONEXISTENT", "ALREADYEXISTS", "CANNOT", "LIMIT", "OVERQUOTA"]
"""Response codes of IMAP (RFC 5530, RFC 9208 section 4.3)."""


class FolderRefused(Permanent):
    """A change of folders that is refused.

    :ivar reason: the response code of IMAP.
    """

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(words)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is not deleted."""

    id: int
    local_id: int
    name: str
    special_use: SpecialUse | None
    uidvalidity: int
    uidnext: int  # the UID of the next mail
    version: int  # HIGHESTMODSEQ
    purged_version: int  # tombstones up to this version may be purged: clients with an older one compare all UIDs
    subscribed: bool


_COLUMNS = "id, local_id, name, special_use, uidvalidity, uidnext, version, purged_version, subscribed"

_NEW_UIDVALIDITY = """greatest(extract(epoch from now())::bigint,
    (select coalesce(max(uidvalidity), 0) + 1 from folders where local_id = %(local_id)s))"""
"""SQL: exceeds each one that the person's folders have had. That of a purged folder is in the past: it was at most
RESTORE_GAP ahead of the clock."""


async def create_standard_folders(connection: Connection, local_id: int) -> None:
    """Create INBOX, Sent, Drafts, Junk, Trash and Archive of a new local account, unless they exist."""
    await connection.execute(
        f"""insert into folders (local_id, name, special_use, uidl_prefix, uidvalidity)
            select %(local_id)s, name, use, case use when 'inbox' then %(prefix)s end, {_NEW_UIDVALIDITY}
            from unnest(%(names)s::text[], %(uses)s::text[]) with ordinality as s (name, use, position)
            where not exists (select from folders where local_id = %(local_id)s) order by position""",
        {
            "local_id": local_id,
            "prefix": secrets.token_hex(8),
            "names": list(STANDARD_NAMES.values()),
            "uses": list(STANDARD_NAMES),
        },
    )


async def list_folders(connection: Connection, local_id: int) -> list[Folder]:
    """List the folders of a person, by name."""
    cursor = await connection.execute(
        f"select {_COLUMNS} from folders where local_id = %s and deleted_at is null order by name", (local_id,)
    )
    return [Folder(*row) for row in await cursor.fetchall()]


async def load_folders(connection: Connection, folder_ids: Collection[int]) -> dict[int, Folder]:
    """Load folders by their ids. Deleted ones are left out."""
    cursor = await connection.execute(
        f"select {_COLUMNS} from folders where id = any(%s) and deleted_at is null", (list(folder_ids),)
    )
    return {row[0]: Folder(*row) for row in await cursor.fetchall()}


async def find_folder(connection: Connection, local_id: int, name: str) -> Folder | None:
    """Return a person's folder of this name."""
    return (await find_folders(connection, [(local_id, name)])).get((local_id, name))


async def find_folders(connection: Connection, wanted: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Folder]:
    """Return folders by their person and name. :param wanted: pairs of local id and name."""
    cursor = await connection.execute(
        f"""select {_COLUMNS} from folders join unnest(%s::bigint[], %s::text[]) as w (local_id, name)
            using (local_id, name) where deleted_at is null""",
        (array_literal(local_id for local_id, _ in wanted), array_literal(name for _, name in wanted)),
    )
    return {(row[1], row[2]): Folder(*row) for row in await cursor.fetchall()}


async def find_special(connection: Connection, local_id: int, use: SpecialUse) -> Folder:
    """Return a person's folder for this use. :raises Permanent: the account has no mailbox."""
    cursor = await connection.execute(
        f"select {_COLUMNS} from folders where local_id = %s and special_use = %s", (local_id, use)
    )
    row = await cursor.fetchone()
    if row is None:
        raise Permanent(f"no mailbox for local account {local_id}")
    return Folder(*row)


async def load_versions(connection: Connection, folder_ids: Collection[int]) -> dict[int, int]:
    """Return the version of each folder; it changes with every change. Deleted folders are left out."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        "select id, version from folders where id = any(%s) and deleted_at is null", (list(folder_ids),)
    )
    return dict(await cursor.fetchall())


async def load_inbox_versions(connection: Connection, local_ids: Sequence[int]) -> dict[int, int]:
    """Return the version of each person's INBOX, by local id. Accounts without a mailbox are left out."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        "select local_id, version from folders where local_id = any(%s) and special_use = 'inbox'", (list(local_ids),)
    )
    return dict(await cursor.fetchall())


# ---------------------------------------------------------------------------------------------- locks


async def lock_folders(
    connection: Connection, local_id: int, folder_ids: Collection[int], *, only_enabled: bool = False
) -> dict[int, Folder]:
    """Lock folders of a person until the transaction ends, in the order of their ids, and read them under the lock.

    :param only_enabled: refuse a disabled account, too: its session may be an intruder's.
    :return: the folders by id, as they are now.
    :raises FolderRefused: NONEXISTENT: one is another person's, or was deleted.
    :raises Permanent: the account has no mailbox, was removed, or, with ``only_enabled``, was disabled.
    """
    wanted = sorted(set(folder_ids))
    await connection.execute("select from folders where id = any(%s) order by id for no key update", (wanted,))
    # Another statement, as the first one sees the accounts as they were before it waited.
    cursor = await connection.execute(
        f"""select {_COLUMNS} from folders f where id = any(%s) and local_id = %s and deleted_at is null and exists (
                select from local_accounts l
                where l.id = f.local_id and l.removed_at is null and (l.enabled or not %s))""",
        (wanted, local_id, only_enabled),
    )
    found = {row[0]: Folder(*row) for row in await cursor.fetchall()}
    if len(found) < len(wanted):
        await _require_account(connection, local_id, only_enabled)
        raise FolderRefused("NONEXISTENT", "there is no such folder")
    return found


async def _require_account(connection: Connection, local_id: int, only_enabled: bool) -> None:
    cursor = await connection.execute(
        """select from local_accounts l join folders f on f.local_id = l.id and f.special_use = 'inbox'
           where l.id = %s and l.removed_at is null and (l.enabled or not %s)""",
        (local_id, only_enabled),
    )
    if await cursor.fetchone() is None:
        raise Permanent(f"no mailbox for local account {local_id}")


async def lock_all_folders(connection: Connection, local_id: int, *, only_enabled: bool = False) -> dict[int, Folder]:
    """Lock all folders of a person, as ``lock_folders``."""
    cursor = await connection.execute(
        "select id from folders where local_id = %s and deleted_at is null order by id for no key update", (local_id,)
    )
    found = await lock_folders(
        connection, local_id, [row[0] for row in await cursor.fetchall()], only_enabled=only_enabled
    )
    await _require_account(connection, local_id, only_enabled)
    return found


# ---------------------------------------------------------------------------------------------- by mail clients


async def create_folder(connection: Connection, local_id: int, name: str) -> Folder:
    """Create a folder. Its superior names need not exist.

    :raises FolderRefused: ALREADYEXISTS; OVERQUOTA: too many folders; LIMIT: a long name; CANNOT: an empty level.
    :raises Permanent: the account ended.
    """
    known = await lock_all_folders(connection, local_id, only_enabled=True)
    _check_new_name(name, known.values())
    return await _insert(connection, local_id, name)


def _check_new_name(name: str, known: Collection[Folder]) -> None:
    if any(folder.name == name or _is_inbox(name) for folder in known):
        raise FolderRefused("ALREADYEXISTS", f"there is a folder {name}")
    if len(known) >= MAX_FOLDERS:
        raise FolderRefused("OVERQUOTA", f"an account has {MAX_FOLDERS} folders at most")
    if len(name) > MAX_NAME:
        raise FolderRefused("LIMIT", f"a name has {MAX_NAME} characters at most")
    if not all(name.split(SEPARATOR)):
        raise FolderRefused("CANNOT", "a level of the name is empty")


def _is_inbox(name: str) -> bool:
    return name.upper() == "INBOX"  # RFC 9051 section 5.1: in any case of letters


async def _insert(connection: Connection, local_id: int, name: str) -> Folder:
    cursor = await connection.execute(
        f"""insert into folders (local_id, name, uidvalidity) values (%(local_id)s, %(name)s, {_NEW_UIDVALIDITY})
            returning {_COLUMNS}""",
        {"local_id": local_id, "name": name},
    )
    [row] = await cursor.fetchall()
    return Folder(*row)


async def rename_folder(connection: Connection, local_id: int, folder_id: int, name: str) -> list[Folder]:
    """Rename a folder and those below it; they keep uses, UIDs and subscriptions. For INBOX: ``rename_inbox`` of
    folder_edits.py. A new name that is subscribed without a folder stays subscribed.

    :return: the folders with new names.
    :raises FolderRefused: as ``create_folder``, also for its own name; CANNOT: INBOX; NONEXISTENT.
    :raises Permanent: the account ended.
    """
    known = await lock_all_folders(connection, local_id, only_enabled=True)
    folder = known.get(folder_id)
    if folder is None:
        raise FolderRefused("NONEXISTENT", "there is no such folder")
    if folder.special_use == "inbox":
        raise FolderRefused("CANNOT", "INBOX keeps its name")
    if name == folder.name:
        raise FolderRefused("ALREADYEXISTS", "the folder has that name")
    if name.startswith(folder.name + SEPARATOR):
        raise FolderRefused("CANNOT", "a folder cannot be moved below itself")
    moving = [each for each in known.values() if each is folder or each.name.startswith(folder.name + SEPARATOR)]
    renamed = {each.id: name + each.name[len(folder.name) :] for each in moving}
    staying = [each for each in known.values() if each.id not in renamed]
    for each in renamed.values():
        _check_new_name(each, staying)
    cursor = await connection.execute(
        f"""update folders set name = n.name, subscribed = subscribed or exists (
                select from folders gone where gone.local_id = folders.local_id and gone.name = n.name
                    and gone.deleted_at is not null and gone.subscribed)
            from unnest(%s::bigint[], %s::text[]) as n (folder_id, name)
            where id = n.folder_id returning {_COLUMNS.replace(" name,", " folders.name,")}""",
        (list(renamed), list(renamed.values())),
    )
    return [Folder(*row) for row in await cursor.fetchall()]


async def subscribe_folder(connection: Connection, local_id: int, folder_id: int) -> None:
    """Subscribe a person to a folder (RFC 9051 section 6.3.7).

    :raises FolderRefused: NONEXISTENT. :raises Permanent: the account ended.
    """
    await lock_folders(connection, local_id, [folder_id], only_enabled=True)
    await connection.execute("update folders set subscribed = true where id = %s", (folder_id,))


async def unsubscribe_name(connection: Connection, local_id: int, name: str) -> None:
    """End the subscription of a name, whether or not there is a folder of that name (RFC 9051 section 6.3.8).

    :raises Permanent: the account ended.
    """
    await lock_all_folders(connection, local_id, only_enabled=True)
    await connection.execute(
        "update folders set subscribed = false where local_id = %s and name = %s and subscribed", (local_id, name)
    )


async def list_lost_names(connection: Connection, local_id: int) -> list[str]:
    """List the names that a person is subscribed to although their folders are deleted, in order."""
    cursor = await connection.execute(
        """select distinct name from folders gone
           where local_id = %s and deleted_at is not null and subscribed and not exists (
               select from folders f where f.local_id = gone.local_id and f.name = gone.name and f.deleted_at is null)
           order by name""",
        (local_id,),
    )
    return [row[0] for row in await cursor.fetchall()]


async def hide_folder(connection: Connection, local_id: int, folder_id: int) -> None:
    """Delete a locked folder whose mails are tombstones; the row is kept as long as these, or its subscription.

    The server must not end a subscription (RFC 3501 section 6.3.9); of an account it keeps the latest MAX_FOLDERS names
    without a folder.

    :raises FolderRefused: CANNOT: a standard folder, which an account always has.
    """
    folder = (await load_folders(connection, [folder_id]))[folder_id]
    if folder.special_use is not None:
        raise FolderRefused("CANNOT", f"{folder.name} cannot be deleted")
    await connection.execute(
        "update folders set deleted_at = now() where id = %s and local_id = %s", (folder_id, local_id)
    )
    await connection.execute(
        """update folders set subscribed = false where id in (
               select id from (
                   select id, row_number() over (partition by name order by deleted_at desc, id desc) as of_name,
                       row_number() over (order by deleted_at desc, id desc) as of_all
                   from folders where local_id = %s and deleted_at is not null and subscribed) gone
               where of_name > 1 or of_all > %s)""",
        (local_id, MAX_FOLDERS),
    )


# ---------------------------------------------------------------------------------------------- after a restore

RESTORE_GAP = 43_200
"""Seconds, half a day, by which a restore advances each UIDVALIDITY beyond the clock: more than folders that were made
quickly, one after the other, are ahead of it, and less than the shortest time for which deleted folders are kept."""


async def renew_uidvalidities(connection: Connection) -> None:
    """Renew every UIDVALIDITY after a restore: clients know UIDs from after the backup, which will name other mail."""
    await connection.execute(
        "update folders set uidvalidity = greatest(uidvalidity, extract(epoch from now())::bigint) + %s", (RESTORE_GAP,)
    )
