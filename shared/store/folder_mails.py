"""The mails in folders: delivery, what POP3 needs, and the purge (tables folder_mails, delivered).

Versions, locks and UIDs: shared/store/folders.py. Moves out of Junk: shared/store/folder_junk.py. Mail clients'
changes by IMAP are in shared/store/folder_edits.py and shared/store/folder_batches.py, what they read in
shared/store/folder_views.py, the operator's in shared/store/folder_admin.py.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.errors import Permanent
from shared.store import folders, last_logins

VERSION_GAP = 50_000_000
"""Smallest difference of two versions that shows a failover between them: versions; half of what ``skip_lost_numbers``
in the schema adds, because the older version may be a lost one."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A mail to put into mailboxes."""

    local_ids: Sequence[int]
    inbound_id: int
    blob_id: int
    octets: int  # of the whole mail
    as_deleted: bool = False  # store it as already deleted
    junk: bool = False  # put it into Junk, of the people who want that


@dataclass(frozen=True, slots=True)
class Change:
    """The state of a mail of an INBOX, or its tombstone. UID, UIDL, bytes and octets of a mail never change."""

    uid: int
    blob_id: int
    uidl: int
    octets: int  # of the whole mail
    deleted: bool  # it is a tombstone


@dataclass(frozen=True, slots=True)
class Changes:
    """The mails of an INBOX that changed after a version, ordered by UID."""

    uidl_prefix: str
    version: int  # of the folder with these changes
    rows: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Contents:
    """The mails of an INBOX at a version, ordered by UID; one array for each field of Change."""

    uidl_prefix: str
    version: int
    uids: array[int]
    blob_ids: array[int]
    uidls: array[int]
    octets: array[int]


def uidl(uidl_prefix: str, number: int) -> str:
    """Format the unique id of a mail (RFC 1939, UIDL): at most 70 printable characters, never used twice."""
    return f"{uidl_prefix}{number:x}"


# ---------------------------------------------------------------------------------------------- delivery


async def lock_recipients(
    connection: Connection, inbound_ids: Sequence[int], wait: bool = True, *, with_junk: bool = False
) -> set[int]:
    """Lock the folders that undelivered copies of these mails go to, until the transaction ends.

    A removal or disabling of an account locks its folders, too. So it is committed before, and the next statement sees
    it, or it waits until these mails are in the mailbox.

    :param wait: wait for folders that others have locked; otherwise leave their accounts out.
    :param with_junk: some of the mails are junk: lock Junk as well as INBOX.
    :return: the ids of the accounts whose folders are locked now.
    """
    uses = _uses(with_junk)
    cursor = await connection.execute(
        f"""select local_id from folders where special_use = any(%s::text[]) and local_id = any(array(
               select local_id from deliveries where inbound_id = any(%s::bigint[]) and done_at is null))
           order by id for no key update {"" if wait else "skip locked"}""",
        (array_literal(uses), array_literal(inbound_ids)),
    )
    locked = Counter(int(row[0]) for row in await cursor.fetchall())
    return {local_id for local_id, count in locked.items() if count == len(uses)}


def _uses(with_junk: bool) -> Sequence[str]:
    return ("inbox", "junk") if with_junk else ("inbox",)


async def deliver_copies(connection: Connection, copies: Sequence[Copy], *, locked: bool = False) -> set[int]:
    """Put mails into INBOXes, in this order. A mail that a person got before is not delivered again, wherever it is.

    Junk goes into the folder Junk of each person who wants that, but never of one who logs in by POP3 alone.

    :param locked: the caller has locked the folders, by ``lock_recipients``.
    :return: the ids of the people who get junk into Junk; empty if none of the mails is junk.
    :raises Permanent: an account has no mailbox, or was removed.
    """
    if not copies:
        return set()
    with_junk = any(copy.junk for copy in copies)
    local_ids = sorted({local_id for copy in copies for local_id in copy.local_ids})
    if not locked:
        await connection.execute(
            """select from folders where local_id = any(%s::bigint[]) and special_use = any(%s::text[])
               order by id for no key update""",
            (array_literal(local_ids), array_literal(_uses(with_junk))),
        )
    wants_junk = f"l.junk and not {last_logins.POP3_ALONE.format(local_id='l.id')}" if with_junk else "false"
    cursor = await connection.execute(
        f"""with given as (
               select c.inbound_id, c.blob_id, c.octets, c.as_deleted, c.junk, c.position, l.id as local_id
               from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::boolean[], %s::boolean[])
                    with ordinality as c (local_ids, inbound_id, blob_id, octets, as_deleted, junk, position)
               cross join unnest(c.local_ids::bigint[]) as l (id)),
           boxes as (
               select f.id, f.local_id, j.id as junk_id
               from folders f join local_accounts l on l.id = f.local_id
                   left join folders j on {wants_junk} and j.local_id = l.id and j.special_use = 'junk'
               where f.local_id = any(%s::bigint[]) and f.special_use = 'inbox' and l.removed_at is null),
           new as (
               insert into delivered (inbound_id, local_id) select inbound_id, local_id from given
               on conflict (inbound_id, local_id) do nothing returning inbound_id, local_id),
           placed as (
               select given.*, case when given.junk then coalesce(junk_id, boxes.id) else boxes.id end as folder_id
               from new join given using (inbound_id, local_id) join boxes using (local_id)),
           changed as (
               update folders f set version = f.version + 1, uidnext = f.uidnext + n.mails
               from (select folder_id, count(*) as mails from placed group by folder_id) n
               where f.id = n.folder_id returning f.id, f.version, f.uidnext - n.mails as uid),
           added as (
               insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version, expunged_at, expunged_as)
               select f.id, f.uid + row_number() over (partition by f.id order by p.position) - 1, p.blob_id,
                   p.inbound_id, p.octets, f.version, case when p.as_deleted then now() end,
                   case when p.as_deleted then 'deleted' end
               from placed p join changed f on f.id = p.folder_id
               order by p.position)
           select local_id, junk_id is not null from boxes""",
        (
            array_literal(array_literal(copy.local_ids) for copy in copies),
            array_literal(copy.inbound_id for copy in copies),
            array_literal(copy.blob_id for copy in copies),
            array_literal(copy.octets for copy in copies),
            array_literal(copy.as_deleted for copy in copies),
            array_literal(copy.junk for copy in copies),
            array_literal(local_ids),
        ),
    )
    boxes: dict[int, bool] = dict(await cursor.fetchall())
    if missing := set(local_ids) - boxes.keys():
        raise Permanent(f"no mailbox for local account {', '.join(map(str, sorted(missing)))}")
    return {local_id for local_id, has_junk in boxes.items() if has_junk}


# ---------------------------------------------------------------------------------------------- POP3


async def load_contents(connection: Connection, local_id: int) -> Contents:
    """Load all mails of a person's INBOX.

    :raises Permanent: the account has no mailbox.
    """
    cursor = connection.cursor(binary=True)
    # One statement, so that the version and the rows are from the same snapshot. One row with an array for each column:
    # a row for each mail takes twenty times the memory and five times the time.
    await cursor.execute(
        """select f.uidl_prefix, f.version, a.*
           from folders f, lateral (
               select string_agg(int8send(uid), ''), string_agg(int8send(blob_id), ''),
                      string_agg(int8send(uidl), ''), string_agg(int8send(octets), '')
               from (select uid, blob_id, uidl, octets from folder_mails
                     where folder_id = f.id and expunged_at is null order by uid) r) a
           where f.local_id = %s and f.special_use = 'inbox'""",
        (local_id,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise Permanent(f"no mailbox for local account {local_id}")
    return Contents(str(row[0]), int(row[1]), *map(numbers, row[2:]))


def numbers(octets: bytes | None) -> array[int]:
    """Parse concatenated bigints in PostgreSQL's binary format."""
    parsed = array("q", octets or b"")
    if sys.byteorder == "little":
        parsed.byteswap()
    return parsed


async def load_changes(connection: Connection, local_id: int, since_version: int, max_rows: int) -> Changes | None:
    """Load the changes of a person's INBOX after a version of 1 or more; None if they are more than ``max_rows`` rows,
    or if a failover has undone some of the changes before that version.

    :raises Permanent: the account has no mailbox.
    """
    cursor = connection.cursor(binary=True)
    # One statement, so that the version and the rows are from the same snapshot.
    await cursor.execute(
        """select f.uidl_prefix, f.version, r.uid, r.blob_id, r.uidl, r.octets, r.expunged_at is not null
           from folders f left join folder_mails r on r.folder_id = f.id and r.version > %s
           where f.local_id = %s and f.special_use = 'inbox' order by r.uid limit %s""",
        (since_version, local_id, max_rows + 1),
    )
    result = await cursor.fetchall()
    if not result:
        raise Permanent(f"no mailbox for local account {local_id}")
    uidl_prefix, version = result[0][:2]
    if version - since_version >= VERSION_GAP:
        return None
    rows = [Change(*row[2:]) for row in result if row[2] is not None]
    return None if len(rows) > max_rows else Changes(str(uidl_prefix), int(version), rows)


NAMED = """(folder_id, uid) in (
    select r.folder_id, r.uid from unnest(%(uids)s::bigint[]) as u (uid) cross join lateral (
        select folder_id, uid from folder_mails where folder_id = %(folder)s and uid = u.uid offset 0) r)"""
"""SQL: the mails of a folder that are named by UIDs. Each is a look into the primary key: ``uid = any(...)`` may read
the whole folder, by a plan from a time when the folder was small."""


async def tombstone_mails(
    connection: Connection, local_id: int, uids: Sequence[int], *, only_enabled: bool = False
) -> list[int]:
    """Delete mails from a person's INBOX: all of them or, on failure, none. Deleted mails stay as they are.

    :param only_enabled: fail if the account was disabled, too: its own session may be an intruder's.
    :returns: the mail ids of the mails that this call deleted.
    :raises Permanent: the account has no mailbox, or was removed.
    """
    inbox = await folders.find_special(connection, local_id, "inbox")
    await folders.lock_folders(connection, local_id, [inbox.id], only_enabled=only_enabled)
    cursor = await connection.execute(
        f"""with gone as (
                update folder_mails set expunged_at = now(), expunged_as = 'deleted',
                    version = (select version + 1 from folders where id = %(folder)s)
                where {NAMED} and expunged_at is null
                returning mail_id),
            changed as (
                update folders set version = version + 1 where id = %(folder)s and exists (select from gone))
            select mail_id from gone""",
        {"folder": inbox.id, "uids": array_literal(uids)},
    )
    return [int(row[0]) for row in await cursor.fetchall()]


# ---------------------------------------------------------------------------------------------- purging


_PURGEABLE = {
    False: "expunged_at < %(before)s",
    True: "expunged_as = 'draft' and expunged_at < %(before)s",
}
"""SQL: the row is a tombstone from before a time; by whether only drafts are meant. Each has its index."""


async def mark_purgeable(
    connection: Connection, after: int, before: datetime, limit: int, *, drafts: bool = False
) -> tuple[int, int | None]:
    """Record, before a purge, up to which version each folder may lack tombstones, for the next folders by id.

    A transaction of its own, before ``purge_tombstones``: the purge itself locks no folder, so mail need not wait for
    it.

    :param after: the id of the folder to continue after. :param before: tombstones from before this time are purged.
    :param limit: of the folders. :param drafts: only expunged drafts are purged.
    :return: the folders whose purged_version has changed; and the id to continue after, None at the end.
    """
    cursor = await connection.execute(
        f"""with due as materialized (
                select folder_id, max(version) as version from folder_mails
                where {_PURGEABLE[drafts]} and folder_id > %(after)s
                group by folder_id order by folder_id limit %(limit)s),
            locked as materialized (
                select f.id, due.version from folders f join due on due.folder_id = f.id
                where f.purged_version < due.version order by f.id for no key update of f),
            changed as (
                update folders f set purged_version = locked.version from locked
                where f.id = locked.id returning f.id)
            select (select count(*) from changed), (select max(folder_id) from due), (select count(*) from due)""",
        {"after": after, "limit": limit, "before": before},
    )
    [(changed, last, found)] = await cursor.fetchall()
    return int(changed), int(last) if found == limit else None


async def purge_tombstones(connection: Connection, before: datetime, limit: int, *, drafts: bool = False) -> list[int]:
    """Purge the tombstones from before this time that ``mark_purgeable`` has recorded. :returns: the blob id of each.

    A session of POP3 that still shows one began before its deletion, and none lasts as long as tombstones are kept.

    :param drafts: only expunged drafts: clients store another one every minute or so.
    """
    cursor = await connection.execute(
        f"""delete from folder_mails where (folder_id, uid) in (
                select folder_id, uid from folder_mails r where {_PURGEABLE[drafts]}
                    and version <= (select purged_version from folders f where f.id = r.folder_id)
                order by expunged_at limit %(limit)s for update skip locked) returning blob_id""",
        {"limit": limit, "before": before},
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def purge_mailboxes(connection: Connection, local_ids: Sequence[int], limit: int) -> list[int]:
    """Purge the mails in the folders of these accounts, and each folder once it is empty.

    :returns: the blob id of each row.
    """
    cursor = await connection.execute(
        """delete from folder_mails where (folder_id, uid) in (
               select folder_id, uid from folder_mails where folder_id = any(array(
                   select id from folders where local_id = any(%s))) limit %s for update skip locked)
           returning blob_id""",
        (list(local_ids), limit),
    )
    gone = [int(row[0]) for row in await cursor.fetchall()]
    await connection.execute(
        """delete from folders f where local_id = any(%s)
               and not exists (select from folder_mails r where r.folder_id = f.id)""",
        (list(local_ids),),
    )
    return gone


async def purge_folders(connection: Connection, before: datetime, limit: int) -> int:
    """Purge folders that clients deleted before this time, whose tombstones are purged and whose names nobody is
    subscribed to. :return: their number.
    """
    cursor = await connection.execute(
        """delete from folders where id in (
               select id from folders f where deleted_at < %s and not subscribed
                   and not exists (select from folder_mails r where r.folder_id = f.id)
               order by id limit %s for update skip locked)""",
        (before, limit),
    )
    return cursor.rowcount


# ---------------------------------------------------------------------------------------------- after a restore


async def reserve_uidl_gap(connection: Connection) -> None:
    """Skip UIDLs after a restore: mail clients know UIDLs from after the backup, and would ignore new mail under
    them.
    """
    await connection.execute("select setval('uidl_numbers', nextval('uidl_numbers') + 1000000000)")
