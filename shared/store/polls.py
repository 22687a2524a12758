"""How polling each external account goes, and all SQL on it (table polls).

An account is polled by one process at a time: ``claim`` gives it to an owner until the lease expires, and whatever
that owner commits calls ``hold`` in the same transaction, which fails if somebody else has the account by then.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shared.db import liveness
from shared.db.arrays import array_literal
from shared.db.database import FUTURE, Connection
from shared.errors import Temporary
from shared.model import POLLER_DIED, Poll, PollOutcome

LEASE_SECONDS = 15.0
"""After so long without a sign of life of its owner an account may be polled by another process."""


class LeaseLost(Temporary):
    """Another process polls this account by now: nothing more may be written for it."""


@dataclass(frozen=True, slots=True)
class PollState:
    """How polling an account goes, for people. backlog: mails listed and not yet fetched.

    skipped: mails that could not be fetched, but for those of which somebody said that this is known.
    first_contact_at: None before the provider's list was seen for the first time.
    """

    external_id: int
    last_success_at: datetime.datetime | None
    last_error: str | None
    last_error_kind: str | None
    last_error_at: datetime.datetime | None
    failures: int
    paused_at: datetime.datetime | None
    next_poll_at: datetime.datetime
    backlog: int | None
    skipped: int
    first_contact_at: datetime.datetime | None


async def poll_now(connection: Connection, external_id: int) -> None:
    """The account was changed or tested: poll it at once, whatever failed before.

    A poll that is under way with the old settings does not count: ``finish`` sees that next_poll_at was touched.
    """
    await connection.execute(
        """update polls set paused_at = null, refusals = '{}', failures = 0, next_poll_at = clock_timestamp(),
                  login_delay = null, quiet_list = null
           where external_id = %s""",
        (external_id,),
    )


async def forget_maildrop(connection: Connection, external_id: int) -> None:
    """The account points at another maildrop now: what lies there is history, unless the ledger knows some of it."""
    await connection.execute("update polls set first_contact_at = null where external_id = %s", (external_id,))


async def claim_due(connection: Connection, owner: str, max_accounts: int) -> tuple[list[Poll], float | None]:
    """Take up to ``most`` accounts that are due and not being polled, those first that are due longest.

    It is one statement: one round trip, and a transaction by itself where none is open. What is due is an array: so
    PostgreSQL looks those rows up and does not read all of them.

    :param owner: the process, a slash, and what is unique to this call, so that a claim of before is never taken for
        this one.
    :return: what was taken; seconds until the next other one is due or its lease expires, None if there is none.
    """
    cursor = await connection.execute(
        """with due as materialized (
               select external_id from polls where active and greatest(next_poll_at, lease_expires) <= now()
               order by greatest(next_poll_at, lease_expires) limit %s for update skip locked),
           taken as (
               update polls p set owner = %s, lease_expires = now() + make_interval(secs => %s)
               where p.external_id = any(array(select external_id from due))
               returning p.external_id, p.owner, now(), p.next_poll_at, p.first_contact_at, p.last_success_at,
                         p.last_error_kind, p.failures, p.refusals, p.paused_at, p.login_delay, p.quiet_list,
                         p.quiet_until)
           select (select extract(epoch from greatest(next_poll_at, lease_expires) - now())::float8 from polls
                   where active and external_id not in (select external_id from due)
                   order by greatest(next_poll_at, lease_expires) limit 1), taken.*
           from (values (true)) as always left join taken on true""",
        (max_accounts, owner, LEASE_SECONDS),
    )
    rows = await cursor.fetchall()
    return [Poll(*row[1:]) for row in rows if row[1] is not None], rows[0][0]


async def renew_lease(connection: Connection, poll: Poll) -> None:
    """Renew the lease; to be called first in every transaction of a poll. The maildrop counts as quiet no more.

    :raises LeaseLost: another owner has the account, or it was removed or disabled.
    """
    cursor = await connection.execute(
        """update polls set lease_expires = clock_timestamp() + make_interval(secs => %s), quiet_list = null
           where external_id = %s and owner = %s and active""",
        (LEASE_SECONDS, poll.external_id, poll.owner),
    )
    if cursor.rowcount != 1:
        raise LeaseLost("the account is polled by another process by now, or was disabled")


async def record_outcome(connection: Connection, poll: Poll, outcome: PollOutcome) -> None:
    """Record how the poll ended and give the account back; nothing if the lease was lost."""
    await connection.execute(
        """update polls set owner = null, lease_expires = null, login_delay = %(login_delay)s,
                  quiet_list = case when next_poll_at = %(seen)s then %(quiet_list)s::bytea end,
                  quiet_until = %(quiet_until)s,
                  backlog = coalesce(%(backlog)s, backlog),
                  last_success_at = case when %(error)s::text is null then now() else last_success_at end,
                  last_error = case when %(error)s::text is null then null
                                    when next_poll_at = %(seen)s then %(error)s else last_error end,
                  last_error_kind = case when %(error)s::text is null then null
                                         when next_poll_at = %(seen)s then %(kind)s else last_error_kind end,
                  last_error_at = case when %(error)s::text is null then last_error_at
                                       when next_poll_at = %(seen)s then now() else last_error_at end,
                  failures = case when next_poll_at = %(seen)s then %(failures)s else failures end,
                  refusals = case when next_poll_at = %(seen)s then %(refusals)s else refusals end,
                  paused_at = case when next_poll_at = %(seen)s then %(paused_at)s else paused_at end,
                  next_poll_at = case when next_poll_at = %(seen)s then %(next_poll_at)s else next_poll_at end
           where external_id = %(external_id)s and owner = %(owner)s""",
        {
            "external_id": poll.external_id,
            "owner": poll.owner,
            "seen": poll.next_poll_at,
            "error": outcome.error,
            "kind": outcome.kind,
            "failures": outcome.failures,
            "refusals": list(outcome.refusals),
            "paused_at": outcome.paused_at,
            "login_delay": outcome.login_delay,
            "backlog": outcome.backlog,
            "next_poll_at": outcome.next_poll_at,
            "quiet_list": outcome.quiet_list,
            "quiet_until": outcome.quiet_until,
        },
    )


async def record_first_contact(connection: Connection, poll: Poll) -> datetime.datetime:
    """First contact: from now on it is known what lay there. :return: this time.

    :raises LeaseLost: the account is gone.
    """
    cursor = await connection.execute(
        "update polls set first_contact_at = now() where external_id = %s returning first_contact_at",
        (poll.external_id,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise LeaseLost("the account has no poll any more")
    found: datetime.datetime = row[0]
    return found


async def count_fetched(connection: Connection, external_id: int, mails: int) -> None:
    """So many more mails were fetched; for the books."""
    await connection.execute("update polls set fetched = fetched + %s where external_id = %s", (mails, external_id))


async def release_lease(connection: Connection, poll: Poll) -> None:
    """Give the account back without a result, due as before."""
    await connection.execute(
        "update polls set owner = null, lease_expires = null where external_id = %s and owner = %s",
        (poll.external_id, poll.owner),
    )


async def load_fetched_counts(connection: Connection) -> dict[int, int]:
    """How many mails were ever fetched, by id of the external account."""
    cursor = await connection.execute("select external_id, fetched from polls")
    return dict(await cursor.fetchall())


async def list_dead_owners(connection: Connection, owner: str) -> list[str]:
    """Which processes hold accounts and are not there, ``owner`` left out."""
    process = "split_part(owner, '/', 1)"
    cursor = await connection.execute(
        f"""select distinct {process} from polls
            where owner is not null and {process} <> %s and {liveness.OWNER_IS_DEAD.format(owner=process)}""",
        (owner,),
    )
    return [str(row[0]) for row in await cursor.fetchall()]


async def free_leases(connection: Connection, gone: Collection[str]) -> int:
    """Give back the accounts of processes that are gone, due as before. Returns how many that were.

    An account whose poll ends the process each time waits longer and longer, up to a minute, so that others have their
    polls between. Its next poll that ends otherwise makes that good.
    """
    cursor = await connection.execute(
        """update polls set owner = null, lease_expires = null, last_error_at = now(), last_error_kind = %(kind)s,
                  failures = case when last_error_kind = %(kind)s then failures + 1 else 1 end,
                  last_error = case when paused_at is null then 'the fetcher ended while it polled this account'
                                    else last_error end,
                  next_poll_at = case when last_error_kind = %(kind)s and failures > 1
                                      then now() + make_interval(secs => least(60, 2 ^ least(failures, 6)))
                                      else next_poll_at end
           where split_part(owner, '/', 1) = any(%(gone)s::text[])""",
        {"gone": array_literal(gone), "kind": POLLER_DIED},
    )
    return cursor.rowcount


async def fix_clock_jump(connection: Connection) -> int:
    """Make accounts due that would wait for a time that was meant before the clock was set back. How many those are."""
    cursor = await connection.execute(
        f"""update polls set next_poll_at = now()
            where next_poll_at > now() and greatest(last_success_at, last_error_at) > {FUTURE} and owner is null"""
    )
    return cursor.rowcount


async def load_poll_states(connection: Connection, external_ids: Sequence[int] | None = None) -> dict[int, PollState]:
    """How polling goes, by id of the external account; only these, if any are given."""
    cursor = await connection.execute(
        """select external_id, last_success_at, last_error, last_error_kind, last_error_at, failures, paused_at,
                  next_poll_at, backlog,
                  (select count(*) from uidl_ledger u where u.external_id = p.external_id and u.state = 'skipped'
                      and u.acknowledged_at is null),
                  first_contact_at
           from polls p where %(ids)s::bigint[] is null or external_id = any(%(ids)s)""",
        {"ids": None if external_ids is None else list(external_ids)},
    )
    return {int(row[0]): PollState(*row) for row in await cursor.fetchall()}


async def poll_all_now(connection: Connection) -> None:
    """After a restore: nobody polls, and every list is compared again."""
    await connection.execute(
        "update polls set owner = null, lease_expires = null, quiet_list = null, next_poll_at = now()"
    )
