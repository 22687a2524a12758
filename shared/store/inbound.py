"""Mails on their way into mailboxes, and their recipients (tables inbound, deliveries).

The schema defines the states and their transitions. The fetcher inserts rows for mail from providers; the sender
inserts rows for local recipients, mail to an address of ours, and notices. The router decides, and the mailbox service
delivers. The operator's SQL is in shared/store/inbound_admin.py.

Statements on given mails say ``state || '' = …``. PostgreSQL then finds the mails by id and does not read the index of
open mails: a plan made in quiet times expects that index to be short, but it is as long as the backlog.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shared.db import arrays
from shared.db.arrays import array_literal
from shared.db.database import FUTURE, Connection, storable
from shared.errors import MAX_FAILURES
from shared.model import FoundBy
from shared.store import maillog, poison
from shared.store.maillog import MailEvent

SWEEP_LIMIT = 1000
"""Limit of mails in one sweep: it bounds the transaction."""
SWEEP_AGAIN_SECONDS = 30.0
"""Interval after which a swept mail that is still unfinished is swept again, in seconds."""
REMOVED = "held: its recipient's account was removed before the delivery"
"""Reason of a mail that is held because its recipient's account was removed."""
LOOP = "router: mail loop"
"""Origin of mails that too many servers have passed on. None of them has failed here."""
REQUEUED = "requeued by the operator"
"""Reason of a mail that the operator requeued."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A mail to insert. With known recipients it needs no router."""

    source: Literal["fetched", "submitted", "local", "notice"]
    blob_id: int  # its bytes
    external_id: int | None = None
    message_id: str | None = None  # its Message-ID without angle brackets
    author_id: int | None = None
    submission_id: int | None = None
    recipients: tuple[tuple[int, str], ...] = ()  # (local id, reason), where they are known
    junk: bool = False  # it was in the provider's junk folder


@dataclass(frozen=True, slots=True)
class LockedMails:
    """What ``lock_routed`` found.

    with_junk: some of the mails that wait for delivery are junk. left_junk: mails that were moved out of the junk
    folder at the provider.
    """

    with_junk: bool
    left_junk: Sequence[int]


@dataclass(frozen=True, slots=True)
class FetchedMail:
    """A mail that waits for the router (state fetched)."""

    id: int
    source: str
    external_id: int | None
    author_id: int | None
    blob_id: int
    submission_id: int | None  # the submission that it comes from
    requeued: bool  # the operator wants it routed, even in a mail loop


@dataclass(frozen=True, slots=True)
class RoutingResult:
    """The router's decision on a mail."""

    id: int
    recipients: tuple[tuple[int, int, str], ...]  # (local id, rule, reason)
    rule: int | None  # None for held mail
    reason: str
    own_copy: bool
    found_by: FoundBy | None = None  # of a fetched mail with recipients
    junk: bool = False  # a rule on its header applies


@dataclass(frozen=True, slots=True)
class RoutedMail:
    """The copies of one mail that have the same reason."""

    inbound_id: int
    blob_id: int
    octets: int
    own_copy: bool
    external: str | None
    rule: int | None
    reason: str
    source: str  # as in Arrival
    submission_id: int | None  # the submission that it comes from
    junk: bool
    age: float  # seconds since the mail was stored
    gone: bool  # their accounts were removed or disabled after the decision
    local_ids: Sequence[int]  # of the recipients
    addresses: Sequence[str]  # of the recipients

    def only_for(self, local_ids: Collection[int]) -> RoutedMail | None:
        """Return the copies for these people; None if there are none."""
        kept = [pair for pair in zip(self.local_ids, self.addresses, strict=True) if pair[0] in local_ids]
        return replace(self, local_ids=[row for row, _ in kept], addresses=[a for _, a in kept]) if kept else None


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
    "junk": "text",
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
                inbound_id,
                a.source,
                a.external_id,
                a.blob_id,
                a.author_id,
                a.submission_id,
                a.message_id,
                "routed" if a.recipients else "fetched",
                a.recipients[0][1] if a.recipients else None,
                "folder" if a.junk else None,
            )
            for inbound_id, a in zip(ids, arrivals, strict=True)
        ],
    )
    decided = [
        (inbound_id, local, None, reason)
        for inbound_id, a in zip(ids, arrivals, strict=True)
        for local, reason in a.recipients
    ]
    await _decide(connection, decided)
    return ids


async def _decide(connection: Connection, rows: Iterable[tuple[int, int, int | None, str]]) -> None:
    """Insert deliveries; recipients of a mail with the same reason share one parameter."""
    people: dict[tuple[int, int | None, str], list[int]] = {}
    for inbound_id, local, rule, reason in rows:
        people.setdefault((inbound_id, rule, reason), []).append(local)
    if people:
        await connection.execute(
            """insert into deliveries (inbound_id, local_id, rule, reason)
               select d.inbound_id, unnest(d.local_ids::bigint[]), d.rule, d.reason
               from unnest(%s::bigint[], %s::int[], %s::text[], %s::text[]) d (inbound_id, rule, reason, local_ids)
               on conflict (inbound_id, local_id) do nothing""",
            [
                *(array_literal(column) for column in zip(*people, strict=True)),
                array_literal(array_literal(local_ids) for local_ids in people.values()),
            ],
        )


# ---------------------------------------------------------------------------------------------- for the router


async def load_fetched(connection: Connection, ids: Sequence[int]) -> list[FetchedMail]:
    """Load and lock those of these mails that still wait for the router, in order of id."""
    cursor = await connection.execute(
        """select id, source, external_id, author_id, blob_id, submission_id, reason is not distinct from %s
           from inbound
           where id = any(%s::bigint[]) and state || '' = 'fetched' order by id for update""",
        (REQUEUED, array_literal(ids)),
    )
    return [FetchedMail(*row) for row in await cursor.fetchall()]


async def write_decisions(connection: Connection, verdicts: Sequence[RoutingResult]) -> None:
    """Write decisions: deliveries and state routed, or state held for a mail without recipients."""
    await _decide(connection, ((v.id, local, rule, reason) for v in verdicts for local, rule, reason in v.recipients))
    await connection.execute(
        """update inbound set state = v.state, rule = v.rule, reason = v.reason, own_copy = v.own_copy,
                  found_by = nullif(v.found_by, ''), state_at = now(), swept_at = null,
                  junk = coalesce(inbound.junk, case when v.junk then 'header' end)
           from unnest(%s::bigint[], %s::text[], %s::int[], %s::text[], %s::boolean[], %s::text[], %s::boolean[])
                as v (id, state, rule, reason, own_copy, found_by, junk)
           where inbound.id = v.id and inbound.state || '' = 'fetched'""",
        (
            array_literal(v.id for v in verdicts),
            array_literal("routed" if v.recipients else "held" for v in verdicts),
            array_literal(v.rule for v in verdicts),
            array_literal(v.reason for v in verdicts),
            array_literal(v.own_copy for v in verdicts),
            array_literal(v.found_by or "" for v in verdicts),
            array_literal(v.junk for v in verdicts),
        ),
    )


# ---------------------------------------------------------------------------------------------- for the mailbox


async def lock_routed(connection: Connection, ids: Sequence[int]) -> LockedMails:
    """Lock those of these mails that wait for the mailbox service, until the transaction ends."""
    cursor = await connection.execute(
        """select id, junk from inbound
           where id = any(%s::bigint[]) and (state || '' = 'routed' or junk || '' = 'left') order by id for update""",
        (array_literal(ids),),
    )
    rows = await cursor.fetchall()
    return LockedMails(
        any(junk in ("folder", "header") for _, junk in rows), [int(row) for row, junk in rows if junk == "left"]
    )


async def load_routed(connection: Connection, ids: Sequence[int]) -> list[RoutedMail]:
    """Load the undelivered copies of these mails.

    The accounts are read as they are now: the caller has locked the mails (``lock_routed``), then the mailboxes
    (``folder_mails.lock_recipients``), so they stay like this until it commits.

    The copies of each mail are a subquery: PostgreSQL compares two lists of ids each with each.
    """
    cursor = await connection.execute(
        """select i.id, i.blob_id, (select m.octets from blobs m where m.id = i.blob_id), i.own_copy,
                  (select e.address from external_accounts e where e.id = i.external_id), d.rule, d.reason, i.source,
                  i.submission_id, coalesce(i.junk in ('folder', 'header'), false),
                  extract(epoch from now() - i.created_at)::float8, d.gone, d.local_ids, d.addresses
           from inbound i cross join lateral (
               select d.rule, d.reason,
                   l.removed_at is not null
                       or not l.enabled and not i.own_copy and i.source in ('fetched', 'submitted') as gone,
                   array_agg(l.id order by l.id) as local_ids, array_agg(l.address order by l.id) as addresses
               from deliveries d join local_accounts l on l.id = d.local_id
               where d.inbound_id = i.id and d.done_at is null
               group by 1, 2, 3) d
           where i.id = any(%s::bigint[]) and i.state || '' = 'routed'
           order by i.id, d.local_ids""",
        (array_literal(ids),),
    )
    return [RoutedMail(*row) for row in await cursor.fetchall()]


async def record_delivered(
    connection: Connection,
    delivered: Sequence[RoutedMail],
    returned: Sequence[RoutedMail],
    ids: Sequence[int],
    unfinished: Collection[int] = (),
) -> None:
    """Record delivered copies, and return the mails of copies whose account is removed.

    The state of a delivered mail covers all its copies. The copies of an unfinished mail are marked one by one.

    A mail of an external account with such a copy goes back to the router (state fetched). A mail to a local address
    concerns nobody else: it is held with its copy until the account is back. The others are delivered, unless a router
    decided on them only after ``load_routed``.

    :param unfinished: mails that have further copies to deliver.
    """
    to_router = [p for p in returned if p.external is not None]
    kept = [p for p in returned if p.external is None]
    unfinished = {p.inbound_id for p in returned}.union(unfinished)
    if marked := [(p.inbound_id, local) for p in delivered if p.inbound_id in unfinished for local in p.local_ids]:
        await connection.execute(
            """update deliveries set done_at = now() from unnest(%s::bigint[], %s::bigint[]) as v (inbound_id, local_id)
               where deliveries.inbound_id = v.inbound_id and deliveries.local_id = v.local_id""",
            [array_literal(column) for column in zip(*marked, strict=True)],
        )
    if to_router:
        await connection.execute(
            """delete from deliveries using unnest(%s::bigint[], %s::bigint[]) as v (inbound_id, local_id)
               where deliveries.inbound_id = v.inbound_id and deliveries.local_id = v.local_id""",
            [
                array_literal(column)
                for column in zip(*((p.inbound_id, local) for p in to_router for local in p.local_ids), strict=True)
            ],
        )
        await connection.execute(
            """update inbound set state = 'fetched', state_at = now(), swept_at = null
               where id = any(%s) and state = 'routed'""",
            ([p.inbound_id for p in to_router],),
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


# ---------------------------------------------------------------------------------------------- junk


async def leave_junk(connection: Connection, ledger_ids: Sequence[int]) -> list[tuple[int, tuple[str, ...]]]:
    """Record that mails were moved out of the junk folder at the provider, if they were fetched from it.

    :param ledger_ids: their rows of the ledger. :return: those mails, with the addresses of their recipients.
    """
    cursor = await connection.execute(
        """update inbound i set junk = 'left', swept_at = now() from uidl_ledger u
           where u.id = any(%s::bigint[]) and i.id = u.inbound_id and i.junk || '' = 'folder'
           returning i.id, coalesce((select array_agg(l.address order by l.address) from deliveries d
                                     join local_accounts l on l.id = d.local_id where d.inbound_id = i.id), '{}')""",
        (array_literal(ledger_ids),),
    )
    return [(int(row[0]), tuple(row[1])) for row in await cursor.fetchall()]


async def finish_leaving_junk(connection: Connection, ids: Sequence[int]) -> list[int]:
    """Lock those of these delivered mails that were moved out of the junk folder at the provider: they are junk no
    longer, and the caller moves their copies. :return: their ids."""
    cursor = await connection.execute(
        """with moved as (
               select id from inbound where id = any(%s::bigint[]) and state || '' = 'delivered' and junk || '' = 'left'
               order by id for update)
           update inbound i set junk = null from moved where i.id = moved.id returning i.id""",
        (array_literal(ids),),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def list_leaving_junk(connection: Connection, grace_seconds: float) -> list[tuple[int, tuple[str, ...]]]:
    """List delivered mails whose copies should have been moved out of Junk, as ``leave_junk``, and record the sweep."""
    cursor = await connection.execute(
        """with late as (
               select id from inbound where junk = 'left' and state = 'delivered'
                 and (swept_at is null or swept_at < now() - make_interval(secs => %s) or swept_at > now())
               order by id limit %s for update skip locked)
           update inbound i set swept_at = now() from late where i.id = late.id
           returning i.id, coalesce((select array_agg(l.address order by l.address) from deliveries d
                                     join local_accounts l on l.id = d.local_id where d.inbound_id = i.id), '{}')""",
        (max(SWEEP_AGAIN_SECONDS, grace_seconds), SWEEP_LIMIT),
    )
    return [(int(row[0]), tuple(row[1])) for row in await cursor.fetchall()]


# ---------------------------------------------------------------------------------------------- sweeps and faults


_STAGES = {"fetched": "router", "routed": "mailbox"}  # the stage that works on mails in this state


async def load_origins(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Return the submissions that these mails come from, by id of the mail. Fetched mail has none."""
    found = await find_inbound(connection, ids)
    return {mail_id: submission_id for mail_id, submission_id in found.items() if submission_id is not None}


async def find_inbound(connection: Connection, ids: Sequence[int]) -> dict[int, int | None]:
    """Return those of these mail ids that are inbound mails, each with the submission that it comes from."""
    cursor = await connection.execute(
        "select id, submission_id from inbound where id = any(%s::bigint[])", (array_literal(ids),)
    )
    return dict(await cursor.fetchall())


async def record_deletions(connection: Connection, who: str, mail_ids: Sequence[int]) -> list[MailEvent]:
    """Record that a person has deleted mails; those that did not come in are left out.

    :param who: address of the person. :return: the events, for ``announce`` after the commit.
    """
    origins = await find_inbound(connection, mail_ids)
    events = [
        MailEvent("deleted", inbound_id=inbound_id, who=who, origin_id=origin) for inbound_id, origin in origins.items()
    ]
    await maillog.record_events(connection, events)
    return events


async def was_delivered(connection: Connection, message_id: str, local_id: int) -> bool:
    """Return whether a mail from outside with this Message-ID is in, or was in, a person's mailbox."""
    cursor = await connection.execute(
        """select from inbound i join deliveries d on d.inbound_id = i.id
           where i.message_id = %s and i.source || '' = 'fetched' and d.local_id = %s
               and (i.state || '' = 'delivered' or d.done_at is not null)
           limit 1""",
        (message_id, local_id),
    )
    return await cursor.fetchone() is not None


async def list_overdue(
    connection: Connection, state: Literal["fetched", "routed"], grace_seconds: float
) -> list[tuple[int, str, tuple[str, ...]]]:
    """List the mails in a state past the grace period, at most SWEEP_LIMIT, and record the sweep.

    :return: (id, address of the external account or '', addresses of the recipients).
    """
    await connection.execute(  # a mail from before the clock was set back would otherwise wait long
        f"update inbound set state_at = now() where state = %s and state_at > {FUTURE}", (state,)
    )
    not_poison = poison.NOT_POISON.format(id="id", stage=_STAGES[state])
    cursor = await connection.execute(
        f"""with late as (
               select id from inbound where state = %s and state_at < now() - make_interval(secs => %s)
                 and (swept_at is null or swept_at < now() - make_interval(secs => %s) or swept_at > now())
                 and {not_poison}
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
    """Count failures of ours on this mail. :return: whether it is parked now."""
    cursor = await connection.execute(
        """update inbound set failures = failures + %(failures)s, error = %(error)s, origin = %(origin)s,
                  swept_at = now(),
                  state = case when failures + %(failures)s >= %(max)s then 'parked' else state end, state_at = now()
           where id = %(id)s and state in ('fetched', 'routed') returning state = 'parked'""",
        {"failures": failures, "error": storable(trace), "origin": origin, "max": MAX_FAILURES, "id": row},
    )
    updated = await cursor.fetchone()
    return bool(updated and updated[0])


async def park_looping(connection: Connection, rows: Sequence[int], origin: str, reason: str) -> None:
    """Park mails that wait for the router, without further tries: a retry cannot end a mail loop."""
    await connection.execute(
        """update inbound set state = 'parked', error = %s, origin = %s, state_at = now()
           where id = any(%s::bigint[]) and state || '' = 'fetched'""",
        (reason, origin, array_literal(rows)),
    )


async def discard_probes(connection: Connection, reasons: Mapping[int, str]) -> None:
    """Discard mails that wait for the router, each for its reason: nobody gets a probe mail of ours."""
    await connection.execute(
        """update inbound set state = 'discarded', reason = v.reason, state_at = now(), swept_at = null
           from unnest(%s::bigint[], %s::text[]) as v (id, reason)
           where inbound.id = v.id and inbound.state || '' = 'fetched'""",
        (array_literal(reasons), array_literal(reasons.values())),
    )


async def release_held(connection: Connection, external_ids: Sequence[int]) -> list[int]:
    """Send held mail of these external accounts to the router again, at most SWEEP_LIMIT; sweeps send the rest. Mail of
    an account that is not started (``hold``) stays.

    :return: its ids.
    """
    cursor = await connection.execute(
        """with free as (
               select id from inbound where state = 'held'
                   and external_id in (select e.id from external_accounts e where e.id = any(%s) and not e.hold)
               order by id limit %s for update skip locked)
           update inbound i set state = 'fetched', state_at = now() - interval '1 hour', swept_at = null
           from free where i.id = free.id returning i.id""",
        (list(external_ids), SWEEP_LIMIT),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def route_again(connection: Connection) -> None:
    """Release held mail that has recipients now, at most SWEEP_LIMIT at a time; never that of an account with ``hold``.

    ``release_held`` acts on a change at once, but a router that read the accounts before the change may hold the mail
    after it.
    """
    await connection.execute(
        """with free as (
               select id from inbound i where state = 'held'
                 and (external_id in (select l.external_id from local_accounts l join external_accounts e
                                      on e.id = l.external_id
                                      where l.enabled and l.removed_at is null and e.removed_at is null
                                          and not e.hold)
                      or external_id is null and exists (
                          select from deliveries d join local_accounts l on l.id = d.local_id
                          where d.inbound_id = i.id and d.done_at is null and l.removed_at is null))
               order by id limit %s for update skip locked)
           update inbound i set state_at = now() - interval '1 hour', swept_at = null,
                  state = case when external_id is null then 'routed' else 'fetched' end
           from free where i.id = free.id""",
        (SWEEP_LIMIT,),
    )
