"""Moves delivered mails out of Junk, as the provider has moved them out of its junk folder (table folder_mails)."""

from __future__ import annotations

from collections.abc import Sequence

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.store.folder_views import DELETED


async def move_out_of_junk(connection: Connection, mail_ids: Sequence[int]) -> list[tuple[int, int, str]]:
    """Move the copies of mails from Junk to INBOX, with flags and dates; a copy that its owner has moved, deleted or
    marked as deleted stays.

    :return: mail id, local id and address of each copy that was moved.
    """
    mails = {"mail_ids": array_literal(mail_ids)}
    await connection.execute(
        """select from folders f where special_use in ('inbox', 'junk') and local_id = any(array(
               select j.local_id from inbound i join folder_mails r on r.blob_id = i.blob_id and r.mail_id = i.id
                   join folders j on j.id = r.folder_id
               where i.id = any(%(mail_ids)s::bigint[]) and j.special_use = 'junk' and r.expunged_at is null))
           order by id for no key update""",
        mails,
    )
    # A copy in Junk with no other row in the folders of its owner is where the delivery put it.
    cursor = await connection.execute(
        f"""with moved as (
               update folder_mails r set expunged_at = now(), expunged_as = 'moved', version = j.version + 1
               from inbound i, folders j, folders b
               where i.id = any(%(mail_ids)s::bigint[]) and r.blob_id = i.blob_id and r.mail_id = i.id
                   and r.expunged_at is null and r.flags & {DELETED} = 0
                   and j.id = r.folder_id and j.special_use = 'junk'
                   and b.local_id = j.local_id and b.special_use = 'inbox'
                   and not exists (
                       select from folder_mails o join folders f on f.id = o.folder_id
                       where o.blob_id = r.blob_id and o.mail_id = r.mail_id and f.local_id = j.local_id
                           and (o.folder_id, o.uid) <> (r.folder_id, r.uid))
               returning j.id as junk_id, b.id as inbox_id, b.local_id, r.uid, r.blob_id, r.mail_id, r.octets,
                   r.internal_date, r.flags, r.keywords),
           emptied as (
               update folders set version = version + 1 where id in (select junk_id from moved)),
           changed as (
               update folders f set version = f.version + 1, uidnext = f.uidnext + n.mails
               from (select inbox_id, count(*) as mails from moved group by inbox_id) n
               where f.id = n.inbox_id returning f.id, f.version, f.uidnext - n.mails as uid),
           added as (
               insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version, internal_date, flags,
                   keywords)
               select f.id, f.uid + row_number() over (partition by f.id order by m.uid) - 1, m.blob_id, m.mail_id,
                   m.octets, f.version, m.internal_date, m.flags, m.keywords
               from moved m join changed f on f.id = m.inbox_id order by m.uid)
           select m.mail_id, l.id, l.address from moved m join local_accounts l on l.id = m.local_id
           order by m.mail_id, l.id""",
        mails,
    )
    return [(int(row[0]), int(row[1]), str(row[2])) for row in await cursor.fetchall()]
