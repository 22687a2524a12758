"""Work at the providers' IMAP servers that follows a relayed mail, and all SQL on it (table provider_filings).

A row is committed with the result of the relay, so no copy is forgotten. A process that claims rows has time
until their ``next_try_at``; if it dies meanwhile, the next one takes them then.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.db.arrays import array_literal
from shared.db.database import Connection, storable

FIRST_SECONDS = 5.0
"""Pause before the first try: seconds; a provider that files sent mail itself has done so by then, as a rule."""
LEASE_SECONDS = 900.0
"""Time that a process has for the rows that it has claimed: seconds; more than a session with the limits of time."""
KEPT_DAYS = 5
"""Age up to which a filing is tried: days, as long as mail is."""

FilingKind = Literal["sent", "answered"]


@dataclass(frozen=True, slots=True)
class Filing:
    """A claimed row."""

    submission_id: int
    kind: FilingKind
    tries: int  # failed ones
    message_id: str  # of the mail that was sent
    blob_id: int


@dataclass(frozen=True, slots=True)
class FilingTrouble:
    """What cannot be filed at the provider of an account."""

    external_id: int
    count: int  # filings that have failed and are tried again
    error: str  # of the latest try


async def add_filings(connection: Connection, rows: Collection[tuple[int, FilingKind, int]]) -> None:
    """Add work: (submission_id, kind, external_id). What is to be done already stays as it is."""
    await connection.execute(
        """insert into provider_filings (submission_id, kind, external_id, next_try_at)
           select id, kind, external_id, now() + make_interval(secs => %s)
           from unnest(%s::bigint[], %s::text[], %s::bigint[]) n (id, kind, external_id)
           order by id, kind on conflict do nothing""",
        (FIRST_SECONDS, *(array_literal(column) for column in zip(*sorted(rows), strict=True))),
    )


async def list_due(connection: Connection) -> list[int]:
    """List the enabled external accounts that have due work."""
    cursor = await connection.execute(
        """select e.id from external_accounts e where e.enabled and e.removed_at is null
               and exists (select from provider_filings f where f.external_id = e.id and f.next_try_at <= now())
           order by e.id"""
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def claim(connection: Connection, external_id: int, limit: int) -> list[Filing]:
    """Claim due work of an account, the oldest first. :param limit: of rows."""
    cursor = await connection.execute(
        """with due as (
               select submission_id, kind from provider_filings
               where external_id = %s and next_try_at <= now()
               order by next_try_at, submission_id limit %s for update skip locked)
           update provider_filings f set next_try_at = now() + make_interval(secs => %s)
           from due, submissions s
           where f.submission_id = due.submission_id and f.kind = due.kind and s.id = f.submission_id
           returning f.submission_id, f.kind, f.tries, s.message_id, s.blob_id""",
        (external_id, limit, LEASE_SECONDS),
    )
    return sorted([Filing(*row) for row in await cursor.fetchall()], key=lambda filing: filing.submission_id)


async def remove(connection: Connection, filings: Collection[Filing]) -> None:
    """Remove work that is done, or that there is nothing to do for."""
    await connection.execute(
        """delete from provider_filings f using unnest(%s::bigint[], %s::text[]) n (id, kind)
           where f.submission_id = n.id and f.kind = n.kind""",
        (array_literal(f.submission_id for f in filings), array_literal(f.kind for f in filings)),
    )


async def record_failure(connection: Connection, filings: Sequence[Filing], error: str, seconds: float) -> int:
    """Record a failed try. :param seconds: until the next one. :return: how many are given up, for their age."""
    ids, kinds = array_literal(f.submission_id for f in filings), array_literal(f.kind for f in filings)
    await connection.execute(
        """update provider_filings f set tries = tries + 1, error = %s, next_try_at = now() + make_interval(secs => %s)
           from unnest(%s::bigint[], %s::text[]) n (id, kind) where f.submission_id = n.id and f.kind = n.kind""",
        (storable(error), seconds, ids, kinds),
    )
    cursor = await connection.execute(
        """delete from provider_filings f using unnest(%s::bigint[], %s::text[]) n (id, kind)
           where f.submission_id = n.id and f.kind = n.kind and f.created_at < now() - make_interval(days => %s)""",
        (ids, kinds, KEPT_DAYS),
    )
    return cursor.rowcount


async def retry_account(connection: Connection, external_id: int) -> None:
    """Make all work of an account due, after a change of it."""
    await connection.execute(
        "update provider_filings set next_try_at = now() where external_id = %s and error is not null", (external_id,)
    )


async def load_troubles(connection: Connection) -> dict[int, FilingTrouble]:
    """Load what has failed and is tried again, by id of the external account."""
    cursor = await connection.execute(
        """select external_id, count(*), (array_agg(error order by next_try_at desc))[1] from provider_filings
           where error is not null group by external_id"""
    )
    return {int(row[0]): FilingTrouble(*row) for row in await cursor.fetchall()}
