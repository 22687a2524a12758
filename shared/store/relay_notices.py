"""Queued mails whose authors are due a notice: expired, delayed, or cancelled by the operator.

It owns the tables submissions and submission_recipients together with shared/store/relay_queue.py. Times are by the
database's clock. Each kind has a function that lists ids, and one that works on some of them, so that the caller can
isolate a mail that fails.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from shared.db.arrays import array_literal
from shared.db.database import Connection, Row, storable
from shared.store import relays
from shared.store.relay_queue import (
    QUEUED_MAIL,
    QUEUED_MAIL_TABLES,
    QueuedMail,
    RecipientResult,
    load_recipients,
)

BATCH = 100
"""Limits the mails of one kind that a call lists: mails; a notice is composed for each."""

# Mails of an account without a relay that is not paused are left out, since a pause bounces nothing. Due mails are left
# out, since they are tried first.
_EXPIRED = f"""from submissions s join external_accounts e on e.id = s.external_id
    where s.state = 'queued' and s.created_at < now() - make_interval(secs => %(seconds)s)
        and exists (select from relays r where r.external_id = e.id and r.paused_at is null)
        and (s.next_try_at > now() or not e.enabled or e.removed_at is not null or not exists (
            select from relays r where r.external_id = e.id and r.paused_at is null and {relays.IS_DUE.format("r")}))"""

_DELAYED = """from submissions s where state = 'queued'
    and coalesce(delay_noticed_at + make_interval(secs => %(then)s), created_at + make_interval(secs => %(first)s))
        <= now()"""


async def list_expired(connection: Connection, seconds: float) -> list[int]:
    """List the queued submissions that are older than ``seconds`` and need not be tried first."""
    cursor = await connection.execute(
        f"select s.id {_EXPIRED} order by s.id limit %(limit)s", {"seconds": seconds, "limit": BATCH}
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def lock_expired(connection: Connection, seconds: float, ids: Collection[int]) -> list[QueuedMail]:
    """Load and lock those of these submissions that are still expired."""
    cursor = await connection.execute(
        f"""with expired as (select s.id {_EXPIRED} and s.id = any(%(ids)s::bigint[])
                order by s.id for update of s skip locked)
            select {QUEUED_MAIL} from {QUEUED_MAIL_TABLES} join expired on expired.id = s.id order by s.id""",
        {"seconds": seconds, "ids": array_literal(ids)},
    )
    return await load_recipients(connection, await cursor.fetchall())


async def _set_recipients(connection: Connection, submission_id: int, outcomes: Sequence[RecipientResult]) -> None:
    await connection.execute(
        """update submission_recipients r set state = new.state, reply = new.reply,
               settled_at = case when new.state <> 'waiting' then now() end
           from unnest(%s::int[], %s::text[], %s::text[]) as new (position, state, reply)
           where r.submission_id = %s and r.position = new.position and r.state = 'waiting'""",
        (
            [o.position for o in outcomes],
            [o.state for o in outcomes],
            [storable(o.reply) for o in outcomes],
            submission_id,
        ),
    )


async def expire(connection: Connection, submission_id: int, outcomes: Sequence[RecipientResult]) -> None:
    """End a queued submission that the caller has locked, without a further try."""
    await _set_recipients(connection, submission_id, outcomes)
    await connection.execute(
        "update submissions set state = 'done', state_at = now() where id = %s and state = 'queued'", (submission_id,)
    )


async def list_delayed(connection: Connection, first: float, then: float) -> list[int]:
    """List the queued submissions whose author is due a notice of delay: ``first`` seconds after submission, then every
    ``then`` seconds.
    """
    cursor = await connection.execute(
        f"select id {_DELAYED} order by id limit %(limit)s", {"first": first, "then": then, "limit": BATCH}
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def claim_delayed(connection: Connection, first: float, then: float, ids: Collection[int]) -> list[QueuedMail]:
    """Load those of these submissions that are still due a notice of delay, and record the notice."""
    cursor = await connection.execute(
        f"""with late as (select id {_DELAYED} and id = any(%(ids)s::bigint[]) order by id for update skip locked)
            update submissions s set delay_noticed_at = now() from late, blobs m, local_accounts a
            where s.id = late.id and m.id = s.blob_id and a.id = s.author_id returning {QUEUED_MAIL}""",
        {"first": first, "then": then, "ids": array_literal(ids)},
    )
    return await load_recipients(connection, sorted(await cursor.fetchall(), key=_by_id))


async def list_cancelled(connection: Connection) -> list[int]:
    """List the submissions that the operator cancelled and whose authors are not notified yet."""
    cursor = await connection.execute(
        "select id from submissions where cancelled is not null order by id limit %s", (BATCH,)
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def claim_cancelled(connection: Connection, ids: Collection[int]) -> list[tuple[QueuedMail, str]]:
    """Load those of these submissions whose authors are not notified yet, and record the notice.

    :return: each with the reason; its ``recipients`` are those that will not get it.
    """
    cursor = await connection.execute(
        f"""with ended as (
                select id, cancelled as reason from submissions
                where cancelled is not null and id = any(%s::bigint[]) order by id for update skip locked)
            update submissions s set cancelled = null from ended, blobs m, local_accounts a
            where s.id = ended.id and m.id = s.blob_id and a.id = s.author_id returning {QUEUED_MAIL}, ended.reason""",
        (array_literal(ids),),
    )
    rows = sorted(await cursor.fetchall(), key=_by_id)
    mails = await load_recipients(connection, [row[:-1] for row in rows], "cancelled")
    return [(mail, row[-1]) for mail, row in zip(mails, rows, strict=True)]


def _by_id(row: Row) -> int:
    return int(row[0])
