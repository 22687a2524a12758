"""The operator's view and changes of mailboxes: lists, undelete, hand-over (table folder_mails, delivered)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.store import folders
from shared.store.folder_mails import uidl
from shared.store.folder_views import DELETED

DELETED_SHOWN = 500
"""Limit of deleted mails in a list."""


@dataclass(frozen=True, slots=True)
class MailEntry:
    """A mail of a person, or a deleted one, as shown to the operator."""

    folder_id: int
    folder: str  # its name
    uid: int
    mail_id: int
    blob_id: int
    uidl: str  # in INBOX; '' in other folders
    octets: int
    deleted_at: datetime | None  # None while the mail is there

    @property
    def key(self) -> tuple[int, int]:
        """What ``undelete_mails`` takes."""
        return self.folder_id, self.uid


_ENTRIES = """select f.id, f.name, r.uid, r.mail_id, r.blob_id, f.uidl_prefix, r.uidl, r.octets, r.expunged_at
    from folders f join folder_mails r on r.folder_id = f.id
    where f.local_id = %s and"""


def _entry(row: tuple[int, str, int, int, int, str | None, int, int, datetime | None]) -> MailEntry:
    folder_id, name, uid, mail_id, blob_id, prefix, number, octets, deleted_at = row
    shown = uidl(prefix, number) if prefix is not None else ""
    return MailEntry(folder_id, name, uid, mail_id, blob_id, shown, octets, deleted_at)


async def list_mails(connection: Connection, local_id: int, deleted: bool = False) -> list[MailEntry]:
    """List the mails of a person, folder by folder in the order of UIDs; with ``deleted``, the deleted ones too."""
    cursor = await connection.execute(
        f"""{_ENTRIES} (r.expunged_at is null or %s and r.expunged_as = 'deleted') order by f.id, r.uid""",
        (local_id, deleted),
    )
    return [_entry(row) for row in await cursor.fetchall()]


async def list_latest_deleted(connection: Connection, local_id: int, limit: int = DELETED_SHOWN) -> list[MailEntry]:
    """List the deleted mails of a person, the latest deletion first."""
    cursor = await connection.execute(
        f"{_ENTRIES} r.expunged_as = 'deleted' order by r.expunged_at desc, r.folder_id, r.uid desc limit %s",
        (local_id, limit),
    )
    return [_entry(row) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class MailboxSummary:
    """The size of all folders of a person."""

    mails: int
    octets: int
    latest: datetime | None  # the latest delivery into INBOX
    deleted: int  # mails that can be undeleted


async def load_summary(connection: Connection, local_id: int) -> MailboxSummary:
    """Count the mails and octets of a person."""
    cursor = await connection.execute(
        """select count(*) filter (where r.expunged_at is null),
                  coalesce(sum(r.octets) filter (where r.expunged_at is null), 0)::bigint,
                  max(r.internal_date) filter (where f.special_use = 'inbox'),
                  count(*) filter (where r.expunged_as = 'deleted')
           from folders f join folder_mails r on r.folder_id = f.id where f.local_id = %s""",
        (local_id,),
    )
    row = await cursor.fetchone()
    return MailboxSummary(0, 0, None, 0) if row is None else MailboxSummary(*row)


async def undelete_mails(connection: Connection, local_id: int, keys: Collection[tuple[int, int]]) -> list[int]:
    """Restore deleted mails: each as a new mail of its folder, which clients download, or of INBOX if the folder is
    deleted. The tombstones stay, and are not offered again.

    :param keys: (folder id, UID). :returns: the mail ids of the restored mails; mails that were not deleted are
        skipped.
    :raises Permanent: the account has no mailbox, or was removed.
    """
    known = await folders.lock_all_folders(connection, local_id)
    inbox = next(folder.id for folder in known.values() if folder.special_use == "inbox")
    cursor = await connection.execute(
        f"""with back as (
                update folder_mails r set expunged_as = 'moved'
                from unnest(%(folder_ids)s::bigint[], %(uids)s::bigint[]) as chosen (folder_id, uid), folders f
                where r.folder_id = chosen.folder_id and r.uid = chosen.uid and r.expunged_as = 'deleted'
                    and f.id = r.folder_id and f.local_id = %(local_id)s
                returning case when f.deleted_at is null then f.id else %(inbox)s end as folder_id, r.folder_id as old,
                    r.uid, r.blob_id, r.mail_id, r.octets, r.internal_date, r.flags, r.keywords, r.message_id),
            changed as (
                update folders f set version = f.version + 1, uidnext = f.uidnext + n.mails
                from (select folder_id, count(*) as mails from back group by folder_id) n
                where f.id = n.folder_id returning f.id, f.version, f.uidnext - n.mails as uid),
            added as (
                insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version, internal_date, flags,
                    keywords, message_id)
                select f.id, f.uid + row_number() over (partition by f.id order by back.old, back.uid) - 1, blob_id,
                    mail_id, octets, f.version, internal_date, flags & ~{DELETED}, keywords, message_id
                from back join changed f on f.id = back.folder_id order by back.old, back.uid)
            select mail_id from back""",
        {
            "folder_ids": array_literal(folder_id for folder_id, _ in keys),
            "uids": array_literal(uid for _, uid in keys),
            "local_id": local_id,
            "inbox": inbox,
        },
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def deliver_as_new(connection: Connection, local_id: int, mail_id: int, blob_id: int, octets: int) -> None:
    """Put a mail into a person's INBOX as new mail, even if the person has it or has deleted it.

    :raises Permanent: the account has no mailbox, or was removed.
    """
    inbox = await folders.find_special(connection, local_id, "inbox")
    inbox = (await folders.lock_folders(connection, local_id, [inbox.id]))[inbox.id]
    numbers = {
        "folder_id": inbox.id,
        "uid": inbox.uidnext,
        "version": inbox.version + 1,
        "mail_id": mail_id,
        "blob_id": blob_id,
        "octets": octets,
        "local_id": local_id,
    }
    await connection.execute(
        "insert into delivered (inbound_id, local_id) values (%(mail_id)s, %(local_id)s) on conflict do nothing",
        numbers,
    )
    await connection.execute(
        """update folder_mails set expunged_at = coalesce(expunged_at, now()), expunged_as = 'moved',
               version = case when expunged_at is null then %(version)s else version end
           where folder_id = %(folder_id)s and blob_id = %(blob_id)s and mail_id = %(mail_id)s""",
        numbers,
    )
    await connection.execute(
        """insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version)
           values (%(folder_id)s, %(uid)s, %(blob_id)s, %(mail_id)s, %(octets)s, %(version)s)""",
        numbers,
    )
    await connection.execute(
        "update folders set version = version + 1, uidnext = uidnext + 1 where id = %(folder_id)s", numbers
    )


async def delete_everywhere(connection: Connection, local_id: int, mail_ids: Collection[int]) -> list[int]:
    """Delete inbound mails from all folders of a person. :returns: the ids of those that were there.

    :raises Permanent: the account has no mailbox, or was removed.
    """
    await folders.lock_all_folders(connection, local_id)
    cursor = await connection.execute(
        """with gone as (
               update folder_mails r set expunged_at = now(), expunged_as = 'deleted', version = f.version + 1
               from inbound i, folders f
               where i.id = any(%(mail_ids)s::bigint[]) and r.blob_id = i.blob_id and r.mail_id = i.id
                   and r.expunged_at is null and f.id = r.folder_id and f.local_id = %(local_id)s
               returning r.folder_id, r.mail_id),
           changed as (
               update folders set version = version + 1 where id in (select folder_id from gone))
           select distinct mail_id from gone""",
        {"mail_ids": array_literal(mail_ids), "local_id": local_id},
    )
    return [int(row[0]) for row in await cursor.fetchall()]


# ---------------------------------------------------------------------------------------------- hand-over

_HANDED_OVER = """select distinct on (r.mail_id, own.use) r.mail_id, r.blob_id, r.octets, r.internal_date, r.message_id,
        own.use, f.id as folder_id, r.uid
    from folders f join folder_mails r on r.folder_id = f.id
        cross join lateral (select case f.special_use when 'sent' then 'sent' else 'inbox' end as use) own
    where f.local_id = %(from_id)s and r.expunged_at is null
        and (f.special_use is null or f.special_use in ('inbox', 'archive', 'sent'))
    order by r.mail_id, own.use, f.id, r.uid"""
"""SQL: the mails of a person that a colleague gets: not drafts, junk and trash. What was sent goes into Sent."""
_MISSING = """not exists (select from delivered d where d.inbound_id = h.mail_id and d.local_id = %(to_id)s)
    and not exists (select from folder_mails c join folders t on t.id = c.folder_id
        where t.local_id = %(to_id)s and c.blob_id = h.blob_id and c.mail_id = h.mail_id)"""
"""SQL: the mail ``h`` has never been in a mailbox."""


async def count_handed_over(connection: Connection, from_id: int, to_id: int) -> tuple[int, int]:
    """Count the mails of a person that a hand-over is about, and those of them that ``copy_all`` would copy."""
    cursor = await connection.execute(
        f"select count(*), count(*) filter (where {_MISSING}) from ({_HANDED_OVER}) h",
        {"from_id": from_id, "to_id": to_id},
    )
    [(mails, missing)] = await cursor.fetchall()
    return int(mails), int(missing)


async def copy_all(connection: Connection, from_id: int, to_id: int) -> list[int]:
    """Copy the mails of a person into another person's INBOX as new mail, and those in Sent into Sent. Drafts, junk and
    trash are left out. :return: the mail ids of the new copies.

    :raises Permanent: an account has no mailbox, or was removed.
    """
    ids = [folder.id for each in (from_id, to_id) for folder in await folders.list_folders(connection, each)]
    await connection.execute("select from folders where id = any(%s) order by id for no key update", (ids,))
    for each in (from_id, to_id):
        await folders.lock_all_folders(connection, each)
    cursor = await connection.execute(
        f"""with missing as materialized (select h.* from ({_HANDED_OVER}) h where {_MISSING}),
            recorded as (
                insert into delivered (inbound_id, local_id)
                select mail_id, %(to_id)s from missing where exists (select from inbound i where i.id = mail_id)
                on conflict do nothing),
            changed as (
                update folders f set version = f.version + 1, uidnext = f.uidnext + n.mails
                from (select use, count(*) as mails from missing group by use) n
                where f.local_id = %(to_id)s and f.special_use = n.use
                returning f.id, f.special_use as use, f.version, f.uidnext - n.mails as uid),
            added as (
                insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version, internal_date, flags,
                    message_id)
                select f.id, f.uid + row_number() over (partition by f.id order by m.folder_id, m.uid) - 1, blob_id,
                    mail_id, octets, f.version, internal_date, case use when 'sent' then 1 else 0 end, message_id
                from missing m join changed f using (use) order by m.folder_id, m.uid)
            select mail_id from missing""",
        {"from_id": from_id, "to_id": to_id},
    )
    return [int(row[0]) for row in await cursor.fetchall()]
