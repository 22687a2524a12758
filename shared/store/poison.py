"""Poison messages: mails that may have crashed the process that handled them; all SQL on the table poison.

An exception shows which mail failed. A crash, a kill for lack of memory, or a stall that a probe ended does not. A mail
that is redelivered after a crash is therefore marked before it is handled again with others. A mail that was marked at
the crash before is handled in isolation, and each such try is counted and committed before it begins. Only a mail whose
handling the process survives is cleared. A kill from outside costs an isolated mail one count until its next try, and
the others nothing.

Where its stage searches for work (``NOT_POISON``), a suspect is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import Connection

MAX_CRASHES = 5
"""Number of crashes in isolation after which a mail is parked."""
RETRY_SECONDS = 30.0
"""Pause between two tries of a suspect, in seconds, so that innocent mail is handled meanwhile."""

NOT_POISON = "{id} <> all (array(select poison.id from poison where poison.stage = '{stage}'))"
"""SQL: whether the mail ``{id}`` is no suspect of this stage. The array is computed once for each statement."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A mail to handle in isolation."""

    id: int
    crashes: int  # of earlier tries

    @property
    def exhausted(self) -> bool:
        """Whether to park it instead of another try."""
        return self.crashes >= MAX_CRASHES

    @property
    def reason(self) -> str:
        """The text that replaces a traceback."""
        return (
            f"The process ended each of the {self.crashes} times that it handled this mail in isolation: by a crash, a "
            "kill for lack of memory, or a probe that ended a stall. There is no traceback; the log of the service and "
            "the kernel's log may contain more."
        )


async def mark_redelivered(connection: Connection, stage: str, ids: Collection[int]) -> set[int]:
    """Mark mails that were redelivered after a crash, before they are handled with others.

    :return: those that were marked before: they must not be handled with others, but in isolation.
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
    """Mark mails for an immediate try in isolation."""
    await connection.execute(
        "insert into poison (stage, id) select %s, unnest(%s::bigint[]) on conflict do nothing",
        (stage, array_literal(sorted(ids))),
    )


async def claim_suspect(connection: Connection, stage: str) -> Suspect | None:
    """Claim the next due suspect and count its try; the caller commits before the try begins."""
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
    """Restore the count of a suspect whose try failed temporarily: the process survived it."""
    await connection.execute(
        "update poison set crashes = %s where stage = %s and id = %s", (suspect.crashes, stage, suspect.id)
    )


async def clear_suspects(connection: Connection, stage: str, ids: Collection[int]) -> None:
    """Unmark mails that were handled or parked."""
    await connection.execute(
        "delete from poison where stage = %s and id = any(%s::bigint[])", (stage, array_literal(sorted(ids)))
    )
