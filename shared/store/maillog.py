"""What happens to a mail, told once: a row of its trace, a line in the log, a counter.

A stage makes its events, records them in the transaction that they tell of (``record``) and announces them after the
commit (``announce``), so the trace never tells of what was rolled back. No password and no body gets here.
"""

from __future__ import annotations

import datetime
from collections import Counter as Counts
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import structlog
from prometheus_client import Counter

from shared.db import arrays
from shared.db.database import Connection, storable

FETCHED = Counter("mailgroup_messages_fetched_total", "Mails fetched from providers.", ["external"])
ROUTED = Counter("mailgroup_messages_routed_total", "Mails routed, by the rule that decided.", ["rule"])  # 1 to 5
DELIVERED = Counter("mailgroup_messages_delivered_total", "Copies put into mailboxes.")
SUBMITTED = Counter("mailgroup_messages_submitted_total", "Mails taken from mail clients.")
RELAYED = Counter(
    "mailgroup_messages_relayed_total", "Recipients settled by relaying, and mails that may be there twice.", ["result"]
)  # relayed, failed, delayed, cancelled, uncertain

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MailEvent:
    """One thing that happened to one mail.

    event: fetched, renumbered, skipped, routed, held, delivered, own_copy, returned, submitted, relayed, delayed,
    failed, cancelled, uncertain, noticed, parked, requeued, deleted, undeleted.
    external: address of the external account. who: address of the person or recipient it concerns, or those of several
    (``people``). reply: the other side's answer, or the reason.
    """

    event: str
    inbound_id: int | None = None
    submission_id: int | None = None
    external: str | None = None
    who: str | None = None
    rule: int | None = None
    reply: str | None = None


_BETWEEN = ", "
"""Addresses; no account's address has a comma."""
_COPIES = ("delivered", "own_copy")
"""Each is told of every copy of a mail, and kept once for those that have the same reason."""


def join_addresses(addresses: Sequence[str]) -> str | None:
    """Several people as ``Event.who``."""
    return _BETWEEN.join(addresses) or None


_NAMES = tuple(field.name for field in fields(MailEvent))
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
    """Write the trace rows, in the caller's transaction."""
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
"""``record`` of ``submitted`` as a part of a larger statement, which has the submissions as ``new``."""


def announce(events: Sequence[MailEvent]) -> None:
    """Log and count, after the commit: a line an event."""
    if not events:
        return
    log.info("mails", lines=[_fields(event) for event in events])
    counts: Counts[tuple[str, str | None, int | None]] = Counts()
    for e in events:
        counts[e.event, e.external, e.rule] += len(_each(e))
    for (event, external, rule), count in counts.items():
        match event:
            case "fetched":
                FETCHED.labels(external).inc(count)
            case "routed":
                ROUTED.labels(str(rule)).inc(count)
            case "delivered":
                DELIVERED.inc(count)
            case "submitted":
                SUBMITTED.inc(count)
            case "relayed" | "delayed" | "failed" | "cancelled" | "uncertain":
                RELAYED.labels(event).inc(count)


def _each(event: MailEvent) -> Sequence[str | None]:
    """Whom an event is told of one by one."""
    return event.who.split(_BETWEEN) if event.who and event.event in _COPIES else [event.who]


def _fields(event: MailEvent) -> dict[str, object]:
    """One ``trace_id`` goes with a mail from the fetch to the delivery, and from the submission to the relay."""
    fields = {name: value for name in _NAMES if (value := getattr(event, name)) is not None}
    fields["trace_id"] = event.submission_id or event.inbound_id
    return fields


async def load_history(
    connection: Connection, inbound: Sequence[int], submissions: Sequence[int]
) -> list[tuple[str, MailEvent]]:
    """The events of these mails in order, each with its time (ISO 8601, UTC); those of copies one by one."""
    cursor = await connection.execute(
        """select to_char(at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                  event, inbound_id, submission_id, external, who, rule, reply
           from maillog where inbound_id = any(%s) or submission_id = any(%s) order by id""",
        (list(inbound), list(submissions)),
    )
    found = [(str(row[0]), MailEvent(*row[1:])) for row in await cursor.fetchall()]
    return [(at, replace(event, who=who)) for at, event in found for who in _each(event)]


RECORD_HELD = """insert into maillog (event, submission_id, external, who, reply)
    select new.event, held.id, new.external, new.who, new.reply
    from unnest(%(events)s::text[], %(event_ids)s::bigint[], %(externals)s::text[], %(who)s::text[], %(said)s::text[])
            with ordinality as new (event, id, external, who, reply, place) join held using (id)
    order by place"""
"""``record`` as a part of a larger statement: events of submissions, of those that it has as ``held``."""


def held_parameters(events: Sequence[MailEvent]) -> dict[str, str]:
    """The parameters of ``RECORD_HELD``."""
    return {
        "events": arrays.array_literal(event.event for event in events),
        "event_ids": arrays.array_literal(event.submission_id for event in events),
        "externals": arrays.array_literal(event.external and storable(event.external) for event in events),
        "who": arrays.array_literal(event.who and storable(event.who) for event in events),
        "said": arrays.array_literal(event.reply and storable(event.reply) for event in events),
    }


async def purge_maillog(connection: Connection, before: datetime.datetime, limit: int) -> int:
    """Forget what happened before this time, the oldest first. :return: how many events."""
    cursor = await connection.execute(
        """delete from maillog where id in (
               select id from (select id, at from maillog order by id limit %s) oldest where at < %s)""",
        (limit, before),
    )
    return cursor.rowcount
