"""The state of relaying through each external account, and all SQL on it (table relay_status).

Times are by the database's clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass

from shared.db.database import FUTURE, Connection, storable


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """The state of relaying through an account. Times: UTC."""

    external_id: int
    failures: int  # consecutive failures to connect or log in
    next_try_at: datetime.datetime
    paused_at: datetime.datetime | None
    connections_limit: int | None
    last_success_at: datetime.datetime | None
    last_error: str | None
    last_error_kind: str | None
    last_error_at: datetime.datetime | None


async def ensure_rows(connection: Connection, submission_ids: Collection[int]) -> None:
    """Insert missing rows for the accounts of these submissions."""
    await connection.execute(
        """insert into relay_status (external_id) select distinct external_id from submissions where id = any(%s)
           on conflict (external_id) do nothing""",
        (list(submission_ids),),
    )


async def load_status(connection: Connection, external_ids: Collection[int] | None = None) -> dict[int, RelayStatus]:
    """Load the states by id of the external account; only these, if any are given."""
    cursor = await connection.execute(
        """select external_id, failures, next_try_at, paused_at, connections_limit, last_success_at, last_error,
                  last_error_kind, last_error_at
           from relay_status where %(ids)s::bigint[] is null or external_id = any(%(ids)s)""",
        {"ids": None if external_ids is None else list(external_ids)},
    )
    return {row[0]: RelayStatus(*row) for row in await cursor.fetchall()}


async def record_success(connection: Connection, external_id: int) -> bool:
    """Record a successful login: it ends backoff and pause. :return: whether there was one."""
    cursor = await connection.execute(
        """with before as (select external_id, failures > 0 or paused_at is not null as troubled
                           from relay_status where external_id = %s for update)
           update relay_status r set failures = 0, paused_at = null, next_try_at = now(), last_success_at = now()
           from before where r.external_id = before.external_id returning troubled""",
        (external_id,),
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def record_failure(
    connection: Connection, external_id: int, kind: str, error: str, delay: float, *, pause: bool = False
) -> None:
    """Record that the provider is unreachable, or refuses the login (``pause``): no try for ``delay`` seconds."""
    await connection.execute(
        """update relay_status set failures = failures + 1, last_error = %s, last_error_kind = %s,
               last_error_at = now(),
               next_try_at = now() + make_interval(secs => %s),
               paused_at = case when %s then coalesce(paused_at, now()) else paused_at end
           where external_id = %s""",
        (storable(error), kind, delay, pause, external_id),
    )


async def lower_connections(connection: Connection, external_id: int, limit: int) -> None:
    """Lower the limit of connections to this provider."""
    await connection.execute(
        """update relay_status set connections_limit = least(coalesce(connections_limit, %(limit)s), %(limit)s)
           where external_id = %(id)s""",
        {"limit": limit, "id": external_id},
    )


async def lift_limits(connection: Connection) -> None:
    """Reset the lowered limits of connections of all accounts."""
    await connection.execute("update relay_status set connections_limit = null where connections_limit is not null")


async def unpause(connection: Connection, external_id: int) -> None:
    """End backoff, pause and lowered limit of an account that is new, changed or tested."""
    await connection.execute(
        """insert into relay_status (external_id) values (%s) on conflict (external_id) do update
           set paused_at = null, failures = 0, next_try_at = now(), connections_limit = null""",
        (external_id,),
    )


async def skip_backoff(connection: Connection, external_ids: Collection[int]) -> None:
    """End the backoff of these accounts at the operator's request; a pause stays."""
    await connection.execute(
        "update relay_status set next_try_at = now(), failures = 0 where external_id = any(%s)", (sorted(external_ids),)
    )


async def end_idle_failures(connection: Connection) -> None:
    """End the backoff of accounts for which no mail waits any more: no try would show that the provider is back.

    A refused login (a pause) and a changed certificate need the operator in any case; they stay.
    """
    await connection.execute(
        """update relay_status r set failures = 0, next_try_at = now()
           where failures > 0 and paused_at is null and last_error_kind is distinct from 'certificate'
             and not exists (select from submissions s where s.external_id = r.external_id and s.state = 'queued')"""
    )


async def fix_clock_jump(connection: Connection) -> int:
    """Make accounts due whose time was set before the clock was set back. :return: their number.

    Without a failure no account is due in the future.
    """
    cursor = await connection.execute(
        f"""update relay_status set next_try_at = now()
            where next_try_at > now()
              and (failures = 0 and next_try_at > {FUTURE} or greatest(last_success_at, last_error_at) > {FUTURE})"""
    )
    return cursor.rowcount
