"""Message-IDs of sent mail with their authors, and all SQL on them (table sent_mail).

A Message-ID keeps its first author. One that came in from outside before we sent it has none: otherwise a person who
submits a customer's Message-ID would get the answers in the customer's thread. The table ``inbound`` tells which ids
came in; when its rows are purged, a row without an author keeps the id here.

If a provider names its new id by a token, the token is recorded (``sent_key`` in shared/mime/provider_ids.py).
"""

from __future__ import annotations

import datetime
from collections.abc import Collection

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.model import Sent

AUTHORSHIP_YEARS = 5
"""Age up to which the author of a Message-ID is known, in years."""
OUTSIDE_YEARS = 1
"""Age up to which an id from outside is kept after its mail is purged, in years: few threads pause for longer, and
there are as many of these rows as fetched mails."""

_MAY_RECORD = """case
    when (select o.recorded_at from sent_mail o where o.message_id = {id} and o.external_id = {external_id}) is not null
    then false
    else (
            select i.id from inbound i
            where i.message_id = {id} and i.source || '' = 'fetched' and i.created_at < {sent_at} limit 1) is null
        and (select o.external_id from sent_mail o where o.message_id = {id} and o.author_id is null limit 1) is null
    end"""
"""SQL: this id is not recorded yet, and no mail from outside had it before we sent it. An author who uses one id again
and again thus causes no search in the mails inside that have it. A plan made in quiet times has to find the id by its
index, too: so this is no ``not exists``, which PostgreSQL may turn into a join, and the source is no condition of an
index."""


_SENT_AT = "coalesce(s.created_at, now())"


async def add_sent(connection: Connection, rows: Collection[tuple[str, int, int, int]]) -> None:
    """Record authors: (message_id, external_id, author_id, submission_id)."""
    first: dict[tuple[str, int], tuple[int, int]] = {}
    for message_id, external_id, author_id, submission_id in rows:
        first.setdefault((message_id, external_id), (author_id, submission_id))
    keys = sorted(first)  # one order for all writers: no deadlock on ids that two of them insert
    await connection.execute(
        f"""insert into sent_mail (message_id, external_id, author_id, submission_id)
            select new.* from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[])
                as new (message_id, external_id, author_id, submission_id)
            left join submissions s on s.id = new.submission_id
            where {_MAY_RECORD.format(id="new.message_id", external_id="new.external_id", sent_at=_SENT_AT)}
            order by 1, 2
            on conflict (message_id, external_id) do nothing""",
        (
            [key[0] for key in keys],
            [key[1] for key in keys],
            [first[key][0] for key in keys],
            [first[key][1] for key in keys],
        ),
    )


FROM_NEW = f"""insert into sent_mail (message_id, external_id, author_id, submission_id)
    select distinct on (message_id, external_id) message_id, external_id, author_id, id from new
    where {_MAY_RECORD.format(id="new.message_id", external_id="new.external_id", sent_at="now()")}
    order by message_id, external_id, place
    on conflict (message_id, external_id) do nothing"""
"""SQL: ``add_sent`` for the submissions in ``new``, as a part of a larger statement; in the same order."""

FROM_PURGED = """insert into sent_mail (message_id, external_id)
    select distinct message_id, external_id from purged
    where source = 'fetched' and message_id is not null and external_id is not null
        and (select o.author_id from sent_mail o where o.message_id = purged.message_id limit 1) is null
    order by message_id, external_id
    on conflict (message_id, external_id) do nothing"""
"""SQL: keeps the ids of the mails in ``purged`` that we did not send, as a part of a larger statement."""


async def add_further(connection: Connection, further: Collection[tuple[str, str, int]]) -> None:
    """Record Message-IDs that a provider gave to our mails: (id known here, further id, id of the external account)."""
    if further:
        rows = sorted(further)
        await connection.execute(
            f"""insert into sent_mail (message_id, external_id, author_id, submission_id)
                select f.further_id, a.external_id, a.author_id, a.submission_id
                from unnest(%s::text[], %s::text[], %s::bigint[]) as f (message_id, further_id, external_id)
                    join sent_mail a using (message_id, external_id)
                where a.author_id is not null
                    and {_MAY_RECORD.format(id="f.further_id", external_id="a.external_id", sent_at="a.recorded_at")}
                order by 1, 2
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
           where a.message_id = any(%s::text[]) and a.author_id is not null
               and a.recorded_at > now() - make_interval(years => %s)
           order by a.recorded_at, a.submission_id""",
        (array_literal(set(message_ids)), AUTHORSHIP_YEARS),
    )
    sent: dict[str, list[Sent]] = {}
    for message_id, external_id, author_id, recipients, blob_id in await cursor.fetchall():
        sent.setdefault(message_id, []).append(Sent(message_id, external_id, author_id, tuple(recipients), blob_id))
    return sent


async def purge_authorship(connection: Connection, now: datetime.datetime, limit: int) -> int:
    """Delete what is older than AUTHORSHIP_YEARS, and ids from outside older than OUTSIDE_YEARS.

    :param limit: of rows. :return: the number of rows.
    """
    cursor = await connection.execute(
        """delete from sent_mail where (message_id, external_id) in (
               select message_id, external_id from sent_mail
               where recorded_at < %s or author_id is null and recorded_at < %s limit %s)""",
        (*(now - datetime.timedelta(days=366 * years) for years in (AUTHORSHIP_YEARS, OUTSIDE_YEARS)), limit),
    )
    return cursor.rowcount
