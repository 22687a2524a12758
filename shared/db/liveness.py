"""Who is at work: a process that claims something holds a lock in the database for as long as it lives.

The kernel closes the connections of a process that dies, and PostgreSQL then lets go of the locks of its sessions. So
others learn within a moment that nobody works on its claims, wherever it ran, and need not wait until they run out.
One that is stopped, or whose machine is gone, seems present; its claims run out by the clock. One that only lost this
connection has a moment to come back, and if its claims are taken up all the same it learns that at its next commit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

import structlog

from shared.db.database import Database
from shared.errors import Temporary

_SPACE = 0x6D61696C
"""Of advisory locks: nobody else in this database takes any with this first number."""

CHECKS = 3
"""An owner that was absent at so many looks, one after the other, is gone."""
CHECK_SECONDS = 1.0

OWNER_IS_DEAD = f"""not exists (
    select from pg_locks where locktype = 'advisory' and classid = {_SPACE} and objsubid = 2 and granted
        and objid = (hashtext({{owner}})::bigint & 4294967295)::oid
        and database = (select oid from pg_database where datname = current_database()))"""
"""SQL: whether nobody holds the lock of ``{owner}``. Two owners with the same hash only seem present for longer."""

log = structlog.get_logger()


async def hold_liveness_lock(database: Database, owner: str) -> None:
    """Hold the lock of this owner for ever, over connections that are lost; cancel to leave."""
    while True:
        try:
            async with database.session() as connection:
                await connection.execute("select pg_advisory_lock_shared(%s, hashtext(%s))", (_SPACE, owner))
                async for _ in connection.notifies():  # nobody notifies: it ends when the connection does
                    pass
        except Temporary as error:
            log.warning("not seen to be at work", owner=owner, reason=str(error))
        await asyncio.sleep(0.3)


class DeadOwnerDetector:
    """Remembers how often an owner was absent in a row."""

    def __init__(self) -> None:
        self._looks: Counter[str] = Counter()

    def dead(self, absent: Collection[str]) -> list[str]:
        """Those of the owners absent now that are gone by this look."""
        self._looks = Counter({owner: self._looks[owner] + 1 for owner in absent})
        return sorted(owner for owner, looks in self._looks.items() if looks >= CHECKS)
