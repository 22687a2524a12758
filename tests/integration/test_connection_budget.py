"""shared/db/connection_budget.py against a real PostgreSQL and a real PgBouncer: what does not fit refuses to start."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from deploy.machine import ports
from deploy.machine.postgres import USER
from deploy.machine.programs import Program, give
from deploy.machine.supervise import ROOT
from shared.db import connection_budget
from shared.db.connection_budget import ConnectionUse, check_server, describe_shortage, load_use, share_name
from shared.db.database import Database
from shared.errors import Permanent, Temporary
from shared.runtime.process import Service
from shared.settings import SERVICES, Settings
from tests import servers
from tests.polling import until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


async def never_stops(seconds: float) -> bool:
    await asyncio.sleep(min(seconds, 0.05))
    return False


@asynccontextmanager
async def process(url: str, name: str, share: int = 6) -> AsyncIterator[tuple[Database, str]]:
    """The connections of a service that runs."""
    own_name = share_name(name, share, secrets.token_hex(4))
    database = Database(url, own_name, share - 1)
    await database.open()
    try:
        assert await database.ready()
        yield database, own_name
    finally:
        await database.close()


async def settled_use(database: Database, own_name: str, processes: int = 0) -> ConnectionUse:
    """Return the use of the server once only this process and so many others have connections.

    The sessions of closed connections end on the server some time later.
    """
    found: list[ConnectionUse] = []

    async def settled() -> bool:
        async with database.statement() as connection:
            found.append(await load_use(connection, own_name))
        return (found[-1].processes, found[-1].others) == (processes, 0)

    await until(settled)
    return found[-1]


def test_what_is_used_allowed_and_to_be_changed_is_said() -> None:
    use = ConnectionUse(used=40, limit=97, shares=84, processes=14, others=3)
    assert describe_shortage(use, 5) is None
    text = describe_shortage(use, 6)
    assert text is not None and text.startswith("MAILGROUP_DATABASE_CONNECTIONS: this process needs 6 connections")
    assert "of 97 that it allows, 14 other services have 84, other programs use 3, and 5 are kept for commands" in text
    assert "Raise max_connections of PostgreSQL" in text


async def test_shares_count_whole_whatever_is_used_of_them(database_url: str) -> None:
    async with process(database_url, "router") as (own, own_name), process(database_url, "sender", 20) as (other, _):
        before = await settled_use(other, own_name, processes=1)
        with psycopg.connect(database_url, application_name="psql"):
            async with own.statement() as connection:
                use = await load_use(connection, own_name)
        assert (use.processes, use.shares) == (before.processes, before.shares) and use.shares >= 20
        assert use.others == before.others + 1
        assert use.used > before.used  # by one, and what the pools have opened meanwhile
        assert use.limit == 197  # max_connections 200, less three of the superuser


async def test_the_process_that_leaves_too_few_for_commands_refuses(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_budget, "WAIT_SECONDS", (0.1, 0.2))
    async with process(database_url, "router") as (database, own_name):
        use = await settled_use(database, own_name)
        # given room for one process exactly
        monkeypatch.setattr(connection_budget, "RESERVED", use.limit - use.shares - use.others - 6)
        await check_server(database, 6, own_name, never_stops)
        # when another one comes
        async with process(database_url, "mailbox") as (second, second_name):
            with pytest.raises(Permanent, match=r"needs 6 connections"):
                await check_server(second, 6, second_name, never_stops)


def test_a_service_that_does_not_fit_ends_with_the_reason(database_url: str, broker_url: str, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "MAILGROUP_DATA": str(tmp_path),
        "MAILGROUP_DATABASE_URL": database_url,
        "MAILGROUP_BROKER_URL": broker_url,
        "MAILGROUP_DATABASE_CONNECTIONS": "300",
        "MAILGROUP_METRICS_PORT": str(ports.choose_run(len(SERVICES), str(tmp_path), ports.OURS)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "services.router"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mailgroup: MAILGROUP_DATABASE_CONNECTIONS: this process needs 300")


async def test_a_process_never_opens_more_than_its_share(database_url: str, broker_url: str) -> None:
    settings = Settings(database_url=database_url, broker_url=broker_url, database_connections=4)
    service = Service("router", settings)
    await service.database.open()

    inside, enough = 0, asyncio.Event()

    async def work() -> None:
        nonlocal inside
        async with service.database.statement() as connection:
            inside += 1
            await connection.execute("select pg_sleep(0.05)")
            await enough.wait()

    async with service.database.own_connection():
        works = asyncio.gather(*(work() for _ in range(40)))
        await until(lambda: inside == 3)
        await asyncio.sleep(0.3)
        enough.set()
        await works
        with psycopg.connect(database_url) as connection:
            [count] = connection.execute(
                "select count(*) from pg_stat_activity where application_name = %s", (service.database_name,)
            ).fetchone() or (0,)
    assert count == 4
    await service.database.close()


async def test_the_locks_of_a_session_end_with_it_and_it_leaves_room(database: Database, database_url: str) -> None:
    small = Database(database_url, "mailgroup-test", connections=2)
    await small.open()

    async def is_free() -> bool:
        async with database.statement() as connection:
            cursor = await connection.execute("select pg_try_advisory_lock(1), pg_advisory_unlock_all()")
            [free, _] = await cursor.fetchone() or (False, None)
        return bool(free)

    for failure in (None, ValueError("broken"), Temporary("gone")):
        try:
            async with small.session() as connection:
                await connection.execute("select pg_advisory_lock(1)")
                assert not await is_free()
                # another session waits, statements do not
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2), small.session():
                        pass
                assert await small.ready()
                if failure is not None:
                    raise failure
        except (ValueError, Temporary) as error:
            assert error is failure
        await until(is_free)
    await small.close()


# ------------------------------------------------------------------------------------------------ a pooler


@contextmanager
def pgbouncer(url: str, mode: Literal["transaction", "session", "statement"], size: int) -> Iterator[str]:
    """A PgBouncer in front of this database; its URL."""
    assert PGBOUNCER is not None
    found = conninfo_to_dict(url)
    with servers.scratch() as folder:
        port = ports.choose(1, str(folder))[0]
        (folder / "users").write_text(f'"mailgroup" "{found["password"]}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"""[databases]
{found["dbname"]} = host={found["host"]} port={found["port"]} dbname={found["dbname"]}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {size}
ignore_startup_parameters = extra_float_digits
"""
        )
        give(folder, USER)
        program = Program("pgbouncer", (PGBOUNCER, str(folder / "pgbouncer.ini")), None, folder, 5, USER)
        running = program.start(folder / "log")
        through = f"postgresql://mailgroup:{quote(str(found['password']))}@127.0.0.1:{port}/{found['dbname']}"

        def answers() -> bool:
            try:
                psycopg.connect(through, connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            servers.wait_for(answers, running)
            yield through
        finally:
            running.stop()


@pytest.mark.skipif(PGBOUNCER is None, reason="Debian's package pgbouncer is not installed")
@pytest.mark.parametrize(("mode", "size"), [("transaction", 10), ("transaction", 1), ("statement", 10)])
async def test_a_pooler_that_shares_sessions_is_refused(
    database_url: str, mode: Literal["transaction", "statement"], size: int
) -> None:
    with pgbouncer(database_url, mode, size) as url:
        database = Database(url, share_name("router", 6, "1"), 5)
        await database.open()
        with pytest.raises(Permanent, match=r"pool_mode = session"):
            async with asyncio.timeout(60):
                await check_server(database, 6, share_name("router", 6, "1"), never_stops)
        await database.close()


@pytest.mark.skipif(PGBOUNCER is None, reason="Debian's package pgbouncer is not installed")
async def test_a_pooler_with_a_session_for_each_connection_is_accepted(database_url: str) -> None:
    with pgbouncer(database_url, "session", 10) as url:
        database = Database(url, share_name("router", 6, "1"), 5)
        await database.open()
        async with asyncio.timeout(60):
            await check_server(database, 6, share_name("router", 6, "1"), never_stops)
        await database.close()
