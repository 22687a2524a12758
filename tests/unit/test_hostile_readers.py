"""services/pop3_out against clients that mean harm, or break off: over raw sockets, mailboxes in memory."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from services.pop3_out import connection
from tests.dialogues.pop3.stand import ALEX, ONE, Stand, on_loop, stand, trusting

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


async def send_and_leave(server: Stand, octets: bytes, reset: bool, heard: bytes = b"") -> None:
    """Send this in one piece, and disconnect after this reply: by closing, or by a reset."""
    with socket.create_connection(("127.0.0.1", server.settings.pop3_port)) as raw:
        raw.setblocking(False)
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.get_running_loop().sock_sendall(raw, octets)
        await asyncio.sleep(0.01)
        received = b""
        while heard not in received:
            received += await asyncio.get_running_loop().sock_recv(raw, 65536)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(reset), 0))


async def all_gone(server: Stand) -> None:
    for _ in range(200):
        if not server.listener.registry.connections:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{len(server.listener.registry.connections)} connections stay open")


@LOOPS
def test_a_session_cut_after_any_octet_deletes_all_marked_mail_or_nothing(tmp_path: Path, loop: str) -> None:
    script = b"USER alex@local.com\r\nPASS secret\r\nDELE 1\r\nDELE 3\r\nRETR 2\r\nQUIT\r\n"

    async def work() -> None:
        async with stand(tmp_path, max_connections_per_account=1000) as server:
            for octets in range(len(script) - 1):
                await asyncio.gather(*(send_and_leave(server, script[:octets], reset) for reset in (True, False)))
            await all_gone(server)
            assert server.store.left(ALEX) == [1, 2, 3]
            # a QUIT counts when the server has it, though the client does not wait for its answer
            await send_and_leave(server, script, reset=False, heard=b"\r\n.\r\n")
            await all_gone(server)
            assert server.store.left(ALEX) == [2]

    on_loop(loop, work)


@LOOPS
def test_any_input_leaves_the_server_running_and_deletes_nothing(tmp_path: Path, loop: str) -> None:
    noise = random.Random(2)
    login = b"USER alex@local.com\r\nPASS secret\r\n"
    inputs = [
        noise.randbytes(100_000),
        b"\n" * 100_000,
        b"\0" * 100_000,
        b"CAPA\r\n" * 20_000,
        b"AUTH PLAIN\r\n*\r\n" * 20_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise.randbytes(500),
        b"STLS\r\nDELE 1\r\nQUIT\r\n" + noise.randbytes(500),
        login + b"DELE 1\r\n" * 10_000,
        login + b"RETR 1\r\n" * 20_000,
        login + b"TOP 2 1\r\n" * 20_000,
        login + b"LIST\r\nUIDL\r\nSTAT\r\n" * 20_000,
        login + b"RETR " + b"9" * 400 + b"\r\nTOP 1 " + b"9" * 400 + b"\r\nDELE \xd9\xa1\r\nLIST 1e9\r\n",
        login + b"DELE 1\rQUIT\r\n",
        login + b"DELE 1\0\r\nDELE 1 2\r\nDELE 2\x0bQUIT\r\n",
    ]

    async def work() -> None:
        async with stand(tmp_path, max_connections_per_account=1000) as server:
            for data in inputs:
                for reset in (True, False):
                    await send_and_leave(server, data, reset)
            await all_gone(server)
            assert server.store.left(ALEX) == [1, 2, 3]
            assert not server.listener.registry._by_network and not server.listener.registry._by_account
            assert server.listener.budget.in_use == 0
            reader, writer = await server.logged_in()
            writer.write(b"RETR 1\r\n")
            assert await reader.readuntil(b"\r\n.\r\n") == b"+OK %d octets\r\n" % len(ONE) + ONE + b".\r\n"

    on_loop(loop, work)


@LOOPS
def test_commands_in_clear_behind_stls_are_never_executed(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        async with stand(tmp_path) as server:
            for injected in (b"", b"USER alex@local.com\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n", b"USER alex@lo"):
                reader, writer = await server.connect()
                await reader.readline()
                writer.write(b"USER alex@local.com\r\nSTLS\r\n" + injected)
                assert [(await reader.readline())[:3] for _ in range(2)] == [b"+OK", b"+OK"]
                await writer.start_tls(trusting())
                writer.write(b"PASS secret\r\nSTAT\r\nSTLS\r\nCAPA\r\n")
                assert [(await reader.readline())[:4] for _ in range(3)] == [b"-ERR"] * 3
                assert b"STLS" not in await reader.readuntil(b"\r\n.\r\n")
                writer.close()
            assert server.store.left(ALEX) == [1, 2, 3]

    on_loop(loop, work)


@LOOPS
def test_clients_that_send_octet_by_octet_block_nobody_and_time_out(
    tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_DEADLINES", replace(connection._DEADLINES, login=1.0))

    async def work() -> None:
        async with stand(tmp_path) as server:
            slow = [await server.connect() for _ in range(40)]

            async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with suppress(ConnectionError):
                    while not reader.at_eof():
                        writer.write(b"U")
                        await asyncio.sleep(0.02)

            started = time.monotonic()
            dripping = [asyncio.create_task(drip(*client)) for client in slow]
            await asyncio.sleep(0.2)
            honest = await server.logged_in()
            assert len(server.listener.registry.connections) == 41  # so it waited for none of them to end
            while len(server.listener.registry.connections) > 1 and time.monotonic() - started < 8:
                server.listener.check_deadlines()
                await asyncio.sleep(0.1)
            assert len(server.listener.registry.connections) == 1 and not honest[0].at_eof()
            for task in dripping:
                task.cancel()
            await asyncio.gather(*dripping, return_exceptions=True)

    on_loop(loop, work)


@LOOPS
def test_the_address_that_a_trusted_proxy_names_is_the_client_s(tmp_path: Path, loop: str) -> None:
    far, near = b"PROXY TCP4 203.0.113.5 10.0.0.1 99 110\r\n", b"PROXY TCP4 192.168.1.9 10.0.0.1 99 110\r\n"

    async def work() -> None:
        async with stand(tmp_path, proxy_from="127.0.0.0/8", max_connections_per_address=1) as server:
            # given a client on the LAN and one outside, both behind the proxy
            reader, far_writer = await server.connect()
            far_writer.write(far + b"USER alex@local.com\r\n")
            assert (await reader.readline()).startswith(b"+OK")
            assert (await reader.readline()).startswith(b"-ERR passwords are taken under TLS only")
            reader, writer = await server.connect()
            writer.write(near + b"USER alex@local.com\r\nPASS secret\r\n")
            assert [(await reader.readline())[:3] for _ in range(3)] == [b"+OK"] * 3
            # then each counts for itself, before TLS too
            crowded, writer_of_crowded = await server.connect()
            writer_of_crowded.write(far)
            assert await crowded.read() == b"-ERR [SYS/TEMP] too many connections\r\n"
            secure, writer_of_secure = await asyncio.open_connection("127.0.0.1", server.settings.pop3s_port)
            writer_of_secure.write(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n")
            await writer_of_secure.start_tls(trusting())
            writer_of_secure.write(b"USER alex@local.com\r\nPASS secret\r\nQUIT\r\n")
            assert (await asyncio.wait_for(secure.read(), 5)).count(b"+OK") == 4
            # and a connection without the header is refused
            silent, writer_of_silent = await server.connect()
            writer_of_silent.write(b"USER alex@local.com\r\n")
            with suppress(ConnectionError):
                assert await asyncio.wait_for(silent.read(), 5) == b""

    on_loop(loop, work)
