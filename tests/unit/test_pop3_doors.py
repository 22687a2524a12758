"""The two doors of services/pop3_out: the deadlines of docs/standards.md that test_pop3_connections.py leaves out."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest

from services.pop3_out.connection import IDLE_SECONDS, LOGIN_SECONDS, SESSION_SECONDS
from shared.model import Local
from shared.runtime import served_connection, served_listener
from tests.dialogues.pop3.stand import ALEX, MemoryLogins, on_loop, stand
from tests.polling import until, until_still

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
TLS = pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])


@LOOPS
@TLS
def test_a_handshake_that_does_not_come_ends_the_connection(
    tmp_path: Path, loop: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (served_connection, served_listener):
        monkeypatch.setattr(module, "TLS_SECONDS", 0.5)

    async def work() -> None:
        async with stand(tmp_path) as server:
            port = server.settings.pop3s_port if tls else server.settings.pop3_port
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"" if tls else b"STLS\r\n")
            got = b""
            with suppress(ConnectionError):
                got = await asyncio.wait_for(reader.read(), 45)  # less than the deadline of the login
            assert got.count(b"\n") == (0 if tls else 2)
            await until(lambda: not server.listener.registry.connections)
            writer.close()

    on_loop(loop, work)


@LOOPS
@TLS
@pytest.mark.parametrize("logged_in", [False, True])
def test_dripped_octets_of_a_command_extend_no_deadline(tmp_path: Path, loop: str, tls: bool, logged_in: bool) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await (server.logged_in(tls) if logged_in else server.connect(tls))
            if not logged_in:
                assert (await reader.readline()).startswith(b"+OK")
                writer.write(b"AUTH PLAIN\r\n")
                assert await reader.readline() == b"+ \r\n"
            [connection] = server.listener.registry.connections
            for _ in range(20):
                writer.write(b"A")
                await asyncio.sleep(0.01)
            connection.check_deadlines(time.monotonic() + (IDLE_SECONDS if logged_in else LOGIN_SECONDS) + 1)
            assert connection._is_ending

    on_loop(loop, work)


@LOOPS
@TLS
@pytest.mark.parametrize(("octets", "ended"), [(20_000, False), (200_000, True)])
def test_input_during_a_login_is_limited(
    tmp_path: Path, loop: str, tls: bool, octets: int, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = asyncio.Event()
    verify = MemoryLogins.verify

    async def slow(logins: MemoryLogins, address: str, password: str, peer: str) -> Local | None:
        await checked.wait()
        return await verify(logins, address, password, peer)

    monkeypatch.setattr(MemoryLogins, "verify", slow)

    async def work() -> None:
        async with stand(tmp_path) as server:
            reader, writer = await server.connect(tls)
            writer.write(b"USER alex@local.com\r\nPASS secret\r\n" + b"NOOP\r\n" * (octets // 6) + b"QUIT\r\n")
            connections = server.listener.registry.connections
            if ended:
                await until(lambda: not connections)
            else:
                await until_still(lambda: [len(each._input) for each in connections])
                assert connections
            checked.set()
            got = b""
            with suppress(ConnectionError):
                got = await asyncio.wait_for(reader.read(), 60)
            assert got.endswith(b"+OK bye\r\n") is not ended

    on_loop(loop, work)


@LOOPS
@TLS
def test_a_session_has_an_end(tmp_path: Path, loop: str, tls: bool) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            await server.logged_in(tls)
            [connection] = server.listener.registry.connections
            for seconds, ended in ((-5, False), (1, True)):
                now = connection._opened_at + SESSION_SECONDS + seconds
                connection._active_at = now  # a command has just come
                connection.check_deadlines(now)
                assert connection._is_ending is ended
            assert server.store.left(ALEX) == [1, 2, 3]

    on_loop(loop, work)


@LOOPS
def test_the_doors_share_the_limits_of_address_and_account(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path, max_connections_per_address=3, max_connections_per_account=2) as server:
            inside = [await server.logged_in(tls) for tls in (False, True)]
            reader, writer = await server.connect(tls=True)
            writer.write(b"USER alex@local.com\r\nPASS secret\r\n")
            assert b"-ERR [IN-USE]" in await asyncio.wait_for(reader.read(), 60)
            await until(lambda: len(server.listener.registry.connections) == 2)
            inside.append(await server.connect(tls=True))
            refused, _ = await server.connect()
            assert await refused.read() == b"-ERR [SYS/TEMP] too many connections\r\n"

    on_loop(loop, work)
