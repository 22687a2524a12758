"""A process that is stopped in the middle of a transaction holds up nobody for ever."""

from __future__ import annotations

import asyncio

import pytest

import shared.db.database
from shared.db.database import Database
from shared.errors import Temporary


async def test_locks_of_a_process_that_is_stopped_are_let_go(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given one that holds a lock and does nothing more
    monkeypatch.setattr(shared.db.database, "IDLE_SECONDS", 1.0)
    stopped = Database(database_url, "stopped")
    await stopped.open()
    with pytest.raises(Temporary):
        async with stopped.transaction() as connection:
            await connection.execute("lock table polls in access exclusive mode")
            # then another one gets it a moment later
            async with asyncio.timeout(10), database.transaction() as other:
                await other.execute("select * from polls for update")
            # and this one learns that it has lost it
            await connection.execute("select 1")
    await stopped.close()
