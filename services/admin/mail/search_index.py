"""The console's search index, and the mails to everyone and their answers: all SQL on the tables search_index,
shared_mails, search_progress.

services/admin/mail/indexing.py fills these tables after delivery, outside the path of a mail. All rows can be built
again from the stored mails.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg.types.json import Jsonb

from services.admin.formatting import mail_status
from services.admin.mail.header_summary import HEAD_OCTETS, HeaderSummary
from shared.db.database import Connection, storable
from shared.store import blobs

SETTLED_SECONDS = 120
"""Indexing waits for the routing of a mail at most: seconds; after that the mail is indexed without its rule."""
PAGE = 50
"""Rows of one page of a list."""
RECIPIENT_STATES = "array(select distinct r.state from submission_recipients r where r.submission_id = s.id)"
"""SQL: the states of the recipients of the submission s."""
_WORD = re.compile(r"\w+", re.UNICODE)
_TERM_CHARACTERS, _MAX_TERMS, _MAX_RECIPIENTS = 200, 120, 1000
ANSWERED_BY_ONE = 50
"""Limit of mails with the same Message-ID that one answer marks as answered, latest first; only forgery makes two."""
NOT_INDEXED = "(not indexed)"
"""Subject of a mail whose header could not be read in time."""


@dataclass(frozen=True, slots=True)
class SharedMail:
    """A mail that went to everyone who shares an external account."""

    mail_id: int
    external: str  # address of the external account
    at: datetime.datetime  # when it arrived
    sender: str
    subject: str
    author: str | None  # user name of the person who answered it; None: unanswered
    answered_at: datetime.datetime | None
    submission_id: int | None  # of the answer


def index_terms(summary: HeaderSummary, ids: Collection[str], recipients: Sequence[str] = ()) -> list[str]:
    """Return the search terms of a mail: words of its subject, addresses and names, and its ids. Pure.

    :param recipients: of its envelope; those of Bcc are in no header.
    """
    people = [*([summary.sender] if summary.sender else []), *summary.to]
    terms = dict.fromkeys(text.casefold() for text in (*ids, *(mailbox.address for mailbox in people)))
    for text in (summary.subject, *(mailbox.name or "" for mailbox in people), *(m.address for m in people)):
        if len(terms) >= _MAX_TERMS:
            break
        terms |= dict.fromkeys(_WORD.findall(text.casefold()))
    chosen = dict.fromkeys([*list(terms)[:_MAX_TERMS], *(each.casefold() for each in recipients[:_MAX_RECIPIENTS])])
    return [storable(term)[:_TERM_CHARACTERS] for term in chosen if term]


def query_terms(text: str) -> list[str]:
    """Return the terms of a search text: addresses and ids as a whole, the rest split into words. Pure."""
    terms: list[str] = []
    for part in storable(text).casefold().split():
        part = part.strip("<>,;\"'()")
        terms += [part[:_TERM_CHARACTERS]] if "@" in part else _WORD.findall(part)
    return terms


# ------------------------------------------------------------------------------------------ indexing


class NewMail(NamedTuple):
    """A mail or a submission that is to be indexed."""

    id: int
    sent: bool  # it is a submission
    external_id: int | None
    blob_id: int
    at: datetime.datetime  # when it arrived or was submitted
    rule: int | None  # of routing; None: a submission, or not routed yet
    message_id: str | None
    author_id: int | None  # the local account that submitted it
    head: bytes  # the beginning of the mail


async def lock_progress(connection: Connection) -> int | None:
    """Lock the position of the index until the end of the transaction.

    :return: id of the last indexed mail; None: another process has the lock.
    """
    cursor = await connection.execute("select up_to from search_progress for update skip locked")
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def save_progress(connection: Connection, last_id: int) -> None:
    """Store the id of the last indexed mail."""
    await connection.execute("update search_progress set up_to = %s", (last_id,))


class ReadMail(NamedTuple):
    """A mail with what its header says."""

    mail: NewMail
    summary: HeaderSummary
    terms: list[str]  # of the search index
    unknown_names: list[str]  # names that no sharer has
    answers: list[str]  # Message-IDs of the mails that it answers


async def load_new_mails(connection: Connection, after: int, limit: int) -> list[NewMail]:
    """Load the mails after this id, up to the first one that is too young: an older id may still be uncommitted."""
    cursor = await connection.execute(
        """select id, sent, external_id, blob_id, created_at, rule, message_id, author_id,
                  settled or created_at < now() - make_interval(secs => %(settled)s) as ready,
                  created_at < now() - interval '2 seconds' as old
           from (
               (select id, false as sent, external_id, blob_id, created_at, rule, message_id, author_id,
                       state not in ('fetched', 'routed') as settled
                from inbound where id > %(after)s order by id limit %(limit)s)
               union all
               (select id, true, external_id, blob_id, created_at, null, message_id, author_id, true
                from submissions where id > %(after)s order by id limit %(limit)s)) m
           order by id limit %(limit)s""",
        {"after": after, "limit": limit, "settled": SETTLED_SECONDS},
    )
    rows = []
    for *row, ready, old in await cursor.fetchall():
        if not (ready and old):
            break
        rows.append(row)
    heads = await blobs.prefixes(connection, [row[3] for row in rows], HEAD_OCTETS) if rows else {}
    return [NewMail._make((*row, heads.get(row[3], b""))) for row in rows]


async def write_terms(connection: Connection, mails: Sequence[ReadMail]) -> None:
    """Add these mails to the search index."""
    values = [
        {
            "mail_id": mail.id,
            "at": mail.at.isoformat(),
            "external_id": mail.external_id,
            "sender": storable(summary.author)[:300],
            "subject": storable(summary.subject),
            "terms": terms,
        }
        for mail, summary, terms, *_ in mails
    ]
    await connection.execute(
        """insert into search_index (mail_id, at, external_id, sender, subject, terms)
           select mail_id, at, external_id, sender, subject, terms
           from jsonb_to_recordset(%s) as r (mail_id bigint, at timestamptz, external_id bigint, sender text,
               subject text, terms text[])
           on conflict (mail_id) do nothing""",
        (Jsonb(values),),
    )


async def write_unread(connection: Connection, mail: NewMail) -> None:
    """Add a mail without any term: lists show it as not indexed, and its id or account finds it."""
    await connection.execute(
        """insert into search_index (mail_id, at, external_id, sender, subject, terms)
           values (%s, %s, %s, '', %s, '{}') on conflict (mail_id) do nothing""",
        (mail.id, mail.at, mail.external_id, NOT_INDEXED),
    )


async def add_shared_mail(connection: Connection, mail: NewMail) -> None:
    """Record a mail that went to everyone who shares its external account."""
    await connection.execute(
        """insert into shared_mails (mail_id, external_id, message_id, at) values (%s, %s, %s, %s)
           on conflict do nothing""",
        (mail.id, mail.external_id, mail.message_id, mail.at),
    )


async def mark_answered(connection: Connection, answer: NewMail, message_ids: Collection[str]) -> list[int]:
    """Mark the unanswered shared mails with these Message-IDs as answered by this submission.

    A mail to other sharers ("can you answer this?") is no answer, unless one of them wrote the shared mail.

    :return: the ids of the mails that were marked.
    """
    cursor = await connection.execute(
        """update shared_mails c set answered_by = %(author)s, answered_at = %(at)s, submission_id = %(id)s
           where mail_id in (select mail_id from shared_mails
                             where message_id = any(%(answered)s) and answered_at is null
                             order by mail_id desc limit %(limit)s) and exists (
               select from submission_recipients r
                   left join local_accounts l on r.kind = 'local' and l.id = r.target_id
                   left join inbound i on i.id = c.mail_id
               where r.submission_id = %(id)s and case r.kind
                   when 'relay' then true
                   when 'external' then r.target_id <> c.external_id
                   else l.external_id <> c.external_id or l.id = i.author_id end)
           returning mail_id""",
        {
            "author": answer.author_id,
            "at": answer.at,
            "id": answer.id,
            "answered": [storable(message_id) for message_id in message_ids],
            "limit": ANSWERED_BY_ONE,
        },
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def load_shared_mail(connection: Connection, mail_id: int) -> tuple[int, str, str, str, datetime.datetime]:
    """Return external account id, Message-ID, sender, subject and time of arrival of a shared mail that exists."""
    cursor = await connection.execute(
        """select c.external_id, c.message_id, coalesce(t.sender, ''), coalesce(t.subject, ''), c.at
           from shared_mails c left join search_index t using (mail_id) where c.mail_id = %s""",
        (mail_id,),
    )
    [(external_id, message_id, sender, subject, at)] = await cursor.fetchall()
    return external_id, message_id, sender, subject, at


# ------------------------------------------------------------------------------------------ purging


async def purge_index(connection: Connection, after: int, limit: int) -> tuple[int, int | None]:
    """Delete the rows of purged mails, among the next ``limit`` rows after this id.

    :return: their number; and the id to continue after, None at the end.
    """
    cursor = await connection.execute(
        """with next as materialized (
               select mail_id from search_index where mail_id > %(after)s order by mail_id limit %(limit)s),
           gone as (
               delete from search_index t using next where t.mail_id = next.mail_id
                   and not exists (select from inbound i where i.id = t.mail_id)
                   and not exists (select from submissions s where s.id = t.mail_id)
               returning t.mail_id)
           select (select max(mail_id) from next), (select count(*) from gone)""",
        {"after": after, "limit": limit},
    )
    last, count = await cursor.fetchone() or (None, 0)
    return int(count), last


# ------------------------------------------------------------------------------------------ queries


async def subjects(connection: Connection, ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return sender and subject of these mails, by id; mails that are not indexed yet are left out."""
    cursor = await connection.execute(
        "select mail_id, sender, subject from search_index where mail_id = any(%s)", (list(ids),)
    )
    return {mail_id: (sender, subject) for mail_id, sender, subject in await cursor.fetchall()}


async def matching(connection: Connection, ids: Collection[int], text: str) -> set[int]:
    """Return those of these mails that have all terms of a search text."""
    cursor = await connection.execute(
        "select mail_id from search_index where mail_id = any(%s) and terms @> %s::text[]",
        (list(ids), query_terms(text)),
    )
    return {int(row[0]) for row in await cursor.fetchall()}


class TracedMail(NamedTuple):
    """A mail or a submission with its state and its headline."""

    at: datetime.datetime  # when it arrived or was submitted
    message_id: str | None
    sender: str  # '' until it is indexed, as the subject
    subject: str
    state: str  # as in the database
    status: str  # the same for people


async def load_mails(connection: Connection, ids: Collection[int]) -> dict[int, TracedMail]:
    """Load mails and submissions, by id."""
    cursor = await connection.execute(
        f"""select m.id, coalesce(s.created_at, i.created_at), coalesce(s.message_id, i.message_id),
                   coalesce(t.sender, ''), coalesce(t.subject, ''), coalesce(s.state, i.state), {RECIPIENT_STATES}
            from unnest(%s::bigint[]) as m (id) left join submissions s using (id) left join inbound i using (id)
                left join search_index t on t.mail_id = m.id
            where s.id is not null or i.id is not null""".encode(),
        (list(ids),),
    )
    return {
        mail_id: TracedMail(at, message_id, sender, subject, state, mail_status(state, recipients))
        for mail_id, at, message_id, sender, subject, state, recipients in await cursor.fetchall()
    }


async def unanswered(connection: Connection, before: int | None = None, limit: int = PAGE) -> list[SharedMail]:
    """Return the mails to everyone that are unanswered, the oldest first."""
    return await _list_shared(connection, "c.answered_at is null", "c.mail_id > %(before)s", "c.mail_id", before, limit)


async def answered(connection: Connection, before: int | None = None, limit: int = PAGE) -> list[SharedMail]:
    """Return the mails to everyone that are answered, the latest first."""
    return await _list_shared(
        connection, "c.answered_at is not null", "c.mail_id < %(before)s", "c.mail_id desc", before, limit
    )


async def _list_shared(
    connection: Connection, condition: str, page: str, order: str, before: int | None, limit: int
) -> list[SharedMail]:
    cursor = await connection.execute(
        f"""select c.mail_id, e.address, c.at, coalesce(t.sender, ''), coalesce(t.subject, ''), l.user_name,
                   c.answered_at, c.submission_id
            from shared_mails c join external_accounts e on e.id = c.external_id
                left join search_index t on t.mail_id = c.mail_id left join local_accounts l on l.id = c.answered_by
            where {condition} and (%(before)s::bigint is null or {page})
            order by {order} limit %(limit)s""".encode(),
        {"before": before, "limit": limit},
    )
    return [SharedMail(*row) for row in await cursor.fetchall()]
