"""Mailboxes and their mails, and all SQL on them (tables maildrops, maildrop_mails).

Each writer of a mailbox locks its row in maildrops first and increments its version. Versions are therefore in the
order of commits, a row records the version at which it last changed, and a reader that knows a version gets all later
changes in one query. Uids are assigned under the same lock: later mail has the higher uid. A removal or disabling of
an account locks this row, too: no writer relies on an account that ends before its commit.
"""

from __future__ import annotations

import secrets
import sys
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.errors import Permanent

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


@dataclass(frozen=True, slots=True)
class Change:
    """The state of a row of a mailbox."""

    id: int  # of the row
    blob_id: int
    uid: int
    octets: int  # of the whole mail
    deleted: bool  # it is a tombstone


@dataclass(frozen=True, slots=True)
class Changes:
    """The rows that changed after a version, ordered by uid."""

    uidl_prefix: str
    version: int  # of the mailbox with these changes
    rows: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Contents:
    """The mails of a mailbox at a version, ordered by uid; one array for each field of Change."""

    uidl_prefix: str
    version: int
    rows: array[int]
    blob_ids: array[int]
    uids: array[int]
    octets: array[int]


@dataclass(frozen=True, slots=True)
class MaildropEntry:
    """A row of a mailbox as shown to the operator."""

    id: int
    inbound_id: int
    blob_id: int
    uidl: str
    octets: int
    deleted_at: datetime | None  # None while the mail is there


def uidl(uidl_prefix: str, uid: int) -> str:
    """Format the unique id of a mail (RFC 1939, UIDL): at most 70 printable characters, never used twice."""
    return f"{uidl_prefix}{uid:x}"


async def create_maildrop(connection: Connection, local_id: int) -> None:
    """Create the mailbox of a new local account, unless it exists."""
    await connection.execute(
        "insert into maildrops (local_id, uidl_prefix) values (%s, %s) on conflict do nothing",
        (local_id, secrets.token_hex(8)),
    )


async def lock_recipients(connection: Connection, inbound_ids: Sequence[int], wait: bool = True) -> set[int]:
    """Lock the mailboxes that undelivered copies of these mails go to, until the transaction ends.

    A removal or disabling of an account locks its mailbox, too. So it is committed before, and the next statement sees
    it, or it waits until these mails are in the mailbox.

    :param wait: wait for mailboxes that others have locked; otherwise leave them out.
    :return: the ids of the accounts whose mailboxes are locked now.
    """
    cursor = await connection.execute(
        f"""select local_id from maildrops where local_id = any(array(
               select local_id from deliveries where inbound_id = any(%s::bigint[]) and done_at is null))
           order by local_id for no key update {"" if wait else "skip locked"}""",
        (array_literal(inbound_ids),),
    )
    return {int(row[0]) for row in await cursor.fetchall()}


async def _lock(connection: Connection, local_ids: Collection[int], only_enabled: bool = False) -> None:
    """Lock mailboxes, always in the same order, and begin a change of them.

    :raises Permanent: as ``_begin_change``.
    """
    await connection.execute(
        "select from maildrops where local_id = any(%s) order by local_id for no key update", (sorted(set(local_ids)),)
    )
    await _begin_change(connection, local_ids, only_enabled)


async def _begin_change(connection: Connection, local_ids: Collection[int], only_enabled: bool = False) -> None:
    """Increment the versions of locked mailboxes, and read their accounts under the lock (see ``lock_recipients``).

    :raises Permanent: an account has no mailbox, was removed, or, with ``only_enabled``, was disabled.
    """
    ids = sorted(set(local_ids))
    cursor = await connection.execute(
        """update maildrops m set version = version + 1 from local_accounts l
           where m.local_id = any(%s) and l.id = m.local_id and l.removed_at is null and (l.enabled or not %s)
           returning m.local_id""",
        (ids, only_enabled),
    )
    missing = set(ids) - {row[0] for row in await cursor.fetchall()}
    if missing:
        raise Permanent(f"no mailbox for local account {', '.join(map(str, sorted(missing)))}")


async def deliver_copies(connection: Connection, copies: Sequence[Copy], *, locked: bool = False) -> None:
    """Put mails into mailboxes, in this order. A copy that exists already stays as it is, deleted or not.

    :param locked: the caller has locked the mailboxes, by ``lock_recipients``.
    :raises Permanent: an account has no mailbox, or was removed.
    """
    if not copies:
        return
    local_ids = {local_id for copy in copies for local_id in copy.local_ids}
    await (_begin_change if locked else _lock)(connection, local_ids)
    await connection.execute(
        """insert into maildrop_mails (local_id, inbound_id, blob_id, octets, deleted_at, version)
           select m.local_id, c.inbound_id, c.blob_id, c.octets, case when c.as_deleted then now() end, m.version
           from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::boolean[])
                with ordinality as c (local_ids, inbound_id, blob_id, octets, as_deleted, position)
           cross join unnest(c.local_ids::bigint[]) as l (id) join maildrops m on m.local_id = l.id
           order by c.position
           on conflict (local_id, inbound_id) do nothing""",
        (
            array_literal(array_literal(copy.local_ids) for copy in copies),
            array_literal(copy.inbound_id for copy in copies),
            array_literal(copy.blob_id for copy in copies),
            array_literal(copy.octets for copy in copies),
            array_literal(copy.as_deleted for copy in copies),
        ),
    )


async def load_versions(connection: Connection, local_ids: Sequence[int]) -> dict[int, int]:
    """Return the version of each mailbox; it changes with every change. Accounts without a mailbox are left out."""
    cursor = connection.cursor(binary=True)
    await cursor.execute("select local_id, version from maildrops where local_id = any(%s)", (list(local_ids),))
    return dict(await cursor.fetchall())


async def load_contents(connection: Connection, local_id: int) -> Contents:
    """Load all mails of a mailbox that are not deleted.

    :raises Permanent: the account has no mailbox.
    """
    cursor = connection.cursor(binary=True)
    # One statement, so that the version and the rows are from the same snapshot. One row with an array for each column:
    # a row for each mail takes twenty times the memory and five times the time.
    await cursor.execute(
        """select m.uidl_prefix, m.version, a.*
           from maildrops m, lateral (
               select string_agg(int8send(id), ''), string_agg(int8send(blob_id), ''),
                      string_agg(int8send(uid), ''), string_agg(int8send(octets), '')
               from (select id, blob_id, uid, octets from maildrop_mails
                     where local_id = m.local_id and deleted_at is null order by uid) r) a
           where m.local_id = %s""",
        (local_id,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise Permanent(f"no mailbox for local account {local_id}")
    return Contents(str(row[0]), int(row[1]), *map(_numbers, row[2:]))


def _numbers(octets: bytes | None) -> array[int]:
    """Parse concatenated bigints in PostgreSQL's binary format."""
    numbers = array("q", octets or b"")
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


async def load_changes(connection: Connection, local_id: int, since_version: int, max_rows: int) -> Changes | None:
    """Load the changes of a mailbox after a version of 1 or more; None if they are more than ``max_rows`` rows, or if a
    failover has undone some of the changes before that version.

    :raises Permanent: the account has no mailbox.
    """
    cursor = connection.cursor(binary=True)
    # One statement, so that the version and the rows are from the same snapshot.
    await cursor.execute(
        """select m.uidl_prefix, m.version, r.id, r.blob_id, r.uid, r.octets, r.deleted_at is not null
           from maildrops m left join maildrop_mails r on r.local_id = m.local_id and r.version > %s
           where m.local_id = %s order by r.uid limit %s""",
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


async def tombstone_mails(
    connection: Connection, local_id: int, row_ids: Sequence[int], *, only_enabled: bool = False
) -> list[int]:
    """Delete mails from a mailbox: all of them or, on failure, none. Deleted mails stay as they are.

    :param only_enabled: fail if the account was disabled, too: its own session may be an intruder's.
    :returns: the inbound ids of the mails that this call deleted.
    :raises Permanent: the account has no mailbox, or was removed.
    """
    await _lock(connection, [local_id], only_enabled)
    cursor = await connection.execute(
        """update maildrop_mails r set deleted_at = now(), version = m.version
           from maildrops m
           where m.local_id = r.local_id and r.local_id = %s and r.id = any(%s) and r.deleted_at is null
           returning r.inbound_id""",
        (local_id, list(row_ids)),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def undelete_mails(connection: Connection, local_id: int, row_ids: Sequence[int]) -> list[int]:
    """Restore deleted mails under new uids: mail clients that know the old UIDL download them as new mail.

    :returns: the inbound ids of the restored mails; mails that were not deleted are skipped.
    :raises Permanent: the account has no mailbox, or was removed.
    """
    await _lock(connection, [local_id])
    cursor = await connection.execute(
        """update maildrop_mails r set deleted_at = null, uid = nextval('maildrop_uids'), version = m.version
           from maildrops m
           where m.local_id = r.local_id and r.local_id = %s and r.id = any(%s) and r.deleted_at is not null
           returning r.inbound_id""",
        (local_id, list(row_ids)),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def list_mails(connection: Connection, local_id: int, deleted: bool = False) -> list[MaildropEntry]:
    """List the mails of a mailbox in the order of its listing; with ``deleted``, tombstones too."""
    cursor = await connection.execute(
        """select r.id, r.inbound_id, r.blob_id, m.uidl_prefix, r.uid, r.octets, r.deleted_at
           from maildrop_mails r join maildrops m using (local_id)
           where r.local_id = %s and (r.deleted_at is null or %s) order by r.uid""",
        (local_id, deleted),
    )
    return [
        MaildropEntry(row[0], row[1], row[2], uidl(row[3], row[4]), row[5], row[6]) for row in await cursor.fetchall()
    ]


DELETED_SHOWN = 500
"""Limit of tombstones in a list."""


async def list_latest_deleted(connection: Connection, local_id: int, limit: int = DELETED_SHOWN) -> list[MaildropEntry]:
    """List the tombstones of a mailbox, the latest deletion first."""
    cursor = await connection.execute(
        """select r.id, r.inbound_id, r.blob_id, m.uidl_prefix, r.uid, r.octets, r.deleted_at
           from maildrop_mails r join maildrops m using (local_id)
           where r.local_id = %s and r.deleted_at is not null order by r.deleted_at desc, r.uid desc limit %s""",
        (local_id, limit),
    )
    return [
        MaildropEntry(row[0], row[1], row[2], uidl(row[3], row[4]), row[5], row[6]) for row in await cursor.fetchall()
    ]


@dataclass(frozen=True, slots=True)
class Summary:
    """The size of a mailbox."""

    mails: int
    octets: int
    latest: datetime | None  # the latest delivery
    deleted: int  # tombstones that are still kept


async def load_summary(connection: Connection, local_id: int) -> Summary:
    """Count the mails and octets in a mailbox."""
    cursor = await connection.execute(
        """select count(*) filter (where deleted_at is null),
                  coalesce(sum(octets) filter (where deleted_at is null), 0)::bigint, max(delivered_at),
                  count(*) filter (where deleted_at is not null)
           from maildrop_mails where local_id = %s""",
        (local_id,),
    )
    row = await cursor.fetchone()
    return Summary(0, 0, None, 0) if row is None else Summary(*row)


async def row_ids(connection: Connection, local_id: int, inbound_ids: Sequence[int]) -> list[int]:
    """Return the row ids of these mails in a mailbox."""
    cursor = await connection.execute(
        "select id from maildrop_mails where local_id = %s and inbound_id = any(%s)", (local_id, list(inbound_ids))
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def mark_as_new(connection: Connection, local_id: int, inbound_id: int) -> None:
    """Make a mail of a mailbox new for its clients, even if it was deleted."""
    rows = await row_ids(connection, local_id, [inbound_id])
    await tombstone_mails(connection, local_id, rows)
    await undelete_mails(connection, local_id, rows)


async def count_missing(connection: Connection, from_id: int, to_id: int) -> int:
    """Count the mails of a mailbox that ``copy_all`` would copy into another mailbox."""
    cursor = await connection.execute(
        """select count(*) from maildrop_mails r where r.local_id = %s and r.deleted_at is null and not exists (
               select from maildrop_mails c where c.inbound_id = r.inbound_id and c.local_id = %s)""",
        (from_id, to_id),
    )
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def copy_all(connection: Connection, from_id: int, to_id: int) -> list[int]:
    """Copy every mail of a mailbox that is not deleted into another mailbox. :return: the inbound ids of the new
    copies.

    :raises Permanent: an account has no mailbox, or was removed.
    """
    await _lock(connection, [from_id, to_id])
    cursor = await connection.execute(
        """insert into maildrop_mails (local_id, inbound_id, blob_id, octets, version)
           select m.local_id, r.inbound_id, r.blob_id, r.octets, m.version
           from maildrop_mails r, maildrops m
           where r.local_id = %s and r.deleted_at is null and m.local_id = %s order by r.uid
           on conflict (local_id, inbound_id) do nothing returning inbound_id""",
        (from_id, to_id),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


# ---------------------------------------------------------------------------------------------- purging


async def purge_tombstones(connection: Connection, before: datetime, limit: int) -> list[int]:
    """Purge copies that were deleted before this time. :returns: the inbound id of each.

    A session that still shows one began before its deletion, and no session lasts as long as tombstones are kept.
    """
    cursor = await connection.execute(
        """delete from maildrop_mails where id in (
               select id from maildrop_mails where deleted_at < %s
               order by deleted_at limit %s for update skip locked) returning inbound_id""",
        (before, limit),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def purge_mailboxes(connection: Connection, local_ids: Sequence[int], limit: int) -> list[int]:
    """Purge the copies in these mailboxes, and each mailbox once it is empty. :returns: the inbound id of each copy."""
    cursor = await connection.execute(
        """delete from maildrop_mails where id in (
               select id from maildrop_mails where local_id = any(%s) limit %s for update skip locked)
           returning inbound_id""",
        (list(local_ids), limit),
    )
    gone = [int(row[0]) for row in await cursor.fetchall()]
    await connection.execute(
        """delete from maildrops m where local_id = any(%s)
               and not exists (select from maildrop_mails r where r.local_id = m.local_id)""",
        (list(local_ids),),
    )
    return gone


async def reserve_uid_gap(connection: Connection) -> None:
    """Skip uids after a restore: mail clients know UIDLs from after the backup, and would ignore new mail under
    them.
    """
    await connection.execute("select setval('maildrop_uids', nextval('maildrop_uids') + 1000000000)")
