"""Mails that may have ended the process which had them in hand: all SQL on the table poison.

An exception tells whose fault it was; a crash, a kill for want of memory, or a stall that a probe ended tells nothing.
So what comes back after a death is noted before it is handled once more, with others; what was noted at the next death
is tried alone, each try counted and committed before it begins. Only what survives is cleared, so a kill from outside
costs a mail that was alone at that moment one count until its next try, and others nothing.

A suspect is left out where its stage looks for work of its own accord (``UNSUSPECTED``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import Connection

MAX_CRASHES = 5
"""A mail that was alone in hand at so many crashes is parked."""
RETRY_SECONDS = 30.0
"""Between two tries of a suspect, so that what is innocent has its way meanwhile."""

NOT_POISON = "{id} <> all (array(select poison.id from poison where poison.stage = '{stage}'))"
"""SQL: whether the mail ``{id}`` is no suspect of this stage. The array is made once a statement."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A mail to be tried alone. crashes: of earlier tries."""

    id: int
    crashes: int

    @property
    def exhausted(self) -> bool:
        """Whether it is to be parked instead."""
        return self.crashes >= MAX_CRASHES

    @property
    def reason(self) -> str:
        """In place of a traceback."""
        return (
            f"Each of the {self.crashes} times that this mail was handled alone, that ended the process: a crash, a "
            "kill for want of memory, or a stall that a probe ended. There is no traceback; the service's log and the "
            "kernel's may tell more."
        )


async def mark_redelivered(connection: Connection, stage: str, ids: Collection[int]) -> set[int]:
    """Note mails that came back after a death, before they are handled with others.

    :return: those that were noted before: they are not to be handled with others, their turn alone comes.
    """
    cursor = await connection.execute(
        """with known as (
               update poison set next_try_at = case when crashes = 0 then now() else next_try_at end
               where stage = %(stage)s and id = any(%(ids)s::bigint[]) returning id),
           new as (
               insert into poison (stage, id, next_try_at)
               select %(stage)s, id, now() + make_interval(secs => %(again)s) from unnest(%(ids)s::bigint[]) id
               where id not in (select id from known) on conflict do nothing)
           select id from known""",
        {"stage": stage, "ids": array_literal(sorted(ids)), "again": RETRY_SECONDS},
    )
    return {int(row[0]) for row in await cursor.fetchall()}


async def add_suspects(connection: Connection, stage: str, ids: Collection[int]) -> None:
    """These are to be tried alone at once."""
    await connection.execute(
        "insert into poison (stage, id) select %s, unnest(%s::bigint[]) on conflict do nothing",
        (stage, array_literal(sorted(ids))),
    )


async def claim_suspect(connection: Connection, stage: str) -> Suspect | None:
    """The next one that is due, its try counted: to be committed before it begins."""
    cursor = await connection.execute(
        """with due as materialized (
               select id from poison where stage = %(stage)s
                   and (next_try_at <= now() or next_try_at > now() + 2 * make_interval(secs => %(again)s))
               order by crashes, next_try_at, id limit 1 for update skip locked)
           update poison s set crashes = s.crashes + 1, next_try_at = now() + make_interval(secs => %(again)s)
           from due where s.stage = %(stage)s and s.id = due.id returning s.id, s.crashes - 1""",
        {"stage": stage, "again": RETRY_SECONDS},
    )
    row = await cursor.fetchone()
    return None if row is None else Suspect(int(row[0]), int(row[1]))


async def restore_count(connection: Connection, stage: str, suspect: Suspect) -> None:
    """Its try came to nothing, and was survived."""
    await connection.execute(
        "update poison set crashes = %s where stage = %s and id = %s", (suspect.crashes, stage, suspect.id)
    )


async def clear_suspects(connection: Connection, stage: str, ids: Collection[int]) -> None:
    """These were handled, or parked."""
    await connection.execute(
        "delete from poison where stage = %s and id = any(%s::bigint[])", (stage, array_literal(sorted(ids)))
    )
