"""Alerts and their notifications, and all SQL on them (tables alerts, alert_posts).

The state is in the database, so each problem is notified once, whichever process detects it and however often that
restarts.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from shared.db.arrays import array_literal
from shared.db.database import Connection, storable
from shared.model import Alert


@dataclass(frozen=True, slots=True)
class AlertPost:
    """A due message for the webhook."""

    id: int
    body: dict[str, Any]
    tries: int
    age: float  # seconds


async def load_alerts(connection: Connection) -> tuple[list[Alert], datetime.datetime]:
    """Load and lock all alerts until the transaction ends, and return the database's time."""
    cursor = await connection.execute(
        "select kind, subject, state, text, flaps, changed_at, seen_at from alerts order by kind, subject for update"
    )
    rows = [Alert(*row) for row in await cursor.fetchall()]
    cursor = await connection.execute("select now()")
    [now] = await cursor.fetchone() or (datetime.datetime.now(datetime.UTC),)
    return rows, now


async def list_raised(connection: Connection) -> list[Alert]:
    """List the alerts that were notified and are not resolved, the latest first."""
    cursor = await connection.execute(
        """select kind, subject, state, text, flaps, changed_at, seen_at from alerts
           where state = 'raised' order by changed_at desc, kind, subject"""
    )
    return [Alert(*row) for row in await cursor.fetchall()]


async def save_alerts(connection: Connection, alarms: Sequence[Alert], gone: Collection[tuple[str, str]]) -> None:
    """Write these alerts, and delete those of the kinds and subjects in ``gone``."""
    if alarms:
        await connection.execute(
            """insert into alerts (kind, subject, state, text, flaps, changed_at, seen_at)
               select * from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::timestamptz[],
                                    %s::timestamptz[])
               on conflict (kind, subject) do update set state = excluded.state, text = excluded.text,
                   flaps = excluded.flaps, changed_at = excluded.changed_at, seen_at = excluded.seen_at""",
            (
                array_literal(alarm.kind for alarm in alarms),
                array_literal(alarm.subject for alarm in alarms),
                array_literal(alarm.state for alarm in alarms),
                array_literal(storable(alarm.text) for alarm in alarms),
                array_literal(alarm.flaps for alarm in alarms),
                [alarm.changed_at for alarm in alarms],
                [alarm.seen_at for alarm in alarms],
            ),
        )
    if gone:
        await connection.execute(
            """delete from alerts using unnest(%s::text[], %s::text[]) as g (kind, subject)
               where alerts.kind = g.kind and alerts.subject = g.subject""",
            (array_literal(kind for kind, _ in gone), array_literal(subject for _, subject in gone)),
        )


# ---------------------------------------------------------------------------------------------- the webhook


async def enqueue_posts(connection: Connection, bodies: Sequence[dict[str, Any]]) -> None:
    """Queue messages for the webhook."""
    for body in bodies:
        await connection.execute("insert into alert_posts (body) values (%s)", (Jsonb(body),))


async def list_due_posts(connection: Connection, limit: int = 20) -> list[AlertPost]:
    """List the due messages, the oldest first."""
    cursor = await connection.execute(
        """select id, body, tries, extract(epoch from now() - created_at)::float8 from alert_posts
           where next_try_at <= now() order by id limit %s""",
        (limit,),
    )
    return [AlertPost(*row) for row in await cursor.fetchall()]


async def delete_post(connection: Connection, post_id: int) -> None:
    """Delete a message: it was posted, or never will be."""
    await connection.execute("delete from alert_posts where id = %s", (post_id,))


async def drop_posts(connection: Connection) -> None:
    """Delete all messages after a restore: they are outdated."""
    await connection.execute("delete from alert_posts")


async def postpone_post(connection: Connection, post_id: int, seconds: float) -> None:
    """Schedule a failed message again in ``seconds``."""
    await connection.execute(
        "update alert_posts set tries = tries + 1, next_try_at = now() + make_interval(secs => %s) where id = %s",
        (seconds, post_id),
    )
