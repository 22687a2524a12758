"""Claims whose owners no longer renew them, and their return to the queue.

It owns the tables submissions and submission_recipients together with shared/store/relay_queue.py. Times are by the
database's clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection

from shared.db.arrays import array_literal
from shared.db.database import Connection
from shared.store.relay_queue import QUEUED_MAIL, QUEUED_MAIL_TABLES, QueuedMail, load_recipients


async def list_expired_claims(connection: Connection, limit: int = 1000) -> dict[int, datetime.datetime]:
    """List the claims that have expired, with the time until which they were renewed.

    The rows are locked: that fails where the owners could not renew them either, because the database is read-only.
    """
    cursor = await connection.execute(
        """select id, claim_expires from submissions
           where state in ('claimed', 'sent_unanswered') and claim_expires < now()
           order by id limit %s for update skip locked""",
        (limit,),
    )
    return {int(row[0]): row[1] for row in await cursor.fetchall()}


async def list_claims_of(connection: Connection, owners: Collection[str]) -> list[int]:
    """List the mails that these owners have claimed."""
    cursor = await connection.execute(
        """select id from submissions
           where state in ('claimed', 'sent_unanswered') and claim_owner = any(%s::text[]) order by id""",
        (array_literal(owners),),
    )
    return [int(row[0]) for row in await cursor.fetchall()]


async def lock_orphaned_claims(
    connection: Connection, ids: Collection[int], dead_owners: Collection[str]
) -> list[tuple[QueuedMail, bool]]:
    """Load and lock those of these claims that have expired or belong to dead owners.

    :return: each mail with whether it was sent without an answer.
    """
    cursor = await connection.execute(
        f"""select {QUEUED_MAIL}, s.state = 'sent_unanswered' from {QUEUED_MAIL_TABLES}
            where s.id = any(%s::bigint[]) and s.state in ('claimed', 'sent_unanswered')
                and (s.claim_expires < now() or s.claim_owner = any(%s::text[]))
            order by s.id for update of s skip locked""",
        (array_literal(ids), array_literal(dead_owners)),
    )
    rows = await cursor.fetchall()
    mails = await load_recipients(connection, [row[:-1] for row in rows])
    return [(mail, row[-1]) for mail, row in zip(mails, rows, strict=True)]


async def send_again(connection: Connection, submission_id: int) -> None:
    """Queue a mail whose sender died after sending it without an answer, and mark it as uncertain."""
    await connection.execute(
        """update submissions set state = 'queued', claim_owner = null, claim_expires = null, state_at = now(),
               uncertain = true, next_try_at = now()
           where id = %s and state = 'sent_unanswered'""",
        (submission_id,),
    )
