"""What happens to a mail, told once: a row of its trace, a line in the log, a counter.

A stage makes its events, records them in the transaction that they tell of (``record``) and announces them after the
commit (``announce``), so the trace never tells of what was rolled back. No password and no body gets here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import structlog
from prometheus_client import Counter

from shared.arrays import literal
from shared.database import Connection, storable

FETCHED = Counter("mailgroup_messages_fetched_total", "Mails fetched from providers.", ["external"])
ROUTED = Counter("mailgroup_messages_routed_total", "Mails routed, by the rule that decided.", ["rule"])  # 1 to 5
DELIVERED = Counter("mailgroup_messages_delivered_total", "Copies put into mailboxes.")
SUBMITTED = Counter("mailgroup_messages_submitted_total", "Mails taken from mail clients.")
RELAYED = Counter(
    "mailgroup_messages_relayed_total", "Recipients settled by relaying.", ["result"]
)  # relayed, failed, delayed, cancelled

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one mail.

    event: fetched, renumbered, skipped, routed, held, delivered, submitted, relayed, delayed, failed, cancelled,
    uncertain, noticed, parked, requeued, deleted, undeleted.
    external: address of the external account. who: address of the person or recipient it concerns.
    reply: the other side's answer, or the reason.
    """

    event: str
    inbound_id: int | None = None
    submission_id: int | None = None
    external: str | None = None
    who: str | None = None
    rule: int | None = None
    reply: str | None = None


async def record(connection: Connection, events: Sequence[Event]) -> None:
    """Write the trace rows, in the caller's transaction."""
    if events:
        await connection.execute(
            """insert into events (event, inbound_id, submission_id, external, who, rule, reply)
               select * from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::int[],
                                    %s::text[])
            """,
            (
                [e.event for e in events],
                [e.inbound_id for e in events],
                [e.submission_id for e in events],
                [e.external and storable(e.external) for e in events],
                [e.who and storable(e.who) for e in events],
                [e.rule for e in events],
                [e.reply and storable(e.reply) for e in events],
            ),
        )


def announce(events: Sequence[Event]) -> None:
    """Log and count, after the commit."""
    for event in events:
        log.info(
            event.event,
            **{name: value for name, value in asdict(event).items() if value is not None and name != "event"},
        )
        match event.event:
            case "fetched":
                FETCHED.labels(event.external).inc()
            case "routed":
                ROUTED.labels(str(event.rule)).inc()
            case "delivered":
                DELIVERED.inc()
            case "submitted":
                SUBMITTED.inc()
            case "relayed" | "delayed" | "failed" | "cancelled":
                RELAYED.labels(event.event).inc()


async def history(
    connection: Connection, inbound: Sequence[int], submissions: Sequence[int]
) -> list[tuple[str, Event]]:
    """The events of these mails in order, each with its time (ISO 8601, UTC)."""
    cursor = await connection.execute(
        """select to_char(at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                  event, inbound_id, submission_id, external, who, rule, reply
           from events where inbound_id = any(%s) or submission_id = any(%s) order by id""",
        (list(inbound), list(submissions)),
    )
    return [(row[0], Event(*row[1:])) for row in await cursor.fetchall()]


RECORD_HELD = """insert into events (event, submission_id, external, who, reply)
    select new.event, held.id, new.external, new.who, new.reply
    from unnest(%(events)s::text[], %(event_ids)s::bigint[], %(externals)s::text[], %(who)s::text[], %(said)s::text[])
            with ordinality as new (event, id, external, who, reply, place) join held using (id)
    order by place"""
"""``record`` as a part of a larger statement: events of submissions, of those that it has as ``held``."""


def held_parameters(events: Sequence[Event]) -> dict[str, str]:
    """The parameters of ``RECORD_HELD``."""
    return {
        "events": literal(event.event for event in events),
        "event_ids": literal(event.submission_id for event in events),
        "externals": literal(event.external and storable(event.external) for event in events),
        "who": literal(event.who and storable(event.who) for event in events),
        "said": literal(event.reply and storable(event.reply) for event in events),
    }
