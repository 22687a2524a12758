"""The ledger of each mail at a provider, and all SQL on it (table uidl_ledger).

A poll writes here only in a transaction that renews its lease (``polls.renew_lease``).
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import Connection, storable
from shared.model import LedgerEntry, LedgerState, Poll
from shared.store import polls


@dataclass(frozen=True, slots=True)
class FetchedNow:
    """A mail whose bytes are committed in this transaction."""

    row: int | None  # id of its ledger row, if it has one
    key: str
    octets: int
    sha256: bytes
    inbound_id: int | None  # None: only renumbered
    deleting: bool  # its DELE is sent next
    superseded: int | None = None  # the history row that has its new UIDL already


@dataclass(frozen=True, slots=True)
class SkippedNow:
    """A mail that stays at the provider."""

    row: int | None
    key: str
    octets: int | None
    reason: str
    tries: int
    next_try_at: datetime.datetime | None  # None: try again only when the size limit has grown


async def record_first_contact(connection: Connection, poll: Poll, keys: Sequence[str]) -> datetime.datetime:
    """Record the first contact: the present mail of the maildrop is history. :return: its time."""
    first_contact_at = await polls.record_first_contact(connection, poll)
    await connection.execute(
        """insert into uidl_ledger (external_id, uidl, state, was_history)
           select %s::bigint, uidl, 'history', true from unnest(%s::text[]) uidl on conflict do nothing""",
        (poll.external_id, list(keys)),
    )
    return first_contact_at


async def load_entries(connection: Connection, external_id: int) -> list[LedgerEntry]:
    """Load every row of an account except the closed ones."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        """select id, uidl, state, before, was_history, octets, sha256, fetched_at, tries, next_try_at, state_at
           from uidl_ledger where external_id = %s and state <> 'closed'""",
        (external_id,),
    )
    return [LedgerEntry(*row) for row in await cursor.fetchall()]


async def load_heads(connection: Connection, external_id: int, rows: Collection[int], octets: int) -> dict[int, bytes]:
    """Load the beginnings of the fetched mails of these rows, by id of the row. :param octets: of each."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        """select u.id, substring(b.head for %s) from uidl_ledger u
               join inbound i on i.id = u.inbound_id join blobs b on b.id = i.blob_id
           where u.id = any(%s::bigint[]) and u.external_id = %s""",
        (octets, array_literal(rows), external_id),
    )
    return {int(row[0]): bytes(row[1]) for row in await cursor.fetchall()}


async def load_closed(connection: Connection, external_id: int, keys: Sequence[str]) -> list[LedgerEntry]:
    """Load the closed rows with these keys."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        """select id, uidl, state, before, was_history, octets, sha256, fetched_at, tries, next_try_at, state_at
           from uidl_ledger where external_id = %s and uidl = any(%s) and state = 'closed'""",
        (external_id, list(keys)),
    )
    return [LedgerEntry(*row) for row in await cursor.fetchall()]


async def find_present(connection: Connection, external_id: int, message_ids: Collection[str]) -> list[str]:
    """Return the keys of the fetched mails with these Message-IDs that the provider lists, as far as it is known."""
    cursor = await connection.execute(
        """select distinct u.uidl from inbound i join uidl_ledger u on u.inbound_id = i.id
           where i.message_id = any(%s::text[]) and i.external_id = %s and i.source || '' = 'fetched'
               and u.external_id = i.external_id and u.state = 'fetched' order by u.uidl""",
        (array_literal(storable(message_id) for message_id in message_ids), external_id),
    )
    return [str(row[0]) for row in await cursor.fetchall()]


_DETACH = """update uidl_ledger set uidl = uidl || ' before ' || id, state = 'vanished', state_at = now(),
    before = case state when 'vanished' then before when 'deleting' then 'fetched' else state end"""


async def detach_uidls(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """Detach rows whose UIDLs name other mails by now: the account points at another maildrop, or its UIDLs are
    positions in a list.

    A blank is added to the keys, which no UIDL contains; the bytes stay known, for mail that is still there.
    """
    await connection.execute(f"{_DETACH} where id = any(%s) and state <> 'closed'", ([row.id for row in rows],))


async def detach_all_uidls(connection: Connection, external_id: int) -> None:
    """Detach all rows of an account whose mails have keys of another protocol from now on, as ``detach_uidls``.

    So no key of POP3 is taken for one of IMAP, and an interrupted deletion does not count as done because its key is
    not listed any more.
    """
    await connection.execute(f"{_DETACH} where external_id = %s and state <> 'closed'", (external_id,))


async def record_vanished(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """Record that mails are missing from the list although we did not delete them."""
    await connection.execute(
        """update uidl_ledger set before = state, state = 'vanished', state_at = now()
           where id = any(%s) and state in ('history', 'fetched', 'skipped')""",
        ([row.id for row in rows],),
    )


async def record_reappeared(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """Record that vanished mails are listed again under their UIDL."""
    await connection.execute(
        """update uidl_ledger set state = before, before = null, state_at = now()
           where id = any(%s) and state = 'vanished'""",
        ([row.id for row in rows],),
    )


async def record_closed(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """Record that mails which we deleted are missing from the list."""
    await connection.execute(
        "update uidl_ledger set state = 'closed', state_at = now() where id = any(%s) and state = 'deleting'",
        ([row.id for row in rows],),
    )


async def record_deleting(connection: Connection, rows: Sequence[LedgerEntry]) -> None:
    """Record that the DELE of these mails is sent next."""
    await connection.execute(
        "update uidl_ledger set state = 'deleting', state_at = now() where id = any(%s) and state = 'fetched'",
        ([row.id for row in rows],),
    )


async def record_renumbered_history(connection: Connection, pairs: Sequence[tuple[LedgerEntry, str]]) -> None:
    """Record that vanished mails of the first contact are listed under new keys."""
    await connection.execute(
        """update uidl_ledger u set uidl = n.uidl, state = 'history', before = null, state_at = now()
           from unnest(%s::bigint[], %s::text[]) n (id, uidl) where u.id = n.id and u.state = 'vanished'""",
        ([row.id for row, _ in pairs], [key for _, key in pairs]),
    )


async def record_fetched(connection: Connection, external_id: int, mails: Sequence[FetchedNow]) -> None:
    """Record mails whose bytes are committed in this transaction; those with a row were history, skipped, vanished
    or closed.

    All but the renumbered ones are counted for the reconciliation.
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
    if superseded:  # a mail from before the first contact stays history, whatever it was before
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
    """Record a mail that could not be fetched or stored. ``state_at`` stays the time of the first failure in a row."""
    if mail.row is None:
        await connection.execute(
            """insert into uidl_ledger (external_id, uidl, state, octets, reason, tries, next_try_at)
               values (%s, %s, 'skipped', %s, %s, %s, %s)""",
            (external_id, mail.key, mail.octets, mail.reason, mail.tries, mail.next_try_at),
        )
    else:
        await connection.execute(
            """update uidl_ledger set uidl = %s, state = 'skipped', before = null, octets = %s, reason = %s,
                      tries = %s, next_try_at = %s, state_at = case state when 'skipped' then state_at else now() end,
                      acknowledged_at = case when reason = %s then acknowledged_at end where id = %s""",
            (mail.key, mail.octets, mail.reason, mail.tries, mail.next_try_at, mail.reason, mail.row),
        )


@dataclass(frozen=True, slots=True)
class SkippedMail:
    """A mail that stays at the provider, for people."""

    id: int
    external: str
    uidl: str
    octets: int | None
    reason: str
    tries: int
    next_try_at: datetime.datetime | None  # None: no automatic retry
    since: datetime.datetime
    acknowledged_at: datetime.datetime | None


async def count_history(connection: Connection, external_id: int) -> tuple[int, int]:
    """Count the mails that were at the provider at the first contact: those that are not left to fetch, and all."""
    cursor = await connection.execute(
        """select count(*) filter (where state <> 'history'), count(*) from uidl_ledger
           where external_id = %s and was_history""",
        (external_id,),
    )
    done, total = await cursor.fetchone() or (0, 0)
    return int(done), int(total)


async def list_skipped(connection: Connection, external_id: int) -> list[SkippedMail]:
    """List the skipped mails of an account, the oldest first."""
    cursor = await connection.execute(
        """select u.id, e.address, u.uidl, u.octets, coalesce(u.reason, ''), u.tries, u.next_try_at, u.first_seen_at,
                  u.acknowledged_at
           from uidl_ledger u join external_accounts e on e.id = u.external_id
           where u.external_id = %s and u.state = 'skipped' order by u.id""",
        (external_id,),
    )
    return [SkippedMail(*row) for row in await cursor.fetchall()]


async def count_unacknowledged(connection: Connection) -> int:
    """Count the skipped mails that nobody has acknowledged."""
    cursor = await connection.execute(
        """select count(*) from uidl_ledger u join external_accounts e on e.id = u.external_id
           where u.state = 'skipped' and u.acknowledged_at is null and e.enabled and e.removed_at is null"""
    )
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def acknowledge_skipped(
    connection: Connection, external_id: int, ids: Collection[int] | None = None
) -> list[int]:
    """Acknowledge these skipped mails, or all. :return: the ids of the newly acknowledged ones."""
    cursor = await connection.execute(
        """update uidl_ledger set acknowledged_at = now()
           where external_id = %(external)s and state = 'skipped' and acknowledged_at is null
               and (%(ids)s::bigint[] is null or id = any(%(ids)s)) returning id""",
        {"external": external_id, "ids": None if ids is None else list(ids)},
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def retry_skipped(connection: Connection, external_id: int, ids: Collection[int] | None = None) -> list[int]:
    """Retry these skipped mails, or all, at once, however often they failed. :return: their ids."""
    cursor = await connection.execute(
        """update uidl_ledger set tries = 0, next_try_at = now(), acknowledged_at = null, state_at = now()
           where external_id = %(external)s and state = 'skipped'
               and (%(ids)s::bigint[] is null or id = any(%(ids)s)) returning id""",
        {"external": external_id, "ids": None if ids is None else list(ids)},
    )
    ids_retried = [int(row[0]) for row in await cursor.fetchall()]
    if ids_retried:
        await polls.poll_now(connection, external_id)
    return ids_retried


async def purge_ledger(
    connection: Connection, after: int, closed_before: datetime.datetime, vanished_before: datetime.datetime, limit: int
) -> tuple[int, int | None]:
    """Delete closed rows, and rows that vanished so long ago that no provider will list them again, among the next
    ``limit`` rows after this id.

    :return: their number; and the id to continue after, None at the end.
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
