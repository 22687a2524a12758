"""The state of polling each external account, and all SQL on it (table polls).

One process at a time polls an account: ``claim_due`` gives it to an owner until the lease expires. Each transaction of
that owner calls ``renew_lease``, which fails if another process has the account by then.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import FUTURE, Connection
from shared.errors import Temporary
from shared.model import POLLER_DIED, Poll, PollOutcome

LEASE_SECONDS = 15.0
"""Lease of an account: seconds without renewal after which another process may poll it."""

WATCH_SECONDS = 120.0
"""Lease of the watch of a mailbox: seconds without renewal after which another process may watch it. Until then its
mail waits for the next poll."""


class LeaseLost(Temporary):
    """Another process polls this account: this one must write nothing more for it."""


@dataclass(frozen=True, slots=True)
class PollState:
    """The state of polling an account, for people."""

    external_id: int
    last_success_at: datetime.datetime | None
    last_error: str | None
    last_error_kind: str | None
    last_error_at: datetime.datetime | None
    failures: int
    paused_at: datetime.datetime | None
    next_poll_at: datetime.datetime
    backlog: int | None  # mails listed and not fetched
    skipped: int  # mails that could not be fetched and are not acknowledged
    first_contact_at: datetime.datetime | None  # None before the first list
    added_at: datetime.datetime  # when the account was added


async def poll_now(connection: Connection, external_id: int) -> None:
    """Make an account due at once after a change or test, regardless of earlier failures.

    A running poll with the old settings does not count: ``record_outcome`` sees that next_poll_at was changed.
    """
    await connection.execute(
        """update polls set paused_at = null, refusals = '{}', failures = 0, next_poll_at = clock_timestamp(),
                  login_delay = null, quiet_list = null
           where external_id = %s""",
        (external_id,),
    )


async def hurry(connection: Connection, external_id: int) -> None:
    """Make an account due at once because mail has arrived there, if its polls work; others keep their pauses."""
    await connection.execute(
        """update polls set next_poll_at = clock_timestamp(), quiet_list = null
           where external_id = %s and failures = 0 and paused_at is null""",
        (external_id,),
    )


async def claim_watches(connection: Connection, watcher: str, max_accounts: int) -> list[int]:
    """Claim accounts that are fetched by IMAP, whose polls work and that no other process watches; renew the own ones.

    :param connection: in a transaction. :return: the ids of all accounts that this process watches now.
    """
    free = """(p.watch_expires is null
               or p.watch_expires not between now() and now() + make_interval(secs => %(seconds)s * 2))"""
    watched = """select p.external_id from polls p join external_accounts e on e.id = p.external_id
                 where p.active and e.imap_host is not null and p.failures = 0 and p.last_success_at is not null"""
    await connection.execute(
        f"""update polls p set watcher = %(watcher)s, watch_expires = now() + make_interval(secs => %(seconds)s)
            where external_id = any(array({watched} and (p.watcher = %(watcher)s or {free})
                                          order by p.watcher = %(watcher)s desc nulls last limit %(limit)s))
              and ({free} or p.watcher = %(watcher)s
                             and p.watch_expires < now() + make_interval(secs => %(seconds)s / 2))""",
        {"watcher": watcher, "seconds": WATCH_SECONDS, "limit": max_accounts},
    )
    cursor = await connection.execute(
        f"{watched} and p.watcher = %s and p.watch_expires > now() limit %s", (watcher, max_accounts)
    )
    return [row[0] for row in await cursor.fetchall()]


async def release_watches(connection: Connection, watcher: str) -> None:
    """Leave the accounts that this process watches to others."""
    await connection.execute("update polls set watcher = null, watch_expires = null where watcher = %s", (watcher,))


async def forget_maildrop(connection: Connection, external_id: int) -> None:
    """Forget the first contact of an account that points at another maildrop: its mail is history, unless the ledger
    knows it.
    """
    await connection.execute("update polls set first_contact_at = null where external_id = %s", (external_id,))


async def claim_due(
    connection: Connection, owner: str, max_accounts: int, full_servers: Collection[tuple[str, int]] = ()
) -> tuple[list[Poll], float | None]:
    """Claim up to ``max_accounts`` accounts that are due and not being polled, the longest due first.

    It is one statement: one round trip, and a transaction by itself where none is open. The due accounts are an array,
    so that PostgreSQL finds these rows by id and does not read all of them.

    :param owner: the process, a slash, and what is unique to this call, so that an earlier claim is never taken for
        this one.
    :param full_servers: hosts and ports whose accounts are left out.
    :return: the claimed accounts; seconds until the next other account is due or its lease expires, None without one.
    """
    left_out = ""
    if full_servers:
        left_out = """and external_id not in (
            select e.id from external_accounts e join unnest(%(hosts)s::text[], %(ports)s::int[]) as f (host, port)
                on coalesce(e.imap_host, e.pop3_host) = f.host and coalesce(e.imap_port, e.pop3_port) = f.port)"""
    cursor = await connection.execute(
        f"""with due as materialized (
               select external_id from polls where active and greatest(next_poll_at, lease_expires) <= now() {left_out}
               order by greatest(next_poll_at, lease_expires) limit %(limit)s for update skip locked),
           claimed as (
               update polls p set owner = %(owner)s, lease_expires = now() + make_interval(secs => %(seconds)s)
               where p.external_id = any(array(select external_id from due))
               returning p.external_id, p.owner, now(), p.next_poll_at, p.first_contact_at, p.last_success_at,
                         p.last_error_kind, p.failures, p.refusals, p.paused_at, p.login_delay, p.quiet_list,
                         p.quiet_until, p.quiet_state)
           select (select extract(epoch from greatest(next_poll_at, lease_expires) - now())::float8 from polls
                   where active and external_id not in (select external_id from due)
                   order by greatest(next_poll_at, lease_expires) limit 1), claimed.*
           from (values (true)) as always left join claimed on true""",
        {
            "limit": max_accounts,
            "owner": owner,
            "seconds": LEASE_SECONDS,
            "hosts": [host for host, _ in full_servers],
            "ports": [port for _, port in full_servers],
        },
    )
    rows = await cursor.fetchall()
    return [Poll(*row[1:]) for row in rows if row[1] is not None], rows[0][0]


async def renew_lease(connection: Connection, poll: Poll) -> None:
    """Renew the lease; every transaction of a poll calls this first. The digest of the list is cleared.

    :raises LeaseLost: another owner has the account, or it was removed or disabled.
    """
    cursor = await connection.execute(
        """update polls set lease_expires = clock_timestamp() + make_interval(secs => %s), quiet_list = null
           where external_id = %s and owner = %s and active""",
        (LEASE_SECONDS, poll.external_id, poll.owner),
    )
    if cursor.rowcount != 1:
        raise LeaseLost("another process polls the account now, or the account was disabled")


async def record_outcome(connection: Connection, poll: Poll, outcome: PollOutcome) -> None:
    """Record the outcome of a poll and release the account; nothing if the lease was lost.

    The next poll is due by the clock as it is now, even if that was set back since the poll began.
    """
    await connection.execute(
        """update polls set owner = null, lease_expires = null, login_delay = %(login_delay)s,
                  quiet_list = case when next_poll_at = %(seen)s then %(quiet_list)s::bytea end,
                  quiet_until = %(quiet_until)s,
                  quiet_state = %(quiet_state)s,
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
                  next_poll_at = case when next_poll_at = %(seen)s then least(%(next_poll_at)s::timestamptz,
                      now() + (%(next_poll_at)s::timestamptz - %(began)s::timestamptz)) else next_poll_at end
           where external_id = %(external_id)s and owner = %(owner)s""",
        {
            "external_id": poll.external_id,
            "owner": poll.owner,
            "seen": poll.next_poll_at,
            "began": poll.now,
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
            "quiet_state": outcome.quiet_state,
        },
    )


async def record_first_contact(connection: Connection, poll: Poll) -> datetime.datetime:
    """Record the first contact: the mail that is there now is known from now on. :return: its time.

    :raises LeaseLost: the account does not exist any more.
    """
    cursor = await connection.execute(
        "update polls set first_contact_at = now() where external_id = %s returning first_contact_at",
        (poll.external_id,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise LeaseLost("the account does not exist any more")
    first_contact_at: datetime.datetime = row[0]
    return first_contact_at


async def count_fetched(connection: Connection, external_id: int, mails: int) -> None:
    """Add to the count of fetched mails, which the reconciliation compares."""
    await connection.execute("update polls set fetched = fetched + %s where external_id = %s", (mails, external_id))


async def release_lease(connection: Connection, poll: Poll) -> None:
    """Release an account without an outcome; its due time stays."""
    await connection.execute(
        "update polls set owner = null, lease_expires = null where external_id = %s and owner = %s",
        (poll.external_id, poll.owner),
    )


async def return_claims(connection: Connection, owner: str, external_ids: Sequence[int]) -> None:
    """Release accounts of this claim that are not polled; their due times stay."""
    await connection.execute(
        "update polls set owner = null, lease_expires = null where external_id = any(%s) and owner = %s",
        (list(external_ids), owner),
    )


async def load_fetched_counts(connection: Connection) -> dict[int, int]:
    """Return how many mails were ever fetched, by id of the external account."""
    cursor = await connection.execute("select external_id, fetched from polls")
    return dict(await cursor.fetchall())


async def free_leases(connection: Connection, gone: Collection[str]) -> int:
    """Release the accounts of dead processes; their due times stay. :return: the number of accounts.

    An account whose poll ends the process each time waits longer each time, up to a minute, so that others are polled
    between. Its next poll with another outcome resets this.
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
    """Make accounts due whose time was set before the clock was set back. :return: their number.

    An account that was never polled is due at once. Leases that were set before it expire LEASE_SECONDS from now:
    nobody may be left to renew them.
    """
    await connection.execute(
        """update polls set lease_expires = now() + make_interval(secs => %(seconds)s)
           where lease_expires > now() + 2 * make_interval(secs => %(seconds)s)""",
        {"seconds": LEASE_SECONDS},
    )
    cursor = await connection.execute(
        f"""update polls set next_poll_at = now(), quiet_list = null
            where next_poll_at > now() and owner is null
              and coalesce(greatest(last_success_at, last_error_at), next_poll_at) > {FUTURE}"""
    )
    return cursor.rowcount


async def load_poll_states(connection: Connection, external_ids: Sequence[int] | None = None) -> dict[int, PollState]:
    """Load the states of polling, by id of the external account; only these, if any are given."""
    cursor = await connection.execute(
        """select external_id, last_success_at, last_error, last_error_kind, last_error_at, failures, paused_at,
                  next_poll_at, backlog,
                  (select count(*) from uidl_ledger u where u.external_id = p.external_id and u.state = 'skipped'
                      and u.acknowledged_at is null),
                  first_contact_at, (select created_at from external_accounts e where e.id = p.external_id)
           from polls p where %(ids)s::bigint[] is null or external_id = any(%(ids)s)""",
        {"ids": None if external_ids is None else list(external_ids)},
    )
    return {int(row[0]): PollState(*row) for row in await cursor.fetchall()}


async def poll_all_now(connection: Connection) -> None:
    """Release all accounts and make them due after a restore; every list is compared again."""
    await connection.execute(
        "update polls set owner = null, lease_expires = null, quiet_list = null, next_poll_at = now()"
    )
