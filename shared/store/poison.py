"""Poison messages: mails that may have crashed the process that handled them; all SQL on the table poison.

An exception shows which mail failed. A crash, a kill for lack of memory, or a stall that a probe ended does not. Mails
that are redelivered after a crash are therefore marked, and replayed in small parts. A part is recorded as in progress,
and that is committed, before it is handled: if the process crashes again, the mails of this part are replayed in
smaller parts, the others as before. A mail that was alone at a crash is isolated: it is handled with no other mail in
progress, and each such try is counted and committed before it begins. Only a mail whose handling the process survives
is cleared. A kill from outside costs the mail that is alone in progress one count until its next try, and the others
nothing.

A mail that uses up the time of its stage alone, or whose data PostgreSQL cannot read, is isolated in the same way.

Where its stage searches for work (``NOT_POISON``), a suspect is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import Connection

MAX_CRASHES = 5
"""Number of crashes or time-outs of its own after which a mail is parked."""
RETRY_SECONDS = 30.0
"""Pause between two tries of a suspect, in seconds, so that innocent mail is handled meanwhile."""

REPLAY_PARTS = 200
"""Number of parts in which the mails of a crash are replayed: a usual batch is replayed mail by mail, so the next crash
finds the mail at fault; a batch of messages that name fifty mails each costs no more transactions."""

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
            f"The process ended each of the {self.crashes} times that it handled this mail in isolation, or ran out of "
            "time: by a crash, a kill for lack of memory, a probe that ended a stall, or the stage's own time limit. "
            "There is no traceback; the log of the service and the kernel's log may contain more."
        )


async def mark_redelivered(connection: Connection, stage: str, ids: Collection[int]) -> dict[int, int | None]:
    """Mark mails that were redelivered after a crash, before they are replayed.

    Mails that were in progress at the crash are replayed in smaller parts; a mail that was alone then is isolated, and
    the crash is its own.

    :return: for each mail, the limit of mails to replay together with it; None: it is isolated.
    """
    cursor = await connection.execute(
        """with known as materialized (
               select id, max_mails, part from poison where stage = %(stage)s and id = any(%(ids)s::bigint[])),
           narrowed as (
               update poison p
               set part = 0, max_mails = case when k.part > 1 then greatest(1, k.part / %(parts)s) end,
                   crashes = case when k.part = 1 then 1 else 0 end,
                   next_try_at = case when k.part = 1 then now() else p.next_try_at end
               from known k where p.stage = %(stage)s and p.id = k.id and k.part > 0 returning p.id, p.max_mails),
           new as (
               insert into poison (stage, id, max_mails, next_try_at)
               select %(stage)s, id, greatest(1, cardinality(%(ids)s::bigint[]) / %(parts)s),
                      now() + make_interval(secs => %(again)s)
               from unnest(%(ids)s::bigint[]) id where id not in (select id from known)
               on conflict do nothing returning id, max_mails)
           select id, max_mails from known where part = 0
           union all select id, max_mails from narrowed union all select id, max_mails from new""",
        {"stage": stage, "ids": array_literal(sorted(ids)), "parts": REPLAY_PARTS, "again": RETRY_SECONDS},
    )
    return dict(await cursor.fetchall())


async def begin_replay(connection: Connection, stage: str, passed: Collection[int], ids: Collection[int]) -> None:
    """Record that marked mails are handled together next; unmark those that passed before. The caller commits this
    before it handles them.
    """
    await connection.execute(
        """with gone as (delete from poison where stage = %(stage)s and id = any(%(passed)s::bigint[]))
           update poison set part = cardinality(%(ids)s::bigint[])
           where stage = %(stage)s and id = any(%(ids)s::bigint[]) and max_mails is not null""",
        {"stage": stage, "passed": array_literal(sorted(passed)), "ids": array_literal(sorted(ids))},
    )


async def isolate(connection: Connection, stage: str, mail_id: int, crashes: int) -> None:
    """Mark a mail that ran out of time alone or cannot be read, for a later try in isolation.

    :param crashes: 1 if it is at fault.
    """
    await connection.execute(
        """insert into poison (stage, id, crashes, next_try_at)
           values (%(stage)s, %(id)s, %(crashes)s, now() + make_interval(secs => %(again)s))
           on conflict (stage, id) do update
               set crashes = excluded.crashes, max_mails = null, part = 0, next_try_at = excluded.next_try_at""",
        {"stage": stage, "id": mail_id, "crashes": crashes, "again": RETRY_SECONDS},
    )


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
           update poison s set max_mails = null, part = 0, crashes = s.crashes + 1,
                      next_try_at = now() + make_interval(secs => %(again)s)
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
