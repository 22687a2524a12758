"""Liveness: a process that claims work holds an advisory lock in the database as long as it lives.

When a process dies, the kernel closes its connections and PostgreSQL releases the locks of its sessions. Other
processes therefore detect within seconds that its claims are orphaned, on whichever machine it ran, and do not wait
until the leases expire. A stopped process, or one whose machine is gone, still seems alive; its leases expire. A
process that lost only this connection has a moment to reconnect. If its claims are taken over anyway, it learns that at
its next commit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

import structlog

from shared.db.database import Database
from shared.errors import Temporary

_SPACE = 0x6D61696C
"""First key of these advisory locks: no other lock in this database uses it."""

CHECKS = 3
"""Number of consecutive checks at which an owner must be absent to count as dead."""
CHECK_SECONDS = 1.0
"""Interval of the checks, in seconds."""

OWNER_IS_DEAD = f"""not exists (
    select from pg_locks where locktype = 'advisory' and classid = {_SPACE} and objsubid = 2 and granted
        and objid = (hashtext({{owner}})::bigint & 4294967295)::oid
        and database = (select oid from pg_database where datname = current_database()))"""
"""SQL: whether no session holds the lock of ``{owner}``. If two owners have the same hash, a dead one seems alive for
longer."""

log = structlog.get_logger()


async def hold_liveness_lock(database: Database, owner: str) -> None:
    """Hold the lock of this owner until cancelled; reconnect when the connection is lost."""
    while True:
        try:
            async with database.own_connection() as connection:
                await connection.execute("select pg_advisory_lock_shared(%s, hashtext(%s))", (_SPACE, owner))
                async for _ in connection.notifies():  # no NOTIFY is sent: the loop ends with the connection
                    pass
        except Temporary as error:
            log.warning("liveness lock lost, other processes may take over our claims", owner=owner, error=str(error))
        await asyncio.sleep(0.3)


class DeadOwnerDetector:
    """Counts at how many consecutive checks each owner was absent."""

    def __init__(self) -> None:
        self._looks: Counter[str] = Counter()

    def dead(self, absent: Collection[str]) -> list[str]:
        """Count one check. :param absent: the owners absent now. :return: those that count as dead."""
        self._looks = Counter({owner: self._looks[owner] + 1 for owner in absent})
        return sorted(owner for owner, looks in self._looks.items() if looks >= CHECKS)
