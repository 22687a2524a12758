"""What mails are found by, which mail to everyone was answered, and names that nobody has: all SQL on the tables
search_index, shared_mails, unknown_names, search_progress.

Nothing here is on the way of a mail: the console's process reads what has come since, some hundred mails at a time, and
writes down what people will ask for. What is lost is made again from the mails.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg.types.json import Jsonb

from services.admin.formatting import mail_status
from services.admin.mail import answer_notices, header_summary
from services.admin.mail.answer_notices import Answered, AnswerNotice
from services.admin.mail.header_summary import HeaderSummary
from shared import routing
from shared.db.database import Connection, storable
from shared.mime.display_names import normalise
from shared.model import External, Local
from shared.store import accounts, blobs

BATCH = 500
SETTLED_SECONDS = 120
"""A mail is looked at when it has been routed; one that has not been after this time is looked at as it is."""
MAX_NOTICE_AGE = datetime.timedelta(days=1)
"""Nobody is told of an answer that is older."""
PAGE = 50
RARE = 5_000
"""Mails with a word; so many are sorted at once, where there are more the latest are soon found one by one."""
_OCTETS = 32 * 1024
_RECIPIENT_STATES = "array(select distinct r.state from submission_recipients r where r.submission_id = s.id)"
_WORD = re.compile(r"\w+", re.UNICODE)
_TERM_CHARACTERS, _MOST_TERMS = 200, 120


@dataclass(frozen=True, slots=True)
class FoundMail:
    """A mail in a list."""

    id: int
    at: datetime.datetime  # when it arrived or was submitted
    external: str | None  # address of its external account
    sender: str
    subject: str
    sent: bool  # it is a submission
    state: str  # of the mail or submission, as in the database
    status: str  # the same for people


@dataclass(frozen=True, slots=True)
class SharedMail:
    """A mail that went to everyone. author: who answered it, None: nobody has."""

    mail_id: int
    external: str
    at: datetime.datetime
    sender: str
    subject: str
    author: str | None
    answered_at: datetime.datetime | None
    submission_id: int | None


@dataclass(frozen=True, slots=True)
class UnknownName:
    """A name that nobody has. mails: how many were addressed so."""

    external: str
    name: str
    mails: int
    last_mail_id: int
    last_at: datetime.datetime


def index_terms(letter: HeaderSummary, ids: Collection[str]) -> list[str]:
    """What a mail is found by: words of its subject, addresses and names, and its ids. Pure."""
    found: dict[str, None] = {}
    people = [*([letter.sender] if letter.sender else []), *letter.to]
    for text in (*ids, *(mailbox.address for mailbox in people)):
        found[text.casefold()] = None
    for text in (letter.subject, *(mailbox.name or "" for mailbox in people), *(m.address for m in people)):
        for word in _WORD.findall(text.casefold()):
            found[word] = None
    return [storable(term)[:_TERM_CHARACTERS] for term in list(found)[:_MOST_TERMS]]


def query_terms(text: str) -> list[str]:
    """The terms of a search: addresses and ids as a whole, everything else word by word. Pure."""
    wanted: list[str] = []
    for part in storable(text).casefold().split():
        part = part.strip("<>,;\"'()")
        wanted += [part[:_TERM_CHARACTERS]] if "@" in part else _WORD.findall(part)
    return wanted


# ------------------------------------------------------------------------------------------ writing


@dataclass(frozen=True, slots=True)
class IndexedBatch:
    """What was taken in: how many mails. notes: to be announced after the commit."""

    mails: int = 0
    notes: tuple[AnswerNotice, ...] = ()


class _Mail(NamedTuple):
    """A mail that is taken in. sent: it was handed in here, by ``author_id``."""

    id: int
    sent: bool
    external_id: int | None
    blob_id: int
    at: datetime.datetime
    rule: int | None
    message_id: str | None
    author_id: int | None


async def index_next(connection: Connection) -> IndexedBatch:
    """Take the next mails into the catalogue, in a transaction, with the notes that somebody has answered."""
    cursor = await connection.execute("select up_to from search_progress for update skip locked")
    row = await cursor.fetchone()
    if row is None:
        return IndexedBatch()  # another console does it
    mails = await _next(connection, int(row[0]))
    if not mails:
        return IndexedBatch()
    heads = await blobs.prefixes(connection, [mail.blob_id for mail in mails], _OCTETS)
    externals = {e.id: e for e in await accounts.load_externals(connection)}
    sharers = await accounts.load_sharers(
        connection, list({m.external_id for m in mails if m.external_id in externals})
    )
    await _write_terms(connection, mails, heads)
    notes: list[AnswerNotice] = []
    for mail in mails:
        head = heads.get(mail.blob_id, b"")
        if mail.sent:
            for answered in await _note_answer(connection, mail, head):
                notes += await _tell_of(connection, answered, externals, mail, head)
        elif mail.external_id in externals:
            await _note_names(connection, mail, externals[mail.external_id], sharers[mail.external_id], head)
            if mail.rule == 5 and mail.message_id:
                await connection.execute(
                    """insert into shared_mails (mail_id, external_id, message_id, at) values (%s, %s, %s, %s)
                       on conflict do nothing""",
                    (mail.id, mail.external_id, mail.message_id, mail.at),
                )
    await connection.execute("update search_progress set up_to = %s", (mails[-1].id,))
    return IndexedBatch(len(mails), tuple(notes))


async def _next(connection: Connection, after: int) -> list[_Mail]:
    """Mails after this id, up to the first that is too young: one that commits late must not be passed by."""
    cursor = await connection.execute(
        """select id, sent, external_id, blob_id, created_at, rule, message_id, author_id,
                  settled or created_at < now() - make_interval(secs => %(settled)s) as ready,
                  created_at < now() - interval '2 seconds' as old
           from (
               (select id, false as sent, external_id, blob_id, created_at, rule, message_id, author_id,
                       state not in ('fetched', 'routed') as settled
                from inbound where id > %(after)s order by id limit %(most)s)
               union all
               (select id, true, external_id, blob_id, created_at, null, message_id, author_id, true
                from submissions where id > %(after)s order by id limit %(most)s)) m
           order by id limit %(most)s""",
        {"after": after, "most": BATCH, "settled": SETTLED_SECONDS},
    )
    found = []
    for *row, ready, old in await cursor.fetchall():
        if not (ready and old):
            break
        found.append(_Mail(*row))
    return found


async def _write_terms(connection: Connection, mails: Sequence[_Mail], heads: Mapping[int, bytes]) -> None:
    values = []
    for mail in mails:
        letter = header_summary.read_summary(heads.get(mail.blob_id, b""))
        values.append(
            {
                "mail_id": mail.id,
                "at": mail.at.isoformat(),
                "external_id": mail.external_id,
                "sender": storable(letter.author)[:300],
                "subject": storable(letter.subject),
                "terms": index_terms(letter, [mail.message_id] if mail.message_id else []),
            }
        )
    await connection.execute(
        """insert into search_index (mail_id, at, external_id, sender, subject, terms)
           select mail_id, at, external_id, sender, subject, terms
           from jsonb_to_recordset(%s) as r (mail_id bigint, at timestamptz, external_id bigint, sender text,
               subject text, terms text[])
           on conflict (mail_id) do nothing""",
        (Jsonb(values),),
    )


async def _note_answer(connection: Connection, mail: _Mail, head: bytes) -> list[int]:
    """Write down what this mail is the first answer to. :return: the ids of those mails to everyone.

    A word to those who have the mail as well ("can you take this?") is no answer, unless one of them wrote it.
    """
    facts = routing.read_facts(head)
    answered = list(dict.fromkeys((*facts.in_reply_to, *facts.references[-1:])))
    if not answered:
        return []
    cursor = await connection.execute(
        """update shared_mails c set answered_by = %(author)s, answered_at = %(at)s, submission_id = %(id)s
           where message_id = any(%(answered)s) and answered_at is null and exists (
               select from submission_recipients r
                   left join local_accounts l on r.kind = 'local' and l.id = r.target_id
                   left join inbound i on i.id = c.mail_id
               where r.submission_id = %(id)s and case r.kind
                   when 'relay' then true
                   when 'external' then r.target_id <> c.external_id
                   else l.external_id <> c.external_id or l.id = i.author_id end)
           returning mail_id""",
        {"author": mail.author_id, "at": mail.at, "id": mail.id, "answered": [storable(id_) for id_ in answered]},
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def _tell_of(
    connection: Connection,
    answered_id: int,
    externals: Mapping[int, External],
    answer: _Mail,
    head: bytes,
) -> list[AnswerNotice]:
    """Tell the others of an answer, if the account wants that, and the answer is news: a catalogue that is made anew
    tells nobody of last year."""
    if answer.author_id is None or answer.at < datetime.datetime.now(datetime.UTC) - MAX_NOTICE_AGE:
        return []
    cursor = await connection.execute(
        """select c.external_id, c.message_id, coalesce(t.sender, ''), coalesce(t.subject, ''), c.at
           from shared_mails c left join search_index t using (mail_id) where c.mail_id = %s""",
        (answered_id,),
    )
    [(external_id, message_id, sender, subject, came_at)] = await cursor.fetchall()
    external = externals.get(external_id)
    people = await accounts.load_locals(connection, [answer.author_id])
    if external is None or not external.answer_notes or not people:
        return []
    sharers = await accounts.load_sharers(connection, [external_id])
    answered = Answered(
        external.address, message_id, sender, subject, came_at, people[0], header_summary.read_summary(head), answer.at
    )
    return await answer_notices.send_notice(connection, answered, sharers[external_id])


async def _note_names(
    connection: Connection, mail: _Mail, external: External, sharers: list[Local], head: bytes
) -> None:
    for written in routing.unknown_names(routing.read_facts(head), external, sharers):
        name = storable(normalise(written))[:200]
        await connection.execute(
            """insert into unknown_names (external_id, name, shown, mails, last_mail_id, last_at)
               values (%s, %s, %s, 1, %s, %s)
               on conflict (external_id, name) do update set mails = unknown_names.mails + 1,
                   shown = excluded.shown, last_mail_id = excluded.last_mail_id, last_at = excluded.last_at""",
            (external.id, name, storable(" ".join(written.split()))[:200], mail.id, mail.at),
        )


async def delete_purged(connection: Connection, limit: int = 10_000) -> int:
    """Drop what is known of mails that were purged. :return: of how many."""
    cursor = await connection.execute(
        """delete from search_index where mail_id in (
               select mail_id from search_index t
               where not exists (select from inbound i where i.id = t.mail_id)
                 and not exists (select from submissions s where s.id = t.mail_id) limit %s)""",
        (limit,),
    )
    return cursor.rowcount


# ------------------------------------------------------------------------------------------ asking


async def subjects(connection: Connection, ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Who these mails say they are from, and their subjects, by id; one that is not known yet is left out."""
    cursor = await connection.execute(
        "select mail_id, sender, subject from search_index where mail_id = any(%s)", (list(ids),)
    )
    return {id_: (sender, subject) for id_, sender, subject in await cursor.fetchall()}


async def search(
    connection: Connection,
    text: str = "",
    day: datetime.date | None = None,
    before: int | None = None,
    limit: int = PAGE,
) -> list[FoundMail]:
    """Mails with all of these words, of a day (UTC), the latest first."""
    person = await accounts.local_by_login(connection, storable(text.strip())) if "@" in text else None
    external = await accounts.external_by_address(connection, storable(text.strip())) if "@" in text else None
    parameters: dict[str, object] = {
        "before": before,
        "from": day,
        "until": day + datetime.timedelta(days=1) if day else None,
        "limit": limit,
        "terms": query_terms(text),
        "external": external.id if external else None,
        "person": person.id if person else None,
    }
    if person is not None:  # what they got, and what they sent
        chosen = """select r.inbound_id as mail_id from maildrop_mails r where r.local_id = %(person)s
                union select s.id from submissions s where s.author_id = %(person)s"""
        condition = f"t.mail_id in ({chosen})"
    elif external is not None:
        condition = "t.external_id = %(external)s"
    elif parameters["terms"]:
        condition = "t.terms @> %(terms)s::text[]"
        rare = await _rare(connection, parameters)
        if rare is not None:
            parameters["rare"] = rare
            condition = "t.mail_id = any(%(rare)s::bigint[])"
    else:
        condition = "true"
    cursor = await connection.execute(
        f"""select t.mail_id, t.at, e.address, t.sender, t.subject, s.id is not null,
                   coalesce(s.state, i.state), {_RECIPIENT_STATES}
            from search_index t left join external_accounts e on e.id = t.external_id
                left join submissions s on s.id = t.mail_id left join inbound i on i.id = t.mail_id
            where {condition} and (s.id is not null or i.id is not null)
                and (%(before)s::bigint is null or t.mail_id < %(before)s)
                and (%(from)s::date is null or t.at >= %(from)s::date at time zone 'utc'
                                               and t.at < %(until)s::date at time zone 'utc')
            order by t.mail_id desc limit %(limit)s""".encode(),
        parameters,
    )
    return [
        FoundMail(id_, at, address, sender, subject, sent, state, mail_status(state, recipients))
        for id_, at, address, sender, subject, sent, state, recipients in await cursor.fetchall()
    ]


async def load_states(connection: Connection, ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return the state and the status (the word for people) of mails and submissions, by id."""
    cursor = await connection.execute(
        f"""select m.id, coalesce(s.state, i.state), {_RECIPIENT_STATES}
            from unnest(%s::bigint[]) as m (id) left join submissions s using (id) left join inbound i using (id)
            where s.id is not null or i.id is not null""".encode(),
        (list(ids),),
    )
    return {id_: (state, mail_status(state, recipients)) for id_, state, recipients in await cursor.fetchall()}


async def _rare(connection: Connection, parameters: Mapping[str, object]) -> list[int] | None:
    """The mails with these terms, if they are few: the planner knows no word's frequency, and would walk all mails."""
    cursor = await connection.execute(
        "select mail_id from search_index where terms @> %(terms)s::text[] limit %(most)s",
        {"terms": parameters["terms"], "most": RARE + 1},
    )
    found = [row[0] for row in await cursor.fetchall()]
    return found if len(found) <= RARE else None


async def unanswered(connection: Connection, before: int | None = None, limit: int = PAGE) -> list[SharedMail]:
    """Mails to everyone, those that nobody has answered first of all, the oldest first; or what was answered."""
    return await _common(connection, "c.answered_at is null", "c.mail_id > %(before)s", "c.mail_id", before, limit)


async def answered(connection: Connection, before: int | None = None, limit: int = PAGE) -> list[SharedMail]:
    """Mails to everyone that somebody has answered, the latest first."""
    return await _common(
        connection, "c.answered_at is not null", "c.mail_id < %(before)s", "c.mail_id desc", before, limit
    )


async def _common(
    connection: Connection, which: str, place: str, order: str, before: int | None, limit: int
) -> list[SharedMail]:
    cursor = await connection.execute(
        f"""select c.mail_id, e.address, c.at, coalesce(t.sender, ''), coalesce(t.subject, ''), l.user_name,
                   c.answered_at, c.submission_id
            from shared_mails c join external_accounts e on e.id = c.external_id
                left join search_index t on t.mail_id = c.mail_id left join local_accounts l on l.id = c.answered_by
            where {which} and (%(before)s::bigint is null or {place})
            order by {order} limit %(limit)s""".encode(),
        {"before": before, "limit": limit},
    )
    return [SharedMail(*row) for row in await cursor.fetchall()]


async def unknown_names(connection: Connection, limit: int = 200) -> list[UnknownName]:
    """Names that nobody has, the most frequent first; those that somebody has by now are left out."""
    cursor = await connection.execute(
        """select e.address, u.shown, u.mails, u.last_mail_id, u.last_at
           from unknown_names u join external_accounts e on e.id = u.external_id and e.removed_at is null
           order by u.mails desc, u.last_at desc limit %s""",
        (limit,),
    )
    return [UnknownName(*row) for row in await cursor.fetchall()]


async def forget_name(connection: Connection, external_id: int, name: str) -> None:
    """Somebody has this name now, or it is not worth being shown."""
    await connection.execute(
        "delete from unknown_names where external_id = %s and name = %s",
        (external_id, storable(normalise(name))[:200]),
    )
