"""Submissions for the operator: lists, decisions and purges.

It owns the tables submissions and submission_recipients together with shared/store/submissions.py and
shared/store/relay_queue.py.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass

from shared.db.database import Connection, storable
from shared.model import RecipientKind
from shared.store import relays

RESTORE = "restore"
"""Origin of submissions that a restore parked. None of them has failed."""


# ---------------------------------------------------------------------------------------------- mails


@dataclass(frozen=True, slots=True)
class ListedRecipient:
    """A recipient as shown to the operator."""

    address: str
    kind: RecipientKind
    state: str
    reply: str | None


@dataclass(frozen=True, slots=True)
class ListedSubmission:
    """A submission as shown to the operator."""

    id: int
    message_id: str
    author: str
    external: str
    state: str
    tries: int
    uncertain: bool
    age: float  # seconds
    next_try_at: datetime.datetime | None  # UTC; only of a queued submission
    error: str | None
    origin: str | None
    state_at: datetime.datetime  # when it entered its state
    recipients: tuple[ListedRecipient, ...]


async def list_submissions(
    connection: Connection, states: Collection[str] | None = None, ids: Collection[int] | None = None, limit: int = 1000
) -> list[ListedSubmission]:
    """List submissions in these states (if none are given: all that are not done), the oldest first.

    Those that are not done are found by their own index, and sorted: by the index on the id, all that are done before
    the first one would be read.
    """
    if states is None and ids is not None:
        chosen = "select id from submissions where id = any(%(ids)s)"
    else:
        done = "true" if states is not None and "done" in states else "state <> 'done'"
        of_state = "true" if states is None else "state = any(%(states)s)"
        of_ids = "true" if ids is None else "id = any(%(ids)s)"
        chosen = f"select id from submissions where {done} and {of_state} and {of_ids}"
    cursor = await connection.execute(
        f"""with chosen as materialized ({chosen})
           select s.id, s.message_id, a.address, e.address, s.state, s.tries, s.uncertain,
                  extract(epoch from now() - s.created_at)::float8,
                  case when s.state = 'queued' then greatest(s.next_try_at, (
                      select min(greatest(r.next_try_at, r.full_until)) from relays r
                      where r.external_id = s.external_id)) end, s.error, s.origin, s.state_at
           from submissions s join local_accounts a on a.id = s.author_id
               join external_accounts e on e.id = s.external_id
           where s.id = any(array(select id from chosen order by id limit %(limit)s))
           order by s.id""".encode(),
        {"states": None if states is None else list(states), "ids": None if ids is None else list(ids), "limit": limit},
    )
    rows = await cursor.fetchall()
    cursor = await connection.execute(
        """select submission_id, address, kind, state, reply from submission_recipients
           where submission_id = any(%s) order by submission_id, position""",
        ([row[0] for row in rows],),
    )
    recipients: dict[int, list[ListedRecipient]] = {}
    for submission_id, *values in await cursor.fetchall():
        recipients.setdefault(submission_id, []).append(ListedRecipient(*values))
    return [ListedSubmission(*(*row, tuple(recipients.get(row[0], ())))) for row in rows]


async def find_submission(connection: Connection, what: str, limit: int = 100) -> dict[int, str | None]:
    """Find submissions by id, Message-ID, or the address of author, account or recipient; the newest ones.

    :return: id to Message-ID, in order of id.
    """
    number = int(what) if what.isascii() and what.isdigit() and len(what) < 19 else None  # a bigint
    cursor = await connection.execute(
        """select s.id, s.message_id from submissions s
           where s.id = %(number)s or s.message_id = %(what)s
              or s.author_id in (select id from local_accounts where lower(address) = lower(%(what)s))
              or s.external_id in (select id from external_accounts where lower(address) = lower(%(what)s))
              or s.id in (select submission_id from sent_mail where message_id = %(what)s)
              or exists (select from submission_recipients r
                         where r.submission_id = s.id and lower(r.address) = lower(%(what)s))
           order by s.id desc limit %(limit)s""",
        {"number": number, "what": what, "limit": limit},
    )
    return {int(row[0]): str(row[1]) for row in sorted(await cursor.fetchall())}


async def list_recipients(connection: Connection, ids: Collection[int]) -> dict[int, list[str]]:
    """Return the addresses of the recipients of these submissions, by id, in the order of the envelope."""
    cursor = await connection.execute(
        """select submission_id, array_agg(address order by position) from submission_recipients
           where submission_id = any(%s) group by submission_id""",
        (list(ids),),
    )
    return dict(await cursor.fetchall())


async def content_of_submission(
    connection: Connection, submission_id: int
) -> tuple[int, int, datetime.datetime] | None:
    """Return the id of a submission's bytes, their octets, and the time of submission."""
    cursor = await connection.execute(
        """select s.blob_id, m.octets, s.created_at from submissions s join blobs m on m.id = s.blob_id
           where s.id = %s""",
        (submission_id,),
    )
    row = await cursor.fetchone()
    return None if row is None else (int(row[0]), int(row[1]), row[2])


# ---------------------------------------------------------------------------------------------- counts


async def count_parked(connection: Connection) -> tuple[int, int]:
    """Count the parked submissions, and those of them that a restore parked."""
    cursor = await connection.execute(
        "select count(*), count(*) filter (where origin = %s) from submissions where state = 'parked'", (RESTORE,)
    )
    parked, restored = await cursor.fetchone() or (0, 0)
    return int(parked), int(restored)


async def count_open(connection: Connection, states: Collection[str], limit: int) -> int:
    """Count the submissions in these states, none of which is done. :param limit: the count ends there."""
    cursor = await connection.execute(
        """select count(*) from (
               select from submissions where state <> 'done' and state = any(%s) limit %s) counted""",
        (list(states), limit),
    )
    [count] = await cursor.fetchone() or (0,)
    return int(count)


async def oldest_submitted(connection: Connection) -> float:
    """Return for how many seconds the oldest submission has waited for a sender; 0 if none waits."""
    cursor = await connection.execute(
        """select coalesce(extract(epoch from now() - min(state_at)), 0)::float8 from submissions
           where state = 'submitted'"""
    )
    [seconds] = await cursor.fetchone() or (0.0,)
    return float(seconds)


async def count_per_hour(connection: Connection, hours: int = 24) -> dict[datetime.datetime, int]:
    """Count the submissions in each of the last hours; hours without any are left out."""
    cursor = await connection.execute(
        """select date_trunc('hour', created_at), count(*) from submissions
           where created_at > now() - make_interval(hours => %s) group by 1""",
        (hours,),
    )
    return {row[0]: int(row[1]) for row in await cursor.fetchall()}


# ---------------------------------------------------------------------------------------------- operations


async def retry_submissions(connection: Connection, ids: Collection[int] | None = None) -> list[int]:
    """Make queued submissions (these, or all) and their accounts due now. :return: the ids of these submissions."""
    cursor = await connection.execute(
        """update submissions set next_try_at = now()
           where state = 'queued' and (%(ids)s::bigint[] is null or id = any(%(ids)s)) returning id, external_id""",
        {"ids": None if ids is None else list(ids)},
    )
    rows = await cursor.fetchall()
    await relays.skip_backoff(connection, {row[1] for row in rows})
    return sorted(int(row[0]) for row in rows)


async def cancel_submissions(connection: Connection, ids: Collection[int], reason: str) -> dict[int, list[str]]:
    """Cancel queued or parked submissions; the sender then notifies their authors of the reason.

    :return: for each cancelled submission the addresses that will not get it. One that is being sent now is left out.
    """
    cursor = await connection.execute(
        """update submissions set state = 'done', state_at = now(), cancelled = %s
           where id = any(%s) and state in ('queued', 'parked') returning id""",
        (storable(reason), sorted(ids)),
    )
    cancelled: dict[int, list[str]] = {int(row[0]): [] for row in await cursor.fetchall()}
    cursor = await connection.execute(
        """update submission_recipients set state = 'cancelled', settled_at = now()
           where submission_id = any(%s) and state = 'waiting' returning submission_id, address""",
        (list(cancelled),),
    )
    for submission_id, address in await cursor.fetchall():
        cancelled[submission_id].append(address)
    return cancelled


async def requeue_submissions(connection: Connection, ids: Collection[int]) -> list[int]:
    """Give parked submissions another five tries. :return: the ids of those that were parked."""
    cursor = await connection.execute(
        """update submissions s set failures = 0, error = null, origin = null, state_at = now(), swept_at = null,
               next_try_at = now(), state = case when exists (
                   select from submission_recipients r
                   where r.submission_id = s.id and r.kind <> 'relay' and r.state = 'waiting')
                   then 'submitted' else 'queued' end
           where id = any(%s) and state = 'parked' returning id""",
        (sorted(ids),),
    )
    return sorted(int(row[0]) for row in await cursor.fetchall())


RESENT_DAYS = 5
"""Age limit of ``resend_submissions``, in days: the queue would expire an older submission at once."""


async def resend_submissions(connection: Connection, ids: Collection[int]) -> list[int]:
    """Send submissions that are done and not too old again, at once, to the recipients that did not get them.

    :return: the ids of those that are queued again.
    """
    cursor = await connection.execute(
        """update submissions s set state = 'queued', state_at = now(), next_try_at = now(), tries = 0, cancelled = null
           where id = any(%s) and state = 'done' and created_at > now() - make_interval(days => %s)
             and exists (select from submission_recipients r where r.submission_id = s.id and r.kind = 'relay'
                         and r.state in ('failed', 'cancelled')) returning id""",
        (sorted(ids), RESENT_DAYS),
    )
    requeued = sorted(int(row[0]) for row in await cursor.fetchall())
    await connection.execute(
        """update submission_recipients set state = 'waiting', settled_at = null
           where submission_id = any(%s) and kind = 'relay' and state in ('failed', 'cancelled')""",
        (requeued,),
    )
    return requeued


# ---------------------------------------------------------------------------------------------- purging


async def purge_submissions(
    connection: Connection, after: int, before: datetime.datetime, limit: int
) -> tuple[list[int], int | None]:
    """Delete submissions that were done before this time, among the next ``limit`` after this id; authors are kept.

    :return: the ids of their bytes; and the id to continue after, None where newer submissions begin.
    """
    cursor = await connection.execute(
        """with next as materialized (
               select id, state, state_at, created_at, cancelled from submissions where id > %(after)s
               order by id limit %(limit)s),
           gone as (
               delete from submissions s using next where s.id = next.id and next.state = 'done' and s.state = 'done'
                   and next.state_at < %(before)s and next.cancelled is null
               returning s.blob_id)
           select (select max(id) from next where exists (select from next where created_at < %(before)s)),
               array(select blob_id from gone)""",
        {"after": after, "limit": limit, "before": before},
    )
    last, found = await cursor.fetchone() or (None, ())
    return list(found), last


# ---------------------------------------------------------------------------------------------- after a restore


async def park_restored(connection: Connection, reason: str) -> list[int]:
    """Park the unfinished relays of a restored backup: they may have been relayed since. :return: the ids."""
    cursor = await connection.execute(
        """update submissions s set state = 'parked', error = %s, origin = %s, uncertain = true,
               state_at = now(), claim_owner = null, claim_expires = null, swept_at = null
           where state in ('submitted', 'queued', 'claimed', 'sent_unanswered') and exists (
               select from submission_recipients r
               where r.submission_id = s.id and r.kind = 'relay' and r.state = 'waiting') returning id""",
        (reason, RESTORE),
    )
    return sorted(int(row[0]) for row in await cursor.fetchall())


async def requeue_restored(connection: Connection) -> list[int]:
    """Queue the unfinished relays of a restored backup, marked as uncertain. :return: the ids."""
    cursor = await connection.execute(
        """update submissions set uncertain = true, claim_owner = null, claim_expires = null, state_at = now(),
               state = case state when 'submitted' then state else 'queued' end, next_try_at = now()
           where state in ('submitted', 'queued', 'claimed', 'sent_unanswered') returning id"""
    )
    return sorted(int(row[0]) for row in await cursor.fetchall())
