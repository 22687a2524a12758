"""shared/db/psycopg_connection.py against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from shared.db.database import Database, Row
from shared.db.psycopg_connection import WatchedConnection
from tests.polling import until

LARGE = 20 * 1024 * 1024


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[WatchedConnection[Row]]:
    connection: WatchedConnection[Row] = await WatchedConnection.connect(url, autocommit=True)
    try:
        yield connection
    finally:
        await connection.close()


async def value(connection: WatchedConnection[Row], sql: str, *parameters: object) -> object:
    cursor = connection.cursor(binary=True)
    await cursor.execute(sql.encode(), parameters)
    row = await cursor.fetchone()
    assert row is not None
    return row[0]


async def end(url: str, connection: WatchedConnection[Row]) -> None:
    """Let the server close a connection."""
    async with connected(url) as other:
        assert await value(other, "select pg_terminate_backend(%s)", connection.info.backend_pid)


def count_turns(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Return a list to which each turn of the event loop adds the time for which it may sleep: seconds."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]  # the loop has no public count
    wait = selector.select
    turns: list[float | None] = []

    def counted(timeout: float | None) -> Any:
        turns.append(timeout)
        return wait(timeout)

    monkeypatch.setattr(selector, "select", counted)
    return turns


async def test_a_value_larger_than_any_buffer_is_sent_and_received_whole(database_url: str) -> None:
    octets = os.urandom(LARGE)
    async with connected(database_url) as connection:
        assert await value(connection, "select %b::bytea", octets) == octets


async def test_other_tasks_run_while_a_result_arrives(database_url: str) -> None:
    async with connected(database_url) as connection:
        asked = asyncio.create_task(value(connection, "select repeat('x', %s)", LARGE))
        turns = 0
        while not asked.done():
            await asyncio.sleep(0)
            turns += 1
        assert len(str(asked.result())) == LARGE
        assert turns > 3


async def test_a_query_that_is_cancelled_ends_and_its_connection_goes_on(database_url: str) -> None:
    async with connected(database_url) as connection:
        asked = asyncio.create_task(value(connection, "select pg_sleep(3600)"))
        await asyncio.sleep(0.2)
        asked.cancel()
        async with asyncio.timeout(300):
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert await value(connection, "select 42") == 42


async def test_a_cancelled_query_s_result_is_not_given_to_the_next_query(database_url: str) -> None:
    async with connected(database_url) as connection:
        for turns in range(20):
            asked = asyncio.create_task(value(connection, "select repeat('x', %s)", LARGE))
            for _ in range(turns):
                await asyncio.sleep(0.002)
            asked.cancel()
            await asyncio.wait([asked])
            assert await value(connection, "select 42") == 42


async def test_a_waiting_query_fails_when_the_connection_ends(database_url: str) -> None:
    async with connected(database_url) as connection:
        asked = asyncio.create_task(value(connection, "select pg_sleep(30)"))
        await asyncio.sleep(0.2)
        await end(database_url, connection)
        with pytest.raises(psycopg.OperationalError):
            await asked


async def test_a_connection_that_ends_while_idle_causes_no_failure(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(database_url) as connection:
        await value(connection, "select 1")
        # when the server closes a connection that no query uses
        await end(database_url, connection)
        await until(lambda: select.select([connection], [], [], 0)[0])
        # then the event loop sleeps: with the socket still watched, it would turn without a pause
        turns = count_turns(monkeypatch)
        await asyncio.sleep(0.5)
        assert len(turns) < 20
        with pytest.raises(psycopg.OperationalError):
            await value(connection, "select 1")


async def test_no_descriptor_is_left_open(database_url: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with connected(database_url) as connection:
            await value(connection, "select 1")
    # not even by a connection that is never closed, as the pool does with broken ones
    forgotten: WatchedConnection[Row] = await WatchedConnection.connect(database_url, autocommit=True)
    await value(forgotten, "select 1")
    await end(database_url, forgotten)
    with pytest.raises(psycopg.OperationalError):
        await value(forgotten, "select 1")
    del forgotten
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_the_pool_uses_watched_connections(database: Database) -> None:
    async with database.statement() as connection:
        assert isinstance(connection, WatchedConnection)
