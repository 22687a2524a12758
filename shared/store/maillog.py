"""The history of each mail: an event is a row in the table maillog, a line in the log, and a count in the metrics.

A stage records its events in the transaction that they describe (``record_events``) and announces them after the commit
(``announce``), so the history has no event that was rolled back. Passwords and bodies are never recorded.
"""

from __future__ import annotations

import asyncio
import collections
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import structlog
from prometheus_client import REGISTRY, Counter

from shared.account_counts import AccountCounts
from shared.db import arrays
from shared.db.database import Connection, storable

FETCHED = AccountCounts("mailgroup_messages_fetched_total", "Mails fetched from providers.")
REGISTRY.register(FETCHED)
ROUTED = Counter("mailgroup_messages_routed_total", "Mails routed, by the rule that decided.", ["rule"])  # 1 to 5
DELIVERED = Counter("mailgroup_messages_delivered_total", "Copies put into mailboxes.")
SUBMITTED = Counter("mailgroup_messages_submitted_total", "Mails taken from mail clients.")
RELAYED = Counter(
    "mailgroup_messages_relayed_total", "Recipients settled by relaying, and mails that may be there twice.", ["result"]
)
for _rule in range(1, 6):
    ROUTED.labels(str(_rule))
for _result in ("relayed", "failed", "delayed", "cancelled", "uncertain"):
    RELAYED.labels(_result)

EVENTS_IN_TURN = 200
"""Events that are logged before other tasks have their turn."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MailEvent:
    """An event of a mail.

    event: fetched, renumbered, skipped, routed, held, delivered, own_copy, returned, submitted, relayed, delayed,
    failed, cancelled, uncertain, noticed, parked, requeued, discarded, deleted, undeleted, not_junk, local_organizer.
    """

    event: str
    inbound_id: int | None = None
    submission_id: int | None = None
    external: str | None = None  # address of the external account
    who: str | None = None  # address of the person or recipient, or several (join_addresses)
    rule: int | None = None
    reply: str | None = None  # the other side's answer, or the reason
    origin_id: int | None = None  # the submission that an inbound mail comes from; for the log alone


_BETWEEN = ", "
"""Separates addresses; no account's address contains a comma."""
_COPIES = ("delivered", "own_copy")
"""Events that are announced for each copy of a mail, and stored once for all copies with the same reason."""


def join_addresses(addresses: Sequence[str]) -> str | None:
    """Join the addresses of several people for ``MailEvent.who``."""
    return _BETWEEN.join(addresses) or None


_NAMES = tuple(field.name for field in fields(MailEvent) if field.name != "origin_id")
_COLUMNS = {
    "event": "text",
    "inbound_id": "bigint",
    "submission_id": "bigint",
    "external": "text",
    "who": "text",
    "rule": "smallint",
    "reply": "text",
}


async def record_events(connection: Connection, events: Sequence[MailEvent]) -> None:
    """Insert the events in the caller's transaction."""
    await arrays.insert_rows(
        connection,
        "maillog",
        _COLUMNS,
        [
            (
                e.event,
                e.inbound_id,
                e.submission_id,
                e.external and storable(e.external),
                e.who and storable(e.who),
                e.rule,
                e.reply and storable(e.reply),
            )
            for e in events
        ],
    )


SUBMITTED_FROM_NEW = """insert into maillog (event, submission_id, external, who, reply)
    select 'submitted', id, traced_external, traced_who, traced_reply from new where traced"""
"""SQL: inserts the event of each submission in ``new``, as a part of a larger statement."""


def announce(events: Sequence[MailEvent]) -> None:
    """Log and count events after their commit."""
    if not events:
        return
    log.info("mails", lines=[_fields(event) for event in events])
    counts: collections.Counter[tuple[str, str | None, int | None]] = collections.Counter()
    for e in events:
        counts[e.event, e.external, e.rule] += len(_each(e))
    for (event, external, rule), count in counts.items():
        match event:
            case "fetched":
                FETCHED.count(external or "", number=count)
            case "routed":
                ROUTED.labels(str(rule)).inc(count)
            case "delivered":
                DELIVERED.inc(count)
            case "submitted":
                SUBMITTED.inc(count)
            case "relayed" | "delayed" | "failed" | "cancelled" | "uncertain":
                RELAYED.labels(event).inc(count)


async def announce_in_turns(events: Sequence[MailEvent]) -> None:
    """As ``announce``, for many events: other tasks have their turn in between."""
    for start in range(0, len(events), EVENTS_IN_TURN):
        announce(events[start : start + EVENTS_IN_TURN])
        await asyncio.sleep(0)


def _each(event: MailEvent) -> Sequence[str | None]:
    """Split an event of several copies into the addresses of its recipients."""
    return event.who.split(_BETWEEN) if event.who and event.event in _COPIES else [event.who]


def _fields(event: MailEvent) -> dict[str, object]:
    """Return the fields for the log. One ``trace_id`` follows a mail from fetch to delivery, or from submission to
    relay and to the mailboxes of local recipients.
    """
    fields = {name: value for name in _NAMES if (value := getattr(event, name)) is not None}
    fields["trace_id"] = event.origin_id or event.submission_id or event.inbound_id
    return fields


async def find_held(connection: Connection, inbound_ids: Sequence[int]) -> set[int]:
    """Return those of these mails that were on hold at some time."""
    cursor = await connection.execute(
        "select inbound_id from maillog where inbound_id = any(%s::bigint[]) and event = 'held'",
        (arrays.array_literal(inbound_ids),),
    )
    return {int(row[0]) for row in await cursor.fetchall()}


MAX_EVENTS = 20_000
"""Events that are loaded at once, at most; a mail to a thousand people has some thousand."""


async def load_history(
    connection: Connection, inbound: Sequence[int], submissions: Sequence[int], limit: int = MAX_EVENTS
) -> list[tuple[str, MailEvent]]:
    """Load the events of these mails in order, each with its time (ISO 8601, UTC); one event for each copy.

    :param limit: of the stored events; of more, the first ones are loaded.
    """
    cursor = await connection.execute(
        """select to_char(at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                  event, inbound_id, submission_id, external, who, rule, reply
           from maillog where inbound_id = any(%s) or submission_id = any(%s) order by id limit %s""",
        (list(inbound), list(submissions), limit),
    )
    events = [(str(row[0]), MailEvent(*row[1:])) for row in await cursor.fetchall()]
    return [(at, replace(event, who=who)) for at, event in events for who in _each(event)]


RECORD_HELD = """insert into maillog (event, submission_id, external, who, reply)
    select new.event, held.id, new.external, new.who, new.reply
    from unnest(%(events)s::text[], %(event_ids)s::bigint[], %(externals)s::text[], %(who)s::text[], %(said)s::text[])
            with ordinality as new (event, id, external, who, reply, place) join held using (id)
    order by place"""
"""SQL: inserts the events of the submissions in ``held``, as a part of a larger statement."""


def held_parameters(events: Sequence[MailEvent]) -> dict[str, str]:
    """Return the parameters of ``RECORD_HELD``."""
    return {
        "events": arrays.array_literal(event.event for event in events),
        "event_ids": arrays.array_literal(event.submission_id for event in events),
        "externals": arrays.array_literal(event.external and storable(event.external) for event in events),
        "who": arrays.array_literal(event.who and storable(event.who) for event in events),
        "said": arrays.array_literal(event.reply and storable(event.reply) for event in events),
    }


ORGANIZER_DAYS = 3
"""Time for which invitations with a local organizer are shown after their submission: days."""
COUNTED_ORGANIZERS = 1000
"""Limits the invitations that are counted: events, the newest; the count is read every few seconds."""


@dataclass(frozen=True, slots=True)
class LocalOrganizers:
    """Invitations of an author that name a local address as their organizer, in the last ORGANIZER_DAYS."""

    author: str  # local address
    external: str  # address of the external account, by which customers may answer
    invitations: int


async def count_local_organizers(connection: Connection) -> list[LocalOrganizers]:
    """Count the newest COUNTED_ORGANIZERS invitations by author, in the order of their addresses."""
    cursor = await connection.execute(
        """select who, external, count(*) from (
               select who, external from maillog
               where event = 'local_organizer' and at > now() - make_interval(days => %s)
               order by at desc limit %s) newest
           group by who, external order by who, external""",
        (ORGANIZER_DAYS, COUNTED_ORGANIZERS),
    )
    return [LocalOrganizers(*row) for row in await cursor.fetchall()]


async def purge_maillog(connection: Connection, before: datetime.datetime, limit: int) -> int:
    """Delete events before this time, the oldest first. :return: their number."""
    cursor = await connection.execute(
        """delete from maillog where id in (
               select id from (select id, at from maillog order by id limit %s) oldest where at < %s)""",
        (limit, before),
    )
    return cursor.rowcount
