"""Message-IDs of sent mail with their authors, and all SQL on them (table sent_mail)."""

from __future__ import annotations

import datetime
from collections.abc import Collection

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.model import Sent

AUTHORSHIP_YEARS = 5
"""Age up to which the author of a Message-ID is known, in years."""


async def add_sent(connection: Connection, rows: Collection[tuple[str, int, int, int]]) -> None:
    """Record authors: (message_id, external_id, author_id, submission_id). A Message-ID keeps its first author."""
    first: dict[tuple[str, int], tuple[int, int]] = {}
    for message_id, external_id, author_id, submission_id in rows:
        first.setdefault((message_id, external_id), (author_id, submission_id))
    keys = sorted(first)  # one order for all writers: no deadlock on ids that two of them insert
    await connection.execute(
        """insert into sent_mail (message_id, external_id, author_id, submission_id)
           select * from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[])
           on conflict (message_id, external_id) do nothing""",
        (
            [key[0] for key in keys],
            [key[1] for key in keys],
            [first[key][0] for key in keys],
            [first[key][1] for key in keys],
        ),
    )


FROM_NEW = """insert into sent_mail (message_id, external_id, author_id, submission_id)
    select distinct on (message_id, external_id) message_id, external_id, author_id, id from new
    order by message_id, external_id, place
    on conflict (message_id, external_id) do nothing"""
"""SQL: ``add_sent`` for the submissions in ``new``, as a part of a larger statement; in the same order."""


async def add_further(connection: Connection, further: Collection[tuple[str, str, int]]) -> None:
    """Record Message-IDs that a provider gave to our mails: (id known here, further id, id of the external account)."""
    if further:
        rows = sorted(further)
        await connection.execute(
            """insert into sent_mail (message_id, external_id, author_id, submission_id)
               select f.further_id, a.external_id, a.author_id, a.submission_id
               from unnest(%s::text[], %s::text[], %s::bigint[]) as f (message_id, further_id, external_id)
                   join sent_mail a using (message_id, external_id)
               on conflict (message_id, external_id) do nothing""",
            ([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]),
        )


async def find_sent(connection: Connection, message_ids: Collection[str]) -> dict[str, list[Sent]]:
    """Find the mails with these Message-IDs that we sent within AUTHORSHIP_YEARS, the earliest first."""
    if not message_ids:
        return {}
    cursor = await connection.execute(
        """select a.message_id, a.external_id, a.author_id,
                  array(select lower(r.address) from submission_recipients r where r.submission_id = a.submission_id),
                  (select s.blob_id from submissions s where s.id = a.submission_id)
           from sent_mail a
           where a.message_id = any(%s::text[]) and a.recorded_at > now() - make_interval(years => %s)
           order by a.recorded_at, a.submission_id""",
        (array_literal(set(message_ids)), AUTHORSHIP_YEARS),
    )
    sent: dict[str, list[Sent]] = {}
    for message_id, external_id, author_id, recipients, blob_id in await cursor.fetchall():
        sent.setdefault(message_id, []).append(Sent(message_id, external_id, author_id, tuple(recipients), blob_id))
    return sent


async def purge_authorship(connection: Connection, before: datetime.datetime, limit: int) -> int:
    """Delete authors recorded before this time. :return: the number of Message-IDs."""
    cursor = await connection.execute(
        """delete from sent_mail where (message_id, external_id) in (
               select message_id, external_id from sent_mail where recorded_at < %s limit %s)""",
        (before, limit),
    )
    return cursor.rowcount
