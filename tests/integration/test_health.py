"""shared/runtime/health.py: what /readyz says is as old as the last heartbeat, and asked of the servers."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from deploy.machine import ports
from shared.amqp.broker import Broker
from shared.db.database import Database
from shared.runtime import health
from shared.runtime.health import Health
from shared.settings import SERVICES, Settings
from tests import servers
from tests.faults.proxy import Proxy
from tests.polling import until


def ask_until_late(url: str) -> bool:
    """Ask until the answer names the heartbeat."""
    end = time.monotonic() + 60
    while not ask(url).startswith("last heartbeat "):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@asynccontextmanager
async def serving(database: Database, broker: Broker | None) -> AsyncIterator[str]:
    """The pages of a router; yields the URL of /readyz."""
    settings = Settings(metrics_port=ports.choose_run(len(SERVICES), str(id(database)), ports.OURS))
    async with Health(settings, "router", database, broker):
        yield f"http://{settings.metrics_host}:{settings.metrics_port_of('router')}/readyz"


def ask(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


async def test_a_heartbeat_that_is_late_names_no_server_as_the_cause(
    database: Database, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(health, "HEARTBEAT_SECONDS", 0.1)
    broker = Broker(broker_url, "test")
    async with serving(database, broker) as url:
        # given a process that waited for the broker at its last heartbeat
        await until(lambda: not broker.ready)
        await until(lambda: _is(url, "waiting for broker\n"))
        # when its event loop stands
        with ThreadPoolExecutor(1) as thread:
            # then it does not say so any more
            assert thread.submit(ask_until_late, url).result()
        # and with the broker connected it is ready again
        await broker.open()
        await until(lambda: _is(url, "ok\n"))
    await broker.close()


async def _is(url: str, text: str) -> bool:
    return await asyncio.to_thread(ask, url) == text


async def test_a_service_without_need_of_the_broker_is_ready_without_it(database: Database) -> None:
    async with serving(database, None) as url:
        await until(lambda: _is(url, "ok\n"))


async def test_a_database_that_hangs_is_named_at_the_next_heartbeat(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "STALE_SECONDS", 3600.0)  # a heartbeat that hangs would never be named late
    server = conninfo_to_dict(database_url)
    [port] = ports.choose(1, database_url)
    proxy = Proxy(port, int(str(server["port"])))
    async with proxy.running():
        url = make_conninfo(database_url, host="127.0.0.1", port=port)
        async with servers.opened(url) as behind, serving(behind, None) as page:
            await until(lambda: _is(page, "ok\n"))
            # when the server is silent
            proxy.silence()
            await until(lambda: _is(page, "waiting for database\n"))
            # then the answer stays the same, and follows the heartbeat
            for _ in range(20):
                await asyncio.sleep(0.2)
                assert await _is(page, "waiting for database\n")
            # and it is ready again as soon as the server answers
            await proxy.resume()
            await until(lambda: _is(page, "ok\n"))


async def test_a_service_is_ready_with_its_schema_or_one_that_only_grew(database: Database) -> None:
    async def set_schema(revision: str, oldest: str) -> None:
        async with database.transaction() as connection:
            await connection.execute(
                "update alembic_version set version_num = %s, oldest_revision = %s", (revision, oldest)
            )

    async with serving(database, None) as url:
        await until(lambda: _is(url, "ok\n"))
        # a later version only added something
        await set_schema("later", "initial")
        for _ in range(3):
            await asyncio.sleep(health.HEARTBEAT_SECONDS)
            assert await _is(url, "ok\n")
        # a still later one took away what this version uses
        await set_schema("latest", "later")
        await until(lambda: _is(url, "waiting for migration\n"))
        # and this version has to migrate a schema without tables
        async with database.transaction() as connection:
            await connection.execute("alter table alembic_version rename to not_migrated")
        await asyncio.sleep(2 * health.HEARTBEAT_SECONDS)
        assert await _is(url, "waiting for migration\n")
        assert await database.ready()


async def test_a_service_that_stops_is_not_ready(database: Database) -> None:
    stopping = asyncio.Event()
    settings = Settings(metrics_port=ports.choose_run(len(SERVICES), str(id(stopping)), ports.OURS))
    async with Health(settings, "pop3_out", database, None, stopping):
        url = f"http://{settings.metrics_host}:{settings.metrics_port_of('pop3_out')}/readyz"
        await until(lambda: _is(url, "ok\n"))
        stopping.set()
        assert await _is(url, "stopping\n")
