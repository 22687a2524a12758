"""The connections of all processes to PostgreSQL: a service that does not fit refuses to start.

PostgreSQL accepts ``max_connections``, some of them for superusers only. Each service has a share of them
(MAILGROUP_DATABASE_CONNECTIONS), which its connections show in their application_name. A service that starts adds up
the shares of all services that run, whatever each of them uses now. If the sum leaves fewer than RESERVED, it ends with
a text that says what to change. So no service ever grows into the connections that commands need.

The same check refuses a connection pooler in transaction mode, which would give the advisory locks of a process to
others.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psycopg

from shared.db.database import Connection, Database
from shared.errors import Permanent, Temporary

RESERVED = 5
"""Connections that services leave free for commands, backups and migrations: one command uses two."""
WAIT_SECONDS = (5.0, 10.0)
"""Time that a service waits for room: seconds, chosen between both; connections of a process that has just ended are
still counted, and of two services that start at the same time one goes first."""
RETRY_SECONDS = 1.0
"""Pause between two checks: seconds."""
POOLER_ROUNDS = 3
"""Attempts to see a pooler exchange the sessions of two connections."""

_SHARE = re.compile(r"mailgroup-[^/]+/(\d+)/\w+")
_POOLED = (
    "MAILGROUP_DATABASE_URL: between mailgroup and PostgreSQL is a connection pooler in transaction mode (PgBouncer: "
    "pool_mode = transaction). It would give the locks and prepared statements of one process to another. "
    "Connect to PostgreSQL itself, or set pool_mode = session"
)


@dataclass(frozen=True, slots=True)
class ConnectionUse:
    """The connections of the server now."""

    used: int
    limit: int  # for roles that are no superusers
    shares: int = 0  # of the services that run, without the asking process
    processes: int = 0  # these services
    others: int = 0  # used connections that belong to no service

    @property
    def promised(self) -> int:
        """The connections that may be used: shares of services, connections of others, and those kept for commands."""
        return self.shares + self.others + RESERVED


def share_name(service: str, connections: int, token: str) -> str:
    """Return the application_name of a service's connections, which shows its share. :param token: of the process."""
    return f"mailgroup-{service}/{connections}/{token}"


async def load_use(connection: Connection, own_name: str = "") -> ConnectionUse:
    """Count the connections of the server. :param own_name: application_name of the asking process."""
    cursor = await connection.execute(  # of other roles only existence is visible
        """select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
               - coalesce(current_setting('reserved_connections', true), '0')::int,
               coalesce(application_name, ''), count(*)
           from pg_stat_activity
           where datid is not null and usesysid is not null
               and coalesce(backend_type, 'client backend') = 'client backend'
           group by 2"""
    )
    rows = [(int(limit), str(name), int(count)) for limit, name, count in await cursor.fetchall()]
    shares = [
        (int(found[1]), count) for _, name, count in rows if (found := _SHARE.fullmatch(name)) and name != own_name
    ]
    others = sum(count for _, name, count in rows if not _SHARE.fullmatch(name) and name != own_name)
    return ConnectionUse(
        used=sum(count for _, _, count in rows),
        limit=rows[0][0],
        shares=sum(max(share, count) for share, count in shares),
        processes=len(shares),
        others=others,
    )


def describe_shortage(use: ConnectionUse, share: int) -> str | None:
    """Say why a process with this share does not fit; None if it does. Pure."""
    if use.promised + share <= use.limit:
        return None
    return (
        f"MAILGROUP_DATABASE_CONNECTIONS: this process needs {share} connections to PostgreSQL, which are not free: of "
        f"{use.limit} that it allows, {use.processes} other services have {use.shares}, other programs use "
        f"{use.others}, and {RESERVED} are kept for commands. Raise max_connections of PostgreSQL, run fewer replicas, "
        "or lower MAILGROUP_DATABASE_CONNECTIONS"
    )


async def check_server(
    database: Database, share: int, own_name: str, wait_for_stop: Callable[[float], Awaitable[bool]]
) -> None:
    """Check once that the server suits a service, as soon as it answers.

    :param wait_for_stop: waits up to the given seconds; returns True as soon as the process is to stop.
    :raises Permanent: it does not; the text says what to change.
    """
    loop = asyncio.get_running_loop()
    deadline: float | None = None
    while True:
        try:
            async with database.statement() as connection:
                is_pooled = await _backend(connection) != connection.info.backend_pid
                use = await load_use(connection, own_name)
            if is_pooled and await exchanges_sessions(database):
                raise Permanent(_POOLED)
            shortage = describe_shortage(use, share)
            if shortage is None:
                return
            deadline = deadline or loop.time() + random.uniform(*WAIT_SECONDS)
            if loop.time() > deadline:
                raise Permanent(shortage)
        except Temporary:
            pass  # the tasks that need the server report it
        if await wait_for_stop(RETRY_SECONDS):
            return


async def exchanges_sessions(database: Database) -> bool:
    """Return whether two connections use each other's session, as they do through a pooler in transaction mode.

    :raises Temporary: the server is unavailable.
    """
    async with database.own_connection() as first, database.own_connection() as second:
        try:
            for _ in range(POOLER_ROUNDS):
                before = await _backend(first)
                async with asyncio.timeout(5), second.transaction():  # it may get the session that is free now
                    other = await _backend(second)
                    after = await _backend(first)
                if before == other or before != after:
                    return True
        except TimeoutError:  # the pooler has one session for all
            return True
        except psycopg.errors.ProtocolViolation:  # no transactions: the mode "statement"
            return True
    return False


async def _backend(connection: Connection) -> int:
    cursor = await connection.execute("select pg_backend_pid()", prepare=False)
    [pid] = await cursor.fetchone() or (0,)
    return int(pid)
