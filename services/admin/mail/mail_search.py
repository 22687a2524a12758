"""The search of mail: by words and addresses, recipient, result, account and day, the latest mail first.

Each word of a search is the beginning of a word of subject, names or addresses. A condition that few mails satisfy
finds their ids by an index first; the others are checked while the index on the id is read from the latest mail on.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.admin.formatting import mail_status, thousands
from services.admin.mail.search_index import PAGE, RECIPIENT_STATES, query_terms
from shared.db.database import Connection, storable
from shared.languages.translation import gettext
from shared.store import accounts

RARE = 5_000
"""Mails with the terms of a search: up to this number all are sorted; if there are more, the latest are found fast
by the index on the id."""
PREFIX_CHARACTERS = 3
"""Shortest beginning of a word that finds longer words: characters; a shorter one would match half of all mails."""
MAX_PEOPLE = 50
"""People whose name or address begins with the text of the filter for recipients, at most."""
SHOWN_RECIPIENTS = 3
"""Recipients of a mail that a list has; of more, their number."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a search is for; an empty field matches every mail."""

    text: str = ""  # words, addresses or ids; one account's address finds its mails
    day: datetime.date | None = None
    zone: str = ""  # IANA name of the time zone of the day; '' or unknown: UTC
    to: str = ""  # beginning of the address of a recipient, or of the name of a person
    result: str = ""  # one of formatting.MAIL_RESULTS
    account: str = ""  # address of an external account


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
    recipients: Sequence[str]  # the first addresses that get it
    further: int  # number of the other recipients


class _Result(NamedTuple):
    """How mails with a result are found. A mail arrived (``inbound i``) or was sent (``submissions s``)."""

    arrived: str = ""  # condition of arrived mail; '': none has this result
    sent: str = ""  # condition of sent mail; '': none has this result
    ids: str = ""  # query of the ids of all mails that may have it; '': they are many


def _recipients(condition: str) -> str:
    """As a subquery with an aggregate: PostgreSQL would read the recipients of all mails for an ``exists`` in an OR."""
    return f"(select {condition} from submission_recipients r where r.submission_id = s.id)"


def _inbound(states: str) -> str:
    return f"select id from inbound where state in ({states})"


def _submissions(states: str) -> str:
    return f"select id from submissions where state <> 'done' and state in ({states})"


def _ended(state: str) -> str:
    return f"select submission_id from submission_recipients where state = '{state}'"


_FAILED, _CANCELLED = _recipients("bool_or(r.state = 'failed')"), _recipients("bool_or(r.state = 'cancelled')")
_DELIVERED = _recipients("bool_and(r.state = 'delivered')")
_SENT = _recipients(
    "coalesce(bool_or(r.state = 'relayed') and not bool_or(r.state in ('waiting', 'failed', 'cancelled')), true)"
)
_PARKED, _DISCARDED = "'parked'", "'discarded'"
_WAITING_IN, _WAITING_OUT = "'fetched', 'routed'", "'submitted', 'queued', 'claimed', 'sent_unanswered'"
_RESULTS: dict[str, _Result] = {
    "waiting": _Result(
        f"i.state in ({_WAITING_IN})",
        f"s.state in ({_WAITING_OUT})",
        f"{_inbound(_WAITING_IN)} union all {_submissions(_WAITING_OUT)}",
    ),
    "on hold": _Result("i.state = 'held'", "", _inbound("'held'")),
    "needs attention": _Result(
        "i.state = 'parked'", "s.state = 'parked'", f"{_inbound(_PARKED)} union all {_submissions(_PARKED)}"
    ),
    "delivered": _Result(
        "i.state = 'delivered'", f"s.state = 'done' and s.id in ({_ended('delivered')}) and {_DELIVERED}"
    ),
    "sent": _Result("", f"s.state = 'done' and {_SENT}"),
    "failed": _Result("", f"s.state = 'done' and {_FAILED}", _ended("failed")),
    "cancelled": _Result(
        "i.state = 'discarded'",
        f"s.state = 'done' and {_CANCELLED} and not {_FAILED}",
        f"{_inbound(_DISCARDED)} union all " + _ended("cancelled"),
    ),
}
"""How mails with each of formatting.MAIL_RESULTS are found."""


@dataclass(frozen=True, slots=True)
class PreparedSearch:
    """A filter as SQL. To make it once for a list and its number matters: a frequent word costs much of both."""

    conditions: list[str]
    result: _Result | None
    parameters: dict[str, Any]
    rare: int | None  # number of mails with the terms, if it is the only condition and they are few
    only_terms: bool  # the terms are the only condition


async def search(
    connection: Connection, wanted: Filter | PreparedSearch, before: int | None = None, limit: int = PAGE
) -> list[FoundMail]:
    """Return the mails that match, the latest first. :param before: only mails with a smaller id."""
    query = wanted if isinstance(wanted, PreparedSearch) else await prepare(connection, wanted)
    cursor = await connection.execute(
        f"""select t.mail_id, t.at, e.address, t.sender, t.subject, s.id is not null,
                   coalesce(s.state, i.state), {RECIPIENT_STATES},
                   case when s.id is null then array(
                       select l.address from deliveries d join local_accounts l on l.id = d.local_id
                       where d.inbound_id = t.mail_id order by l.address limit {SHOWN_RECIPIENTS})
                   else array(select r.address from submission_recipients r where r.submission_id = s.id
                              order by r.position limit {SHOWN_RECIPIENTS}) end,
                   case when s.id is null then (select count(*) from deliveries d where d.inbound_id = t.mail_id)
                   else (select count(*) from submission_recipients r where r.submission_id = s.id) end
            from search_index t left join external_accounts e on e.id = t.external_id
                left join submissions s on s.id = t.mail_id left join inbound i on i.id = t.mail_id
            where t.mail_id = any(array(
                select mail_id from ({_ids(query)}) found order by mail_id desc limit %(limit)s))
            order by t.mail_id desc""".encode(),
        query.parameters | {"before": before, "limit": limit},
    )
    return [
        FoundMail(id_, at, external, sender, subject, sent, state, mail_status(state, states), first, all_ - len(first))
        for id_, at, external, sender, subject, sent, state, states, first, all_ in await cursor.fetchall()
    ]


def _ids(query: PreparedSearch) -> str:
    """Return the SQL of the ids of the mails that match, at most %(limit)s of each kind, before %(before)s.

    Arrived and sent mail with a result are found apart: either of the two may be far behind the latest of the other.
    """
    if query.result is None:
        return _ids_of(
            query,
            "left join submissions s on s.id = t.mail_id left join inbound i on i.id = t.mail_id",
            "(s.id is not null or i.id is not null)",
        )
    kinds = [
        _ids_of(query, f"join {table} on {id_} = t.mail_id", condition)
        for table, id_, condition in (
            ("inbound i", "i.id", query.result.arrived),
            ("submissions s", "s.id", query.result.sent),
        )
        if condition
    ]
    return " union all ".join(kinds)


def _ids_of(query: PreparedSearch, joined: str, condition: str) -> str:
    where = " and ".join([*query.conditions, condition])
    return f"""(select t.mail_id from search_index t {joined}
                where {where} and (%(before)s::bigint is null or t.mail_id < %(before)s)
                order by t.mail_id desc limit %(limit)s)"""


async def count(connection: Connection, wanted: Filter, query: PreparedSearch) -> str | None:
    """Return the number of mails that match, in words; None if it is not known without reading all of them.

    :param query: what ``prepare`` returned for ``wanted``.
    """
    if wanted == Filter():
        cursor = await connection.execute("select reltuples::bigint from pg_class where oid = 'search_index'::regclass")
        [(rows,)] = await cursor.fetchall()
        return (
            gettext("about %(number)s", number=thousands(rows)) if rows > RARE else await _count_some(connection, query)
        )
    if query.only_terms:
        return gettext("more than %(number)s", number=thousands(RARE)) if query.rare is None else thousands(query.rare)
    of_result = Filter(result=wanted.result) == wanted and query.result is not None and bool(query.result.ids)
    of_account = Filter(account=wanted.account) == wanted
    return await _count_some(connection, query) if of_result or of_account else None


async def _count_some(connection: Connection, query: PreparedSearch) -> str:
    cursor = await connection.execute(
        f"select count(*) from ({_ids(query)}) found".encode(),
        query.parameters | {"before": None, "limit": RARE + 1},
    )
    [(number,)] = await cursor.fetchall()
    return thousands(number) if number <= RARE else gettext("more than %(number)s", number=thousands(RARE))


async def prepare(connection: Connection, wanted: Filter) -> PreparedSearch:
    """Look up what a search needs: accounts, people, and the mails with its terms if they are few."""
    conditions, parameters = ["true"], dict[str, Any]()
    rare, only_terms = None, False
    if wanted.text.strip():
        rare, only_terms = await _add_text(connection, wanted, conditions, parameters)
        only_terms = only_terms and Filter(text=wanted.text) == wanted
    if wanted.account:
        external = await accounts.external_by_address(connection, storable(wanted.account.strip()))
        conditions.append("t.external_id = %(account)s")
        parameters["account"] = external.id if external else None
    if wanted.to.strip():
        await _add_recipient(connection, storable(wanted.to.strip()), conditions, parameters)
    result = _RESULTS.get(wanted.result, _Result("false")) if wanted.result else None
    if result is not None and result.ids:
        conditions.append(f"t.mail_id = any(array({result.ids}))")
    if wanted.day is not None:
        conditions.append("t.at >= %(from)s and t.at < %(until)s")
        parameters["from"], parameters["until"] = day_limits(wanted.day, wanted.zone)
    return PreparedSearch(conditions, result, parameters, rare, only_terms)


async def _add_text(
    connection: Connection, wanted: Filter, conditions: list[str], parameters: dict[str, Any]
) -> tuple[int | None, bool]:
    """:return: number of mails with the terms, None if they are many; whether the text was searched by terms."""
    text = storable(wanted.text.strip())
    person = await accounts.local_by_login(connection, text) if "@" in text else None
    external = await accounts.external_by_address(connection, text) if "@" in text else None
    if person is not None:
        parameters["person"] = person.id
        conditions.append(
            """t.mail_id in (select r.mail_id from folders f join folder_mails r on r.folder_id = f.id
                             where f.local_id = %(person)s
                             union select s.id from submissions s where s.author_id = %(person)s)"""
        )
        return None, False
    if external is not None:
        parameters["external"] = external.id
        conditions.append("t.external_id = %(external)s")
        return None, False
    if not query_terms(text):
        return None, False
    parameters["terms"] = prefix_query(text)
    ids = await _find_rare(connection, parameters["terms"])
    if ids is None:
        conditions.append(f"{_TERMS} @@ %(terms)s::tsquery")
        return None, True
    parameters["rare"] = ids
    conditions.append("t.mail_id = any(%(rare)s::bigint[])")
    return len(ids), True


async def _add_recipient(connection: Connection, text: str, conditions: list[str], parameters: dict[str, Any]) -> None:
    """Only mails that a person got whose name or address begins with the text, or that we sent to such an address."""
    cursor = await connection.execute(
        """select id from local_accounts where removed_at is null
               and (starts_with(lower(address), lower(%(to)s)) or starts_with(lower(user_name), lower(%(to)s)))
           order by lower(address) limit %(limit)s""",
        {"to": text, "limit": MAX_PEOPLE},
    )
    parameters |= {"people": [row[0] for row in await cursor.fetchall()], "to": text, "to_terms": prefix_query(text)}
    conditions.append(
        f"""t.mail_id = any(array(
                select r.mail_id from folders f join folder_mails r on r.folder_id = f.id
                    join delivered d on d.inbound_id = r.mail_id and d.local_id = f.local_id
                where f.local_id = any(%(people)s)
                union select t.mail_id from search_index t join submissions s on s.id = t.mail_id
                where {_TERMS} @@ %(to_terms)s::tsquery and exists (
                    select from submission_recipients r where r.submission_id = s.id
                        and starts_with(lower(r.address), lower(%(to)s)))))"""
    )


_TERMS = "array_to_tsvector(array_remove(t.terms, ''))"
"""The terms of a mail as they are indexed for beginnings of words (index search_index_prefixes)."""


def prefix_query(text: str) -> str:
    """Return the tsquery that finds mails with terms that begin with all terms of a text. Pure."""
    terms = (term.replace("\\", "\\\\").replace("'", "''") for term in query_terms(text))
    return " & ".join(f"'{term}'{':*' if len(term) >= PREFIX_CHARACTERS else ''}" for term in terms)


def day_limits(day: datetime.date, zone: str) -> tuple[datetime.datetime, datetime.datetime]:
    """Return the begin of a day and of the next one in a time zone. :param zone: '' or unknown: UTC."""
    try:
        place: datetime.tzinfo = zoneinfo.ZoneInfo(zone) if zone else datetime.UTC
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        place = datetime.UTC
    begin = datetime.datetime.combine(day, datetime.time(), place)
    next_day = min(day, datetime.date.max - datetime.timedelta(days=1)) + datetime.timedelta(days=1)
    return begin, datetime.datetime.combine(next_day, datetime.time(), place)


async def _find_rare(connection: Connection, terms: str) -> list[int] | None:
    """Return the ids of the mails with these terms if they are few, else None.

    The planner does not know the frequency of a term, and would scan all mails for a rare one.
    """
    cursor = await connection.execute(
        f"select t.mail_id from search_index t where {_TERMS} @@ %(terms)s::tsquery limit %(limit)s".encode(),
        {"terms": terms, "limit": RARE + 1},
    )
    ids = [row[0] for row in await cursor.fetchall()]
    return ids if len(ids) <= RARE else None
