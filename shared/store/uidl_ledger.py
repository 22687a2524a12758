"""The ledger: what we know of each mail at a provider, and all SQL on it (table uidl_ledger).

What a poll writes here stands in a transaction in which it holds its account (``polls.hold``).
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.model import LedgerEntry, LedgerState, Poll
from shared.store import polls


@dataclass(frozen=True, slots=True)
class FetchedNow:
    """A mail that is committed here. row: its ledger row if it has one. inbound_id: None for one that is only
    renumbered. deleting: its DELE comes next. superseded: the history row that its new UIDL has already."""

    row: int | None
    key: str
    octets: int
    sha256: bytes
    inbound_id: int | None
    deleting: bool
    superseded: int | None = None


@dataclass(frozen=True, slots=True)
class SkippedNow:
    """A mail that stays upstream. next_try_at: None to try it only when the size limit has grown."""

    row: int | None
    key: str
    octets: int | None
    reason: str
    tries: int
    next_try_at: datetime.datetime | None


async def record_first_contact(connection: Connection, poll: Poll, keys: Sequence[str]) -> datetime.datetime:
    """First contact: what the maildrop holds now is history. Returns its time."""
    first_contact_at = await polls.record_first_contact(connection, poll)
    await connection.execute(
        """insert into uidl_ledger (external_id, uidl, state, was_history)
           select %s::bigint, uidl, 'history', true from unnest(%s::text[]) uidl on conflict do nothing""",
        (poll.external_id, list(keys)),
    )
    return first_contact_at


async def load_entries(connection: Connection, external_id: int) -> list[LedgerEntry]:
    """Every row of an account but the closed ones."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        """select id, uidl, state, before, was_history, octets, sha256, fetched_at, tries, next_try_at, state_at
           from uidl_ledger where external_id = %s and state <> 'closed'""",
        (external_id,),
    )
    return [LedgerEntry(*row) for row in await cursor.fetchall()]


async def detach_uidls(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """Their UIDLs are other mails by now: the account points at another maildrop, or UIDLs tell only places in a list.
    The keys get a blank, which no UIDL holds; the bytes stay known, for mail that is still there."""
    await connection.execute(
        """update uidl_ledger set uidl = uidl || ' before ' || id, state = 'vanished', state_at = now(),
                  before = case state when 'vanished' then before when 'deleting' then 'fetched' else state end
           where id = any(%s) and state <> 'closed'""",
        ([row.id for row in rows],),
    )


async def record_vanished(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """They are gone, and we did not delete them."""
    await connection.execute(
        """update uidl_ledger set before = state, state = 'vanished', state_at = now()
           where id = any(%s) and state in ('history', 'fetched', 'skipped')""",
        ([row.id for row in rows],),
    )


async def record_reappeared(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """Vanished mails that are listed again under their UIDL."""
    await connection.execute(
        """update uidl_ledger set state = before, before = null, state_at = now()
           where id = any(%s) and state = 'vanished'""",
        ([row.id for row in rows],),
    )


async def record_closed(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """We deleted them and they are gone."""
    await connection.execute(
        "update uidl_ledger set state = 'closed', state_at = now() where id = any(%s) and state = 'deleting'",
        ([row.id for row in rows],),
    )


async def record_deleting(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """Their DELE comes next."""
    await connection.execute(
        "update uidl_ledger set state = 'deleting', state_at = now() where id = any(%s) and state = 'fetched'",
        ([row.id for row in rows],),
    )


async def record_renumbered_history(connection: Connection, pairs: Sequence[tuple[LedgerEntry, str]]) -> None:
    """Vanished mails of the first contact that are listed under new keys."""
    await connection.execute(
        """update uidl_ledger u set uidl = n.uidl, state = 'history', before = null, state_at = now()
           from unnest(%s::bigint[], %s::text[]) n (id, uidl) where u.id = n.id and u.state = 'vanished'""",
        ([row.id for row, _ in pairs], [key for _, key in pairs]),
    )


async def record_fetched(connection: Connection, external_id: int, mails: Sequence[FetchedNow]) -> None:
    """Mails whose bytes are committed in this transaction; those with a row were history, skipped or vanished.

    Those that are not only renumbered are counted for the books.
    """
    new = sum(mail.inbound_id is not None for mail in mails)
    if new:
        await polls.count_fetched(connection, external_id, new)
    added = [mail for mail in mails if mail.row is None]
    if added:
        await connection.execute(
            """insert into uidl_ledger (external_id, uidl, state, octets, sha256, inbound_id, fetched_at)
               select %s::bigint, uidl, state, octets, sha256, inbound_id, now()
               from unnest(%s::text[], %s::text[], %s::bigint[], %s::bytea[], %s::bigint[])
                    m (uidl, state, octets, sha256, inbound_id)""",
            (
                external_id,
                array_literal(mail.key for mail in added),
                array_literal(_state(mail) for mail in added),
                array_literal(mail.octets for mail in added),
                array_literal(mail.sha256 for mail in added),
                array_literal(mail.inbound_id for mail in added),
            ),
        )
    changed = [mail for mail in mails if mail.row is not None]
    superseded = [mail for mail in changed if mail.superseded is not None]
    if superseded:  # what stood there when we came to this maildrop stays history, whatever it was before
        await connection.execute(
            "delete from uidl_ledger where id = any(%s)", ([mail.superseded for mail in superseded],)
        )
        await connection.execute(
            "update uidl_ledger set was_history = true where id = any(%s)", ([mail.row for mail in superseded],)
        )
    if changed:
        await connection.execute(
            """update uidl_ledger u set uidl = m.uidl, state = m.state, before = null, octets = m.octets,
                      sha256 = m.sha256, inbound_id = coalesce(m.inbound_id, u.inbound_id), reason = null, tries = 0,
                      next_try_at = null, state_at = now(),
                      fetched_at = case when m.inbound_id is null then u.fetched_at else now() end
               from unnest(%s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::bytea[], %s::bigint[])
                    m (id, uidl, state, octets, sha256, inbound_id)
               where u.id = m.id""",
            (
                array_literal(mail.row for mail in changed),
                array_literal(mail.key for mail in changed),
                array_literal(_state(mail) for mail in changed),
                array_literal(mail.octets for mail in changed),
                array_literal(mail.sha256 for mail in changed),
                array_literal(mail.inbound_id for mail in changed),
            ),
        )


def _state(mail: FetchedNow) -> LedgerState:
    return "deleting" if mail.deleting else "fetched"


async def record_skipped(connection: Connection, external_id: int, mail: SkippedNow) -> None:
    """A mail that could not be fetched or stored."""
    if mail.row is None:
        await connection.execute(
            """insert into uidl_ledger (external_id, uidl, state, octets, reason, tries, next_try_at)
               values (%s, %s, 'skipped', %s, %s, %s, %s)""",
            (external_id, mail.key, mail.octets, mail.reason, mail.tries, mail.next_try_at),
        )
    else:
        await connection.execute(
            """update uidl_ledger set uidl = %s, state = 'skipped', before = null, octets = %s, reason = %s,
                      tries = %s, next_try_at = %s, state_at = now(),
                      acknowledged_at = case when reason = %s then acknowledged_at end where id = %s""",
            (mail.key, mail.octets, mail.reason, mail.tries, mail.next_try_at, mail.reason, mail.row),
        )


@dataclass(frozen=True, slots=True)
class SkippedMail:
    """A mail that stays at the provider, for people. next_try_at: None if it is not tried by itself any more."""

    id: int
    external: str
    uidl: str
    octets: int | None
    reason: str
    tries: int
    next_try_at: datetime.datetime | None
    since: datetime.datetime
    acknowledged_at: datetime.datetime | None


async def list_skipped(connection: Connection, external_id: int) -> list[SkippedMail]:
    """The mails of an account that could not be fetched, the oldest first."""
    cursor = await connection.execute(
        """select u.id, e.address, u.uidl, u.octets, coalesce(u.reason, ''), u.tries, u.next_try_at, u.first_seen_at,
                  u.acknowledged_at
           from uidl_ledger u join external_accounts e on e.id = u.external_id
           where u.external_id = %s and u.state = 'skipped' order by u.id""",
        (external_id,),
    )
    return [SkippedMail(*row) for row in await cursor.fetchall()]


async def count_unacknowledged(connection: Connection) -> int:
    """How many mails could not be fetched, and nobody has said that this is known."""
    cursor = await connection.execute(
        """select count(*) from uidl_ledger u join external_accounts e on e.id = u.external_id
           where u.state = 'skipped' and u.acknowledged_at is null and e.enabled and e.removed_at is null"""
    )
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def acknowledge_skipped(
    connection: Connection, external_id: int, ids: Collection[int] | None = None
) -> list[int]:
    """These skipped mails, or all, are known to stay where they are. Returns which of them were not before."""
    cursor = await connection.execute(
        """update uidl_ledger set acknowledged_at = now()
           where external_id = %(external)s and state = 'skipped' and acknowledged_at is null
               and (%(ids)s::bigint[] is null or id = any(%(ids)s)) returning id""",
        {"external": external_id, "ids": None if ids is None else list(ids)},
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def retry_skipped(connection: Connection, external_id: int, ids: Collection[int] | None = None) -> list[int]:
    """Try these skipped mails, or all, at once, however often they failed. Returns which they are."""
    cursor = await connection.execute(
        """update uidl_ledger set tries = 0, next_try_at = now(), acknowledged_at = null
           where external_id = %(external)s and state = 'skipped'
               and (%(ids)s::bigint[] is null or id = any(%(ids)s)) returning id""",
        {"external": external_id, "ids": None if ids is None else list(ids)},
    )
    found = [int(row[0]) for row in await cursor.fetchall()]
    if found:
        await polls.poll_now(connection, external_id)
    return found


async def purge_ledger(
    connection: Connection, after: int, closed_before: datetime.datetime, vanished_before: datetime.datetime, limit: int
) -> tuple[int, int | None]:
    """Forget mails that we deleted and that are gone, and those that vanished so long ago that no provider will list
    them again, among the next ``limit`` rows after this id.

    :return: how many; and the id to go on after, None at the end.
    """
    cursor = await connection.execute(
        """with next as materialized (
               select id, state, state_at from uidl_ledger where id > %(after)s order by id limit %(limit)s),
           gone as (
               delete from uidl_ledger u using next where u.id = next.id and u.state = next.state
                   and u.state_at < case u.state when 'closed' then %(closed)s when 'vanished' then %(vanished)s end
               returning u.id)
           select (select max(id) from next), (select count(*) from gone)""",
        {"after": after, "limit": limit, "closed": closed_before, "vanished": vanished_before},
    )
    last, count = await cursor.fetchone() or (None, 0)
    return int(count), last
