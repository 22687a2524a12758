"""Mails on their way into mailboxes, and who is to get them (tables inbound, deliveries).

The states and their transitions stand in the schema. Rows are made by the fetcher (from a provider's maildrop) and the
sender (local recipients, mail to an address of ours, notices); the router decides, the mailbox service finishes. What
the operator sees of them and does with them is the SQL of shared/store/inbound_admin.py.

Statements on given mails say ``state || '' = …``: so PostgreSQL looks the mails up and does not read the index of the
open ones, which seems short to a plan made in quiet times and is as long as the backlog.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.db import arrays
from shared.db.arrays import array_literal
from shared.db.database import FUTURE, Connection, storable
from shared.errors import MAX_FAILURES
from shared.store import poison

SWEEP_LIMIT = 1000
SWEEP_AGAIN_SECONDS = 30.0
"""A mail that was swept and is still unfinished is swept again after this time."""
REMOVED = "held: its recipient's account was removed before the delivery"
LOOP = "router: mail loop"
"""The origin of those that too many servers have passed on, none of which has failed."""
REQUEUED = "requeued by the operator"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A mail to be delivered; blob_id: its bytes. message_id: its Message-ID without angle brackets.

    recipients: (local id, reason) where they are known already; then it needs no router.
    """

    source: Literal["fetched", "submitted", "local", "notice"]
    blob_id: int
    external_id: int | None = None
    message_id: str | None = None
    author_id: int | None = None
    submission_id: int | None = None
    recipients: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class FetchedMail:
    """A mail that waits for the router (state fetched). requeued: the operator wants it to go on, whatever it is."""

    id: int
    source: str
    external_id: int | None
    author_id: int | None
    blob_id: int
    requeued: bool


@dataclass(frozen=True, slots=True)
class RoutingResult:
    """What the router decided about a mail. recipients: (local id, rule, reason). rule: None for mail that is held."""

    id: int
    recipients: tuple[tuple[int, int, str], ...]
    rule: int | None
    reason: str
    own_copy: bool


@dataclass(frozen=True, slots=True)
class RoutedMail:
    """Copies of one mail that are to be delivered for one reason. local_ids, addresses: whose they are.

    gone: their accounts were removed, or disabled, since that was decided.
    """

    inbound_id: int
    blob_id: int
    octets: int
    own_copy: bool
    external: str | None
    rule: int | None
    reason: str
    gone: bool
    local_ids: Sequence[int]
    addresses: Sequence[str]


_ARRIVAL_COLUMNS = {
    "id": "bigint",
    "source": "text",
    "external_id": "bigint",
    "blob_id": "bigint",
    "author_id": "bigint",
    "submission_id": "bigint",
    "message_id": "text",
    "state": "text",
    "reason": "text",
}


async def add_inbound(connection: Connection, arrivals: Sequence[Arrival]) -> list[int]:
    """Insert mails and return their ids in the same order. State fetched, or routed where recipients are known."""
    if not arrivals:
        return []
    cursor = await connection.execute("select nextval('mail_ids') from generate_series(1, %s)", (len(arrivals),))
    ids = [int(row[0]) for row in await cursor.fetchall()]
    await arrays.insert_rows(
        connection,
        "inbound",
        _ARRIVAL_COLUMNS,
        [
            (
                id_,
                a.source,
                a.external_id,
                a.blob_id,
                a.author_id,
                a.submission_id,
                a.message_id,
                "routed" if a.recipients else "fetched",
                a.recipients[0][1] if a.recipients else None,
            )
            for id_, a in zip(ids, arrivals, strict=True)
        ],
    )
    decided = [(id_, local, reason) for id_, a in zip(ids, arrivals, strict=True) for local, reason in a.recipients]
    await _decide(connection, [(id_, local, None, reason) for id_, local, reason in decided])
    return ids


async def _decide(connection: Connection, rows: Iterable[tuple[int, int, int | None, str]]) -> None:
    """Rows of deliveries; those who get a mail for the same reason travel together."""
    people: dict[tuple[int, int | None, str], list[int]] = {}
    for id_, local, rule, reason in rows:
        people.setdefault((id_, rule, reason), []).append(local)
    if people:
        await connection.execute(
            """insert into deliveries (inbound_id, local_id, rule, reason)
               select d.inbound_id, unnest(d.local_ids::bigint[]), d.rule, d.reason
               from unnest(%s::bigint[], %s::int[], %s::text[], %s::text[]) d (inbound_id, rule, reason, local_ids)
               on conflict (inbound_id, local_id) do nothing""",
            [
                *(array_literal(column) for column in zip(*people, strict=True)),
                array_literal(array_literal(locals_) for locals_ in people.values()),
            ],
        )


# ---------------------------------------------------------------------------------------------- for the router


async def load_fetched(connection: Connection, ids: Sequence[int]) -> list[FetchedMail]:
    """Those of the mails that still wait for the router, locked until the transaction ends, in order of id."""
    cursor = await connection.execute(
        """select id, source, external_id, author_id, blob_id, reason is not distinct from %s from inbound
           where id = any(%s::bigint[]) and state || '' = 'fetched' order by id for update""",
        (REQUEUED, array_literal(ids)),
    )
    return [FetchedMail(*row) for row in await cursor.fetchall()]


async def write_decisions(connection: Connection, verdicts: Sequence[RoutingResult]) -> None:
    """Write decisions: deliveries and state routed, or state held where there is nobody."""
    await _decide(connection, ((v.id, local, rule, reason) for v in verdicts for local, rule, reason in v.recipients))
    await connection.execute(
        """update inbound set state = v.state, rule = v.rule, reason = v.reason, own_copy = v.own_copy,
                  state_at = now(), swept_at = null
           from unnest(%s::bigint[], %s::text[], %s::int[], %s::text[], %s::boolean[])
                as v (id, state, rule, reason, own_copy)
           where inbound.id = v.id and inbound.state || '' = 'fetched'""",
        (
            array_literal(v.id for v in verdicts),
            array_literal("routed" if v.recipients else "held" for v in verdicts),
            array_literal(v.rule for v in verdicts),
            array_literal(v.reason for v in verdicts),
            array_literal(v.own_copy for v in verdicts),
        ),
    )


# ---------------------------------------------------------------------------------------------- for the mailbox


async def load_routed(connection: Connection, ids: Sequence[int]) -> list[RoutedMail]:
    """The copies of these mails that are not delivered yet; the mails are locked until the transaction ends."""
    await connection.execute(
        "select 1 from inbound where id = any(%s::bigint[]) and state || '' = 'routed' order by id for update",
        (array_literal(ids),),
    )
    cursor = await connection.execute(
        """select i.id, i.blob_id, m.octets, i.own_copy, e.address, d.rule, d.reason, d.gone, d.local_ids,
                  d.addresses
           from (select d.inbound_id, d.rule, d.reason,
                        l.removed_at is not null
                            or not l.enabled and not i.own_copy and i.source in ('fetched', 'submitted') as gone,
                        array_agg(l.id order by l.id) as local_ids, array_agg(l.address order by l.id) as addresses
                 from deliveries d join inbound i on i.id = d.inbound_id join local_accounts l on l.id = d.local_id
                 where d.inbound_id = any(%s::bigint[]) and i.state || '' = 'routed' and d.done_at is null
                 group by 1, 2, 3, 4) d
           join inbound i on i.id = d.inbound_id join blobs m on m.id = i.blob_id
           left join external_accounts e on e.id = i.external_id
           order by i.id, d.local_ids""",
        (array_literal(ids),),
    )
    return [RoutedMail(*row) for row in await cursor.fetchall()]


async def record_delivered(
    connection: Connection, delivered: Sequence[RoutedMail], returned: Sequence[RoutedMail], ids: Sequence[int]
) -> None:
    """Settle the mails' states, and give copies back whose account is removed.

    A mail that is delivered says so for its copies; those of a mail that is not are marked one by one.

    A mail of an external account with such a copy goes back to the router (state fetched). One that was sent to a local
    address is nobody else's: it is held, its copy kept, until that account is back. The others are delivered, unless a
    router decided about them only after ``pending`` looked.
    """
    decided_anew = [p for p in returned if p.external is not None]
    kept = [p for p in returned if p.external is None]
    unfinished = {p.inbound_id for p in returned}
    if marked := [(p.inbound_id, local) for p in delivered if p.inbound_id in unfinished for local in p.local_ids]:
        await connection.execute(
            """update deliveries set done_at = now() from unnest(%s::bigint[], %s::bigint[]) as v (inbound_id, local_id)
               where deliveries.inbound_id = v.inbound_id and deliveries.local_id = v.local_id""",
            [array_literal(column) for column in zip(*marked, strict=True)],
        )
    if decided_anew:
        await connection.execute(
            """delete from deliveries using unnest(%s::bigint[], %s::bigint[]) as v (inbound_id, local_id)
               where deliveries.inbound_id = v.inbound_id and deliveries.local_id = v.local_id""",
            [
                array_literal(column)
                for column in zip(*((p.inbound_id, local) for p in decided_anew for local in p.local_ids), strict=True)
            ],
        )
        await connection.execute(
            """update inbound set state = 'fetched', state_at = now(), swept_at = null
               where id = any(%s) and state = 'routed'""",
            ([p.inbound_id for p in decided_anew],),
        )
    if kept:
        await connection.execute(
            """update inbound set state = 'held', reason = %s, state_at = now(), swept_at = null
               where id = any(%s) and state = 'routed'""",
            (REMOVED, [p.inbound_id for p in kept]),
        )
    await connection.execute(
        """update inbound i set state = 'delivered', state_at = now(), swept_at = null
           where id = any(%s::bigint[]) and state || '' = 'routed' and (id = any(%s::bigint[])
             or not exists (select from deliveries d where d.inbound_id = i.id and d.done_at is null))""",
        (array_literal(ids), array_literal({p.inbound_id for p in delivered} - unfinished)),
    )


# ---------------------------------------------------------------------------------------------- sweeps and faults


_STAGES = {"fetched": "router", "routed": "mailbox"}  # which stage waits for mails in a state


async def list_overdue(
    connection: Connection, state: Literal["fetched", "routed"], grace_seconds: float
) -> list[tuple[int, str, tuple[str, ...]]]:
    """Mails that wait in a state past the grace period, at most SWEEP_LIMIT, marked as swept now.

    :return: (id, address of the external account or '', addresses of the recipients).
    """
    await connection.execute(  # else what is in this state since before the clock was set back would wait for long
        f"update inbound set state_at = now() where state = %s and state_at > {FUTURE}", (state,)
    )
    unsuspected = poison.NOT_POISON.format(id="id", stage=_STAGES[state])
    cursor = await connection.execute(
        f"""with late as (
               select id from inbound where state = %s and state_at < now() - make_interval(secs => %s)
                 and (swept_at is null or swept_at < now() - make_interval(secs => %s) or swept_at > now())
                 and {unsuspected}
               order by state_at limit %s for update skip locked)
           update inbound i set swept_at = now() from late where i.id = late.id
           returning i.id,
               coalesce((select address from external_accounts e where e.id = i.external_id), ''),
               coalesce((select array_agg(l.address order by l.address) from deliveries d
                         join local_accounts l on l.id = d.local_id where d.inbound_id = i.id), '{{}}')""",
        (state, grace_seconds, max(SWEEP_AGAIN_SECONDS, grace_seconds), SWEEP_LIMIT),
    )
    return [(int(row[0]), str(row[1]), tuple(row[2])) for row in await cursor.fetchall()]


async def count_failure(connection: Connection, row: int, origin: str, trace: str, failures: int = 1) -> bool:
    """Count faults of ours on this mail; whether it is parked now."""
    cursor = await connection.execute(
        """update inbound set failures = failures + %(failures)s, error = %(error)s, origin = %(origin)s,
                  swept_at = now(),
                  state = case when failures + %(failures)s >= %(most)s then 'parked' else state end, state_at = now()
           where id = %(id)s and state in ('fetched', 'routed') returning state = 'parked'""",
        {"failures": failures, "error": storable(trace), "origin": origin, "most": MAX_FAILURES, "id": row},
    )
    found = await cursor.fetchone()
    return bool(found and found[0])


async def park_looping(connection: Connection, rows: Sequence[int], origin: str, reason: str) -> None:
    """Set mails that wait for the router apart, without a try: nothing that they could be repeated for is wrong."""
    await connection.execute(
        """update inbound set state = 'parked', error = %s, origin = %s, state_at = now()
           where id = any(%s::bigint[]) and state || '' = 'fetched'""",
        (reason, origin, array_literal(rows)),
    )


async def release_held(connection: Connection, external_ids: Sequence[int]) -> list[int]:
    """Held mail of these external accounts goes to the router again. :return: its ids."""
    cursor = await connection.execute(
        """update inbound set state = 'fetched', state_at = now() - interval '1 hour', swept_at = null
           where state = 'held' and external_id = any(%s) returning id""",
        (list(external_ids),),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def route_again(connection: Connection) -> None:
    """Held mail that somebody is there for goes on, at most SWEEP_LIMIT at a time.

    ``release`` tells of a change at once, but a router that read the accounts just before it holds the mail just after.
    """
    await connection.execute(
        """with free as (
               select id from inbound i where state = 'held'
                 and (external_id in (select l.external_id from local_accounts l join external_accounts e
                                      on e.id = l.external_id
                                      where l.enabled and l.removed_at is null and e.removed_at is null)
                      or external_id is null and exists (
                          select from deliveries d join local_accounts l on l.id = d.local_id
                          where d.inbound_id = i.id and d.done_at is null and l.removed_at is null))
               order by id limit %s for update skip locked)
           update inbound i set state_at = now() - interval '1 hour', swept_at = null,
                  state = case when external_id is null then 'routed' else 'fetched' end
           from free where i.id = free.id""",
        (SWEEP_LIMIT,),
    )
