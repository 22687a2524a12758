"""The three doors of services/smtp_in: every deadline and limit of docs/standards.md, at each of them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import TimerHandle
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.smtp_in import listener, login
from services.smtp_in.listener import SESSIONS
from shared.db.database import Database
from tests.polling import until
from tests.submission_harness import Client, Running, plain, running

DOORS = pytest.mark.parametrize("door", ["smtp", "submission", "smtps"])


@pytest.fixture
async def server(database: Database, broker_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with the settings of a first start, but few connections."""
    limits = {"max_connections_per_address": 4, "max_connections_per_account": 2}
    async with running(database, broker_url, tmp_path, **limits) as started:
        yield started


async def enter(server: Running, door: str, source: str = "127.0.0.1") -> Client:
    """Connect and start TLS, up to the reply to EHLO."""
    trusting = ssl.create_default_context(cafile=str(server.cafile))
    client = await Client.connect(server.port(door), source, trusting if door == "smtps" else None)
    assert (await client.reply())[-1].startswith("220")
    if door != "smtps":
        await client.ask("EHLO x", "STARTTLS")
        await client.writer.start_tls(trusting, server_hostname="localhost")
    await client.ask("EHLO x")
    return client


def deadline_of(server: Running, most: float) -> TimerHandle:
    """The deadline that the only connection has; the caller lets it pass sooner."""
    [connection] = server.listener.registry.connections
    deadline = connection._deadline
    assert deadline is not None and deadline.when() - asyncio.get_running_loop().time() <= most
    return deadline


async def drip(client: Client) -> None:
    """Send an octet of a command now and then."""
    with suppress(ConnectionError):
        while True:
            client.writer.write(b"N")
            await asyncio.sleep(0.05)


async def silent_handshake(server: Running, door: str) -> socket.socket:
    """A connection of which a handshake is expected."""
    raw = socket.create_connection(("127.0.0.1", server.port(door)))
    raw.setblocking(False)
    loop, got = asyncio.get_running_loop(), b""
    if door != "smtps":
        await loop.sock_sendall(raw, b"EHLO x\r\nSTARTTLS\r\n")
        while b"220 2.0.0" not in got:
            got += await loop.sock_recv(raw, 4096)
    return raw


@DOORS
async def test_a_handshake_that_does_not_come_ends_the_connection(
    server: Running, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    for module in (login, listener):
        monkeypatch.setattr(module, "TLS_SECONDS", 0.5)
    await server.listener.close(0)
    await server.listener.open()
    with await silent_handshake(server, door) as raw, suppress(ConnectionError):
        # the deadline of the login is three minutes
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(raw, 100), 100) == b""
    await until(lambda: SESSIONS._value.get() == 0)


async def test_a_connection_counts_until_its_handshake_ends(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "LOGIN_SECONDS", 0.3)
    raw = await silent_handshake(server, "smtps")
    await until(lambda: SESSIONS._value.get() == 1)

    # when the deadline of the login passes during the handshake
    await asyncio.sleep(0.8)

    # then the connection is still open and counts, and it is closed once the handshake is done
    assert SESSIONS._value.get() == 1
    trusting = ssl.create_default_context(cafile=str(server.cafile))
    reader, writer = await asyncio.open_connection(sock=raw, ssl=trusting, server_hostname="localhost")
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 100) == b""
    writer.close()
    await until(lambda: SESSIONS._value.get() == 0)


@DOORS
async def test_a_client_that_does_not_log_in_is_disconnected(server: Running, door: str) -> None:
    client = await enter(server, door)
    client.writer.write(b"AUTH LOGIN\r\n")  # in the middle of a login, too
    assert (await client.reply())[-1].startswith("334")
    deadline = deadline_of(server, login.LOGIN_SECONDS)
    dripping = asyncio.create_task(drip(client))
    asyncio.get_running_loop().call_later(0.3, deadline._run)
    assert (await client.reply())[-1].startswith("421 4.4.2") and await client.closed()
    dripping.cancel()


@DOORS
@pytest.mark.parametrize("together", [True, False])
async def test_input_during_a_login_is_limited(
    server: Running, monkeypatch: pytest.MonkeyPatch, door: str, together: bool
) -> None:
    client = await enter(server, door)
    [connection] = server.listener.registry.connections
    checking = asyncio.Event()

    async def slow(*_: str) -> None:
        checking.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(connection._logins, "verify", slow)
    login_line, noise = plain("alex@local.com").encode() + b"\r\n", b"NOOP\r\n" * 20_000
    client.writer.write(login_line + noise[:20_000])
    await checking.wait()
    await asyncio.sleep(0.1)
    assert not connection.ended
    if together:
        client.writer.transport.abort()
        client = await enter(server, door)
        client.writer.write(login_line + noise)
    else:
        client.writer.write(noise)
    with suppress(ConnectionError):
        assert (await client.reply())[-1].startswith("421 4.7.0")
    await until(lambda: SESSIONS._value.get() == 0)


@DOORS
async def test_a_command_line_has_to_end_in_time(server: Running, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    client = await enter(server, door)
    assert (await client.ask(plain("alex@local.com"))).startswith("235")
    [connection] = server.listener.registry.connections
    monkeypatch.setattr(connection, "idle_seconds", 0.7)
    await client.ask("NOOP")
    dripping = asyncio.create_task(drip(client))
    assert (await client.reply())[-1].startswith("421 4.4.2") and await client.closed()
    dripping.cancel()


@DOORS
async def test_a_session_has_an_end(server: Running, door: str) -> None:
    client = await enter(server, door)
    assert (await client.ask(plain("alex@local.com"))).startswith("235")
    replies = [await client.ask("MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>", "DATA")]
    deadline_of(server, login.SESSION_SECONDS)._run()  # a mail under way is received
    replies += [await client.ask("Subject: x\r\n\r\n."), (await client.reply())[-1]]
    assert [reply[:9] for reply in replies] == ["354 End d", "250 2.0.0", "421 4.4.2"] and await client.closed()


async def test_the_doors_share_the_limits_of_address_and_account(server: Running) -> None:
    inside = [await enter(server, door) for door in ("smtp", "submission", "smtps")]
    assert [(await client.ask(plain("alex@local.com")))[:3] for client in inside] == ["235", "235", "421"]
    await until(lambda: SESSIONS._value.get() == 2)
    fourth = [await enter(server, door) for door in ("submission", "smtps")]
    with pytest.raises((ConnectionError, ssl.SSLError, AssertionError)):
        await enter(server, "smtps")
    for door in ("smtp", "submission"):
        assert (await (await Client.connect(server.port(door))).reply())[-1].startswith("421 4.7.0")
    assert (await (await enter(server, "smtps", "127.0.0.2")).ask("NOOP")).startswith("250")
    assert (await fourth[0].ask(plain("jim@local.com"))).startswith("235")
