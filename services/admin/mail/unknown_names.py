"""Names beside the address of an external account that none of its sharers has, and all SQL on them (table
unknown_names).

Outsiders write these names. Their number is limited for each mail and for each account, and a name that no mail has had
for some months is purged.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from services.admin.mail.search_index import ReadMail
from shared.db.database import Connection, storable
from shared.mime.display_names import normalise

NAMES_OF_MAIL = 5
"""Names of a mail that are counted, at most."""
NAMES_OF_ACCOUNT = 500
"""Names of an external account that are kept, at most: the half with the most mails, and the half with the latest."""
PAGE = 50
"""Names that are shown."""
_NAME_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class UnknownName:
    """A name in mails to an external account that no sharer has."""

    external: str  # address of the external account
    name: str  # as the latest mail writes it
    mails: int  # number of mails that are addressed to it
    last_mail_id: int
    last_at: datetime.datetime


async def count_names(connection: Connection, mails: Sequence[ReadMail]) -> None:
    """Count the mails that are addressed to names that no sharer of their external account has.

    The number of names is limited for each mail and for each account, because outsiders make them up.
    """
    rows: dict[tuple[int, str], tuple[str, int, int, datetime.datetime]] = {}  # shown, mails, last mail, its time
    for mail, _, _, names, _ in mails:
        for name in names[:NAMES_OF_MAIL] if mail.external_id is not None else ():
            key = (mail.external_id or 0, _stored_name(name))
            shown = storable(" ".join(name.split()))[:_NAME_CHARACTERS]
            rows[key] = (shown, rows[key][1] + 1 if key in rows else 1, mail.id, mail.at)
    if not rows:
        return
    columns = [[*column] for column in zip(*((*key, *row) for key, row in rows.items()), strict=True)]
    await connection.execute(
        """insert into unknown_names (external_id, name, shown, mails, last_mail_id, last_at)
           select * from unnest(%s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::timestamptz[])
           on conflict (external_id, name) do update set mails = unknown_names.mails + excluded.mails,
               shown = excluded.shown, last_mail_id = excluded.last_mail_id, last_at = excluded.last_at""",
        columns,
    )
    await connection.execute(
        """delete from unknown_names u using (
               select external_id, name,
                      row_number() over (partition by external_id order by mails desc, last_at desc) as by_mails,
                      row_number() over (partition by external_id order by last_at desc, mails desc) as by_time
               from unknown_names where external_id = any(%s)) ranked
           where u.external_id = ranked.external_id and u.name = ranked.name
               and ranked.by_mails > %s and ranked.by_time > %s""",
        (sorted({external_id for external_id, _ in rows}), NAMES_OF_ACCOUNT // 2, NAMES_OF_ACCOUNT // 2),
    )


def _stored_name(name: str) -> str:
    return storable(normalise(name))[:_NAME_CHARACTERS]


async def purge_names(connection: Connection, before: datetime.datetime, limit: int) -> int:
    """Delete unknown names that no mail has had since this time. :return: their number."""
    cursor = await connection.execute(
        """delete from unknown_names where (external_id, name) in (
               select external_id, name from unknown_names where last_at < %s limit %s)""",
        (before, limit),
    )
    return cursor.rowcount


async def list_names(connection: Connection, limit: int = PAGE) -> list[UnknownName]:
    """Return the names that no sharer has, the most frequent first."""
    cursor = await connection.execute(
        """select e.address, u.shown, u.mails, u.last_mail_id, u.last_at
           from unknown_names u join external_accounts e on e.id = u.external_id and e.removed_at is null
           order by u.mails desc, u.last_at desc limit %s""",
        (limit,),
    )
    return [UnknownName(*row) for row in await cursor.fetchall()]


async def forget_name(connection: Connection, external_id: int, name: str) -> None:
    """Delete an unknown name: a person has it now, or the operator hides it."""
    await connection.execute(
        "delete from unknown_names where external_id = %s and name = %s",
        (external_id, _stored_name(name)),
    )
