"""Inbound mail for the operator: lists, decisions and purges (tables inbound, deliveries).

It owns these tables together with shared/store/inbound.py, which has the SQL of their way into mailboxes. The table
purged_mails is its own.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.model import FoundBy
from shared.store import sent_mail
from shared.store.inbound import LOOP, REQUEUED

COUNTED_ANSWERS = 100_000
"""Limits the answers of an account that are counted: mails; it takes about 20 ms."""
FOUND_BY: tuple[FoundBy, ...] = ("name", "tag", "reference", "report", "nobody")
"""The ways in which the recipients of an answer are found, in the order of the rules."""

# ---------------------------------------------------------------------------------------------- counts


@dataclass(frozen=True, slots=True)
class InboundCounts:
    """The mails (not copies) fetched for an external account, by their state; purged mails included."""

    delivered: int = 0  # into a mailbox, or discarded by the operator
    held: int = 0
    parked: int = 0
    own_copies: int = 0
    in_flight: int = 0

    @property
    def total(self) -> int:
        """The number of all these mails."""
        return self.delivered + self.held + self.parked + self.own_copies + self.in_flight


async def count_inbound(connection: Connection) -> dict[int, InboundCounts]:
    """Count the inbound mails of each external account, by its id. Only an index is read."""
    cursor = await connection.execute(
        """select external_id, state, own_copy, count(*) from inbound where source = 'fetched' group by 1, 2, 3
           union all
           select external_id, 'delivered', false, delivered from purged_mails
           union all
           select external_id, 'delivered', true, own_copies from purged_mails"""
    )
    counts: dict[int, Counter[str]] = {}
    for external_id, state, own_copy, count in await cursor.fetchall():
        name = "own_copies" if own_copy and state == "delivered" else _BOOKED[state]
        counts.setdefault(external_id, Counter())[name] += count
    return {external_id: InboundCounts(**account) for external_id, account in counts.items()}


_BOOKED = {
    "fetched": "in_flight",
    "routed": "in_flight",
    "delivered": "delivered",
    "discarded": "delivered",
    "held": "held",
    "parked": "parked",
}


async def count_found(connection: Connection, external_id: int, days: int) -> dict[FoundBy, int]:
    """Count the answers to an account that came within the last days, by how their recipients were found.

    At most COUNTED_ANSWERS, the latest, are counted: by an index alone, in a fraction of a second.
    """
    cursor = await connection.execute(
        """select found_by, count(*) from (
               select found_by from inbound
               where external_id = %s and found_by is not null and created_at > now() - make_interval(days => %s)
               order by created_at desc limit %s) latest
           group by found_by""",
        (external_id, days, COUNTED_ANSWERS),
    )
    return dict(await cursor.fetchall())


async def count_lost(connection: Connection) -> dict[int, int]:
    """Count the fetched mails that are delivered but in no mailbox, by id of the external account.

    A folder keeps at least a tombstone of each mail, and the mail is purged with the last one. This reads all
    delivered mails.
    """
    cursor = await connection.execute(
        """select external_id, count(*) from inbound i
           where source = 'fetched' and state = 'delivered'
               and not exists (select from folder_mails r where r.blob_id = i.blob_id) group by external_id"""
    )
    return dict(await cursor.fetchall())


async def oldest_in_flight(connection: Connection) -> dict[int | None, float]:
    """Return for how many seconds the oldest mail in flight has been in its state, by id of its external account; None
    is mail between local accounts.
    """
    cursor = await connection.execute(
        """select external_id, extract(epoch from now() - min(state_at))::float8 from inbound
           where state in ('fetched', 'routed') group by external_id"""
    )
    return dict(await cursor.fetchall())


async def count_late(connection: Connection, seconds: float) -> int:
    """Count the fetched mails that have been in flight for longer than ``seconds`` since they were stored."""
    cursor = await connection.execute(
        """select count(*) from inbound where state in ('fetched', 'routed') and source || '' = 'fetched'
               and created_at < now() - make_interval(secs => %s)""",
        (seconds,),
    )
    [count] = await cursor.fetchone() or (0,)
    return int(count)


async def count_problems(connection: Connection) -> tuple[int, int, int]:
    """Count the held mails of started accounts, the parked mails, and those parked for a mail loop."""
    cursor = await connection.execute(
        """select count(*) filter (where i.state = 'held' and e.hold is not true),
               count(*) filter (where i.state = 'parked'), count(*) filter (where i.state = 'parked' and i.origin = %s)
           from inbound i left join external_accounts e on e.id = i.external_id where i.state in ('held', 'parked')""",
        (LOOP,),
    )
    held, parked, looping = await cursor.fetchone() or (0, 0, 0)
    return int(held), int(parked), int(looping)


@dataclass(frozen=True, slots=True)
class UnstartedMail:
    """The mail that waits for the start of an external account."""

    external_id: int
    address: str  # of the account
    people: int  # enabled users who share it
    mails: int  # on hold
    oldest: float  # seconds since the first of them was held; 0.0 without mail


async def count_unstarted(connection: Connection) -> list[UnstartedMail]:
    """Count the held mails of each external account that is not started (``hold``); ordered by address."""
    cursor = await connection.execute(
        """select e.id, e.address,
                  (select count(*) from local_accounts l
                   where l.external_id = e.id and l.enabled and l.removed_at is null),
                  count(i.id), coalesce(extract(epoch from now() - min(i.state_at)), 0)::float8
           from external_accounts e left join inbound i on i.external_id = e.id and i.state = 'held'
           where e.hold and e.removed_at is null group by e.id order by e.address"""
    )
    return [UnstartedMail(*row) for row in await cursor.fetchall()]


async def count_held(connection: Connection, external_id: int) -> int:
    """Count the held mails of an external account."""
    cursor = await connection.execute(
        "select count(*) from inbound where state = 'held' and external_id = %s", (external_id,)
    )
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def count_per_hour(connection: Connection, hours: int = 24) -> dict[datetime.datetime, int]:
    """Count the mails fetched in each of the last hours; hours without mail are left out."""
    cursor = await connection.execute(
        """select date_trunc('hour', created_at), count(*) from inbound
           where created_at > now() - make_interval(hours => %s) and source = 'fetched' group by 1""",
        (hours,),
    )
    return {row[0]: int(row[1]) for row in await cursor.fetchall()}


# ---------------------------------------------------------------------------------------------- mails


@dataclass(frozen=True, slots=True)
class ListedInbound:
    """A mail as shown to the operator."""

    id: int
    source: str
    external: str | None
    message_id: str | None
    state: str
    reason: str | None
    failures: int
    origin: str | None
    error: str | None  # a traceback
    state_at: datetime.datetime  # when it entered its state
    blob_id: int


async def list_inbound(
    connection: Connection, state: Literal["held", "parked"], ids: Sequence[int] | None = None, limit: int = 1000
) -> list[ListedInbound]:
    """List held or parked mails, the oldest first."""
    cursor = await connection.execute(
        """select i.id, i.source, e.address, i.message_id, i.state, i.reason, i.failures, i.origin, i.error, i.state_at,
                  i.blob_id
           from inbound i left join external_accounts e on e.id = i.external_id
           where i.state = %(state)s and (%(ids)s::bigint[] is null or i.id = any(%(ids)s))
           order by i.state_at, i.id limit %(limit)s""",
        {"state": state, "ids": None if ids is None else list(ids), "limit": limit},
    )
    return [ListedInbound(*row) for row in await cursor.fetchall()]


async def count_stuck(connection: Connection, state: Literal["held", "parked"], limit: int) -> int:
    """Count the held or parked mails. :param limit: the count ends there."""
    cursor = await connection.execute(
        """select count(*) from (
               select from inbound where state in ('fetched', 'routed', 'held', 'parked') and state = %s
               limit %s) counted""",
        (state, limit),
    )
    [count] = await cursor.fetchone() or (0,)
    return int(count)


async def find_inbound(connection: Connection, what: str, limit: int = 100) -> dict[int, str | None]:
    """Find mails by id, Message-ID, or the address of an account or a recipient; the newest ones.

    :return: id to Message-ID, in order of id.
    """
    number = int(what) if what.isascii() and what.isdigit() and len(what) < 19 else None
    cursor = await connection.execute(
        """select i.id, i.message_id from inbound i
           where i.id = %(number)s or i.message_id = %(what)s
              or i.external_id in (select id from external_accounts where lower(address) = lower(%(what)s))
              or exists (select from deliveries d join local_accounts l on l.id = d.local_id
                         where d.inbound_id = i.id and lower(l.address) = lower(%(what)s))
           order by i.id desc limit %(limit)s""",
        {"number": number, "what": what, "limit": limit},
    )
    return {int(row[0]): row[1] for row in sorted(await cursor.fetchall())}


async def list_inside(connection: Connection, submissions: Collection[int]) -> dict[int, int]:
    """Return the mails that these submissions became inside: to local accounts, or to external accounts of ours.

    :return: id of the mail to id of its submission.
    """
    cursor = await connection.execute(
        """select id, submission_id from inbound
           where submission_id = any(%s::bigint[]) and source in ('local', 'submitted')""",
        (array_literal(submissions),),
    )
    return {int(row[0]): int(row[1]) for row in await cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class InboundDetail:
    """A mail with its state."""

    id: int
    source: str
    external: str | None
    message_id: str | None
    state: str
    rule: int | None
    reason: str | None
    own_copy: bool
    error: str | None
    origin: str | None
    submission_id: int | None
    blob_id: int  # its bytes
    octets: int  # of the whole mail
    created_at: datetime.datetime  # when it arrived


@dataclass(frozen=True, slots=True)
class Copyholder:
    """A recipient of a mail, with the reason."""

    local_id: int
    address: str
    user_name: str
    rule: int | None
    reason: str
    done_at: datetime.datetime | None  # when it was delivered
    there: bool  # it is in the mailbox, not deleted


async def load_detail(connection: Connection, inbound_id: int) -> InboundDetail | None:
    """Load one mail."""
    cursor = await connection.execute(
        """select i.id, i.source, e.address, i.message_id, i.state, i.rule, i.reason, i.own_copy, i.error, i.origin,
                  i.submission_id, i.blob_id, m.octets, i.created_at
           from inbound i join blobs m on m.id = i.blob_id left join external_accounts e on e.id = i.external_id
           where i.id = %s""",
        (inbound_id,),
    )
    row = await cursor.fetchone()
    return None if row is None else InboundDetail(*row)


async def list_holders(connection: Connection, inbound_id: int) -> list[Copyholder]:
    """List all recipients of a mail, ordered by address."""
    cursor = await connection.execute(
        """select d.local_id, l.address, l.user_name, d.rule, d.reason,
                  coalesce(d.done_at, case i.state when 'delivered' then i.state_at end),
                  d.local_id in (
                      select f.local_id from inbound o join folder_mails r on r.blob_id = o.blob_id and r.mail_id = o.id
                          join folders f on f.id = r.folder_id
                      where o.id = %(id)s and r.expunged_at is null)
           from deliveries d join inbound i on i.id = d.inbound_id join local_accounts l on l.id = d.local_id
           where d.inbound_id = %(id)s order by l.address""",
        {"id": inbound_id},
    )
    return [Copyholder(*row) for row in await cursor.fetchall()]


# ---------------------------------------------------------------------------------------------- operations


async def requeue_inbound(connection: Connection, ids: Sequence[int]) -> list[int]:
    """Give parked mails another five tries. :return: the ids of those that were parked.

    A mail with undelivered copies was parked by the mailbox service. Any other mail goes to the router, even if some
    recipients have their copies: it came back to the router after an account was removed.
    """
    cursor = await connection.execute(
        """update inbound i set failures = 0, error = null, origin = null, swept_at = null,
                  state_at = now() - interval '1 hour',
                  state = case when to_do.copies then 'routed' else 'fetched' end,
                  reason = case when to_do.copies then i.reason else %s end
           from inbound as parked cross join lateral (
               select exists (select from deliveries d where d.inbound_id = parked.id and d.done_at is null) as copies
           ) as to_do
           where i.id = parked.id and i.id = any(%s) and i.state = 'parked' returning i.id""",
        (REQUEUED, list(ids)),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def discard_inbound(connection: Connection, ids: Sequence[int], reason: str) -> list[int]:
    """Discard parked or held mails. :return: the ids of those that were."""
    cursor = await connection.execute(
        """update inbound set state = 'discarded', reason = %s, state_at = now()
           where id = any(%s) and state in ('parked', 'held') returning id""",
        (reason, list(ids)),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def add_holder(connection: Connection, inbound_id: int, local_id: int, reason: str) -> None:
    """Record a copy that the operator gave to a person."""
    await connection.execute(
        """insert into deliveries (inbound_id, local_id, reason, done_at) values (%s, %s, %s, now())
           on conflict (inbound_id, local_id) do update set done_at = coalesce(deliveries.done_at, now())""",
        (inbound_id, local_id, reason),
    )


async def add_holders(connection: Connection, ids: Collection[int], local_id: int, reason: str) -> None:
    """As ``add_holder`` for many mails; ids of other mails are left out."""
    await connection.execute(
        """insert into deliveries (inbound_id, local_id, reason, done_at)
           select id, %s, %s, now() from inbound where id = any(%s::bigint[]) on conflict do nothing""",
        (local_id, reason, array_literal(ids)),
    )


# ---------------------------------------------------------------------------------------------- purging


async def purge_inbound(connection: Connection, blob_ids: Collection[int]) -> int:
    """Delete the finished mails with these bytes, if no folder has the bytes any more.

    Their counts move to purged_mails, their Message-IDs to sent_mail.

    :return: the number of mails.
    """
    cursor = await connection.execute(
        f"""with purged as (
               delete from inbound i where blob_id = any(%s::bigint[]) and state in ('delivered', 'discarded')
                   and not exists (select from folder_mails r where r.blob_id = i.blob_id)
               returning id, external_id, source, own_copy and state = 'delivered' as own_copy, blob_id, message_id),
           forgotten as (delete from delivered d using purged p where d.inbound_id = p.id),
           ids_from_outside as ({sent_mail.FROM_PURGED}),
           counted as (
               insert into purged_mails (external_id, delivered, own_copies)
               select external_id, count(*) filter (where not own_copy), count(*) filter (where own_copy) from purged
               where source = 'fetched' and external_id is not null group by external_id
               on conflict (external_id) do update set delivered = purged_mails.delivered + excluded.delivered,
                   own_copies = purged_mails.own_copies + excluded.own_copies)
           select from purged""",
        (array_literal(blob_ids),),
    )
    return cursor.rowcount


async def list_discarded(connection: Connection, before: datetime.datetime, limit: int) -> list[int]:
    """List the bytes of the mails that the operator discarded before this time, by blob id."""
    cursor = await connection.execute(
        "select blob_id from inbound where state = 'discarded' and state_at < %s order by state_at limit %s",
        (before, limit),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


# ---------------------------------------------------------------------------------------------- after a restore


async def reserve_id_gap(connection: Connection) -> None:
    """Skip ids after a restore: those assigned since the backup are in queues and logs, and must not name other
    mails.
    """
    await connection.execute("select setval('mail_ids', nextval('mail_ids') + 10000000)")
