"""shared/db/database.py: a process that stops during a transaction does not block the others."""

from __future__ import annotations

import asyncio

import pytest

import shared.db.database
from shared.db.database import Database
from shared.errors import Temporary


async def test_locks_of_a_process_that_stops_in_a_transaction_are_released(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that holds a lock and does nothing more
    monkeypatch.setattr(shared.db.database, "IDLE_SECONDS", 1.0)
    stopped = Database(database_url, "mailgroup-stopped")
    await stopped.open()
    with pytest.raises(Temporary):
        async with stopped.transaction() as connection:
            await connection.execute("lock table polls in access exclusive mode")
            # then another process gets the lock a moment later
            async with asyncio.timeout(10), database.transaction() as second:
                await second.execute("select * from polls for update")
            # and the first process gets an error
            await connection.execute("select 1")
    await stopped.close()
