"""services/smtp_in against clients that mean harm, or only know a part of SMTP; over raw sockets."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import random
import socket
import ssl
import struct
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.smtp_in import connection as smtp_connection
from services.smtp_in import login
from services.smtp_in.data_reader import DataReader
from services.smtp_in.listener import SESSIONS
from shared.db.database import Database
from shared.net import server_tls
from shared.settings import load
from tests.polling import until
from tests.submission_harness import Client, Running, plain, running

SMUGGLED = b"MAIL FROM:<alex@local.com>\r\nRCPT TO:<evil@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
BEFORE = [b"\n", b"\r", b"\r\n", b"\n\r", b"\0\n", b"\r\0\n", b"\r\n\0", b"\0", b"\n\n", b"\r\r"]
AFTER = [b"\n", b"\r", b"\r\n", b"\n\r", b"\0\r\n", b"\r\0\n", b"\r\r\n", b"\0", b"\x85", b"\xe2\x80\xa8"]


@pytest.fixture
async def server(database: Database, broker_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with the settings of a first start."""
    async with running(database, broker_url, tmp_path) as started:
        yield started


async def test_no_form_of_line_end_but_one_ends_a_mail(server: Running) -> None:
    client = await Client.logged_in(server)
    forms = [
        before + b"." + after
        for before, after in itertools.product(BEFORE, AFTER)
        if not (before.endswith(b"\r\n") and after.startswith(b"\r\n"))
    ]
    for form in forms:
        reply = await client.send(b"Subject: outer\r\n\r\nbody" + form + SMUGGLED)
        assert reply.startswith("250"), form
        # a second mail would have been answered: the next answer is this one
        assert (await client.ask("VRFY x")).startswith("252"), form

    async with server.database.transaction() as connection:
        cursor = await connection.execute("select address, count(*) from submission_recipients group by address")
        assert await cursor.fetchall() == [("x@example.net", len(forms))]


async def test_a_command_with_a_cr_or_nul_inside_is_refused(server: Running) -> None:
    client = await Client.logged_in(server)
    for line in (
        "MAIL FROM:<alex@local.com>\rRCPT TO:<x@example.net>",
        "MAIL FROM:<alex@local.com\r\0>",
        "MAIL FROM:<alex@local.com> SIZE=1\rRCPT",
        "MAIL FROM:<alex@local.com>\0",
        "MAIL FROM:<alex@local.com> ENVID=a\rb",
    ):
        assert (await client.ask(line))[:1] == "5", line
    await client.ask("MAIL FROM:<alex@local.com>")
    for line in (
        "RCPT TO:<x@example.net\r>",
        "RCPT TO:<x\0@example.net>",
        "RCPT TO:<x@example.net> NOTIFY=NEVER\rDATA",
    ):
        assert (await client.ask(line))[:1] == "5", line
    assert (await client.ask("DATA")).startswith("554")


FORMS = [
    "victim@example.org",
    "@local.com:victim@example.org",
    "@local.com,@company.com:victim@example.org",
    "victim%example.org@local.com",
    "victim%example.org@company.com",
    "example.org!victim@local.com",
    "example.org!victim",
    '"victim@example.org"@local.com',
    '"victim@example.org"',
    "victim@[192.0.2.1]",
    "victim@[IPv6:2001:db8::1]",
    "victim@192.0.2.1",
    "victim@example.org@local.com",
    "victim@local.com@example.org",
    "victim\\@example.org@local.com",
    "victim@example.org.",
    "victim@example.org\u2024",
    "<victim@example.org>",
    "victim@example.org,x@example.org",
    "victim@example.org x@example.org",
    " victim@example.org",
    "victim@\uff45xample.org",
]


async def test_too_many_unknown_commands_of_any_kind_end_the_connection(server: Running) -> None:
    for line in (b"", b" ", b"x", b"NOOP " + b"x" * 3_000, b"x" * 20_000):
        client = await Client.connect(server.port("smtp"))
        client.writer.write((line + b"\r\n") * 5)
        assert [(await client.reply())[-1][:3] for _ in range(6)] == ["220", "500", "500", "500", "500", "502"], line
        assert await client.closed()


async def test_without_a_login_no_form_of_address_is_relayed(server: Running) -> None:
    for port in ("smtp", "submission"):
        client = await Client.connect(server.port(port))
        await client.reply()
        await client.ask("EHLO x")
        for sender in ("", "alex@local.com", "support@company.com", "spam@example.com"):
            assert (await client.ask(f"MAIL FROM:<{sender}>")).startswith("530 5.7.0")
        for form in FORMS:
            assert (await client.ask(f"RCPT TO:<{form}>"))[:3] in ("530", "500"), form
        assert (await client.ask("DATA")).startswith("530")
    assert not await server.stored()


async def test_with_a_login_an_address_is_relayed_unchanged_or_not_at_all(server: Running) -> None:
    client = await Client.logged_in(server)
    await client.ask("MAIL FROM:<alex@local.com> SMTPUTF8")
    taken = [form for form in FORMS if (await client.ask(f"RCPT TO:<{form}>")).startswith("250")]
    assert taken == [
        "victim@example.org",
        "victim@192.0.2.1",
        "victim@example.org\u2024",
        "victim@\uff45xample.org",
    ]
    await client.ask("DATA")
    client.writer.write(b"Subject: x\r\n\r\n.\r\n")
    assert (await client.reply())[-1].startswith("250")
    [(listed, _)] = await server.stored()
    assert [(recipient.address, recipient.kind) for recipient in listed.recipients] == [(t, "relay") for t in taken]


async def test_nothing_that_was_said_in_clear_counts_under_tls(server: Running) -> None:
    trusting = ssl.create_default_context(cafile=str(server.cafile))
    for injected in (b"", b"NOOP\r\n", b"MAIL FROM:<alex@local.com>\r\nRCPT TO:<evil@example.org>\r\nDATA\r\n", b"N"):
        client = await Client.connect(server.port("smtp"))
        await client.reply()
        await client.ask("EHLO x", plain("alex@local.com"), "MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>")
        client.writer.write(b"STARTTLS\r\n" + injected)
        assert (await client.reply())[-1].startswith("220")
        await client.writer.start_tls(trusting, server_hostname="localhost")
        # login, envelope and the input behind the command are forgotten
        assert (await client.ask("DATA")).startswith("503"), injected
        client.writer.write(b"EHLO x\r\n")
        assert not any("STARTTLS" in line for line in await client.reply())
        assert (await client.ask("MAIL FROM:<alex@local.com>")).startswith("530")
        assert (await client.ask("STARTTLS")).startswith("503")
        client.writer.close()
    await until(lambda: SESSIONS._value.get() == 0 and not server.listener.registry._by_account)


async def test_any_input_leaves_the_server_running_and_stores_nothing(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = random.Random(1)
    inputs = [
        noise.randbytes(100_000),
        b"\n" * 100_000,
        b"\0" * 100_000,
        b"x" * 200_000,
        b"EHLO x\r\n" * 5_000,
        b"AUTH PLAIN\r\n" * 5_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise.randbytes(500),
        b"EHLO x\r\nAUTH LOGIN\r\n" + base64.b64encode(noise.randbytes(9_000)) + b"\r\n" * 3,
        b"EHLO x\r\nAUTH PLAIN \xff\r\nAUTH LOGIN \xfe\r\nAUTH \xfd\r\nAUTH PLAIN\r\n\xfc\r\n",
        b"EHLO \xff\xfe\r\nMAIL FROM:<\xff@\xfe>\r\nRCPT TO:<\xff>\r\nDATA\r\n.\r\n",
    ]
    for port in ("smtp", "submission", "smtps"):
        for data in inputs:
            with socket.create_connection(("127.0.0.1", server.port(port))) as raw:
                raw.setblocking(False)
                loop = asyncio.get_running_loop()
                with suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(1):
                        await loop.sock_sendall(raw, data)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, noise.randrange(2)))
    await asyncio.wait_for(server.listener.registry.closed.wait(), 10)
    assert not await server.stored()
    assert (await (await Client.logged_in(server)).send(b"Subject: x\r\n\r\n.\r\n")).startswith("250")
    out, errors = capsys.readouterr()
    assert "Traceback" not in out + errors and "smtp session failed" not in out


async def test_a_session_cut_anywhere_stores_the_whole_mail_or_nothing(server: Running) -> None:
    start = b"EHLO x\r\n" + plain("alex@local.com").encode() + b"\r\n"
    rest = b"MAIL FROM:<alex@local.com>\r\nRCPT TO:<x@example.net>\r\nDATA\r\nSubject: x\r\n\r\nbody\r\n.\r\n"
    loop = asyncio.get_running_loop()

    async def cut_after(octets: int, reset: bool, reply: bytes = b"") -> None:
        """Disconnect after so many octets; not before this reply, if there is one."""
        raw = socket.create_connection(("127.0.0.1", server.port("smtp")))
        raw.setblocking(False)
        await loop.sock_sendall(raw, start)
        got = b""
        while b"\r\n235 " not in got:
            got += await loop.sock_recv(raw, 4096)
        await loop.sock_sendall(raw, rest[:octets])
        await asyncio.sleep(0.02)
        while reply not in got:
            got += await loop.sock_recv(raw, 4096)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(reset), 0))
        raw.close()

    for octets in range(0, len(rest), 3):
        await asyncio.gather(*(cut_after(octets, reset) for reset in (True, False)))
    await cut_after(len(rest) - 1, reset=False)
    await asyncio.sleep(0.3)
    assert not await server.stored()
    # the reply to DATA shows that the server has read the mail too: TCP discards what is unread when a client is gone
    await cut_after(len(rest), reset=False, reply=b"\r\n354 ")
    await until(server.stored)
    [(_, stored)] = await server.stored()
    assert stored == b"Subject: x\r\n\r\nbody\r\n"


async def test_a_mail_that_is_cut_off_frees_memory_and_transport_at_once(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    mails: list[weakref.ref[DataReader]] = []

    class Watched(DataReader):
        def __init__(self, octets: int) -> None:
            super().__init__(octets)
            mails.append(weakref.ref(self))

    monkeypatch.setattr(smtp_connection, "DataReader", Watched)
    trusting = ssl.create_default_context(cafile=str(server.cafile))
    gc.disable()  # only reference counts may free the memory: the collector may run much later
    try:
        for port, how in itertools.product(("smtp", "smtps"), ("reset", "closed", "late", "stopped")):
            client = await Client.connect(server.port(port), context=trusting if port == "smtps" else None)
            await client.reply()
            await client.ask("EHLO x", plain("alex@local.com"), "MAIL FROM:<alex@local.com>", "RCPT TO:<x@example.net>")
            await client.ask("DATA")
            client.writer.write(b"Subject: x\r\n\r\n" + b"x" * 100_000)
            [connection] = server.listener.registry.connections
            await until(lambda: server.commit_queue.memory.in_use >= 100_000)
            assert mails[-1]() is not None
            transport = weakref.ref(connection.transport)
            match how:
                case "reset":
                    client.writer.transport.abort()
                case "closed":
                    client.writer.close()
                case "late":
                    connection.end_session("421 4.4.2 Timeout")
                case "stopped":
                    connection.abort()
            del connection
            async with asyncio.timeout(10):
                await server.listener.registry.closed.wait()
            client.writer.close()
            # asyncio frees only its TLS objects; and a client that times out may read the reason for some seconds
            expected: list[weakref.ref[Any]] = (
                [mails[-1], transport] if port == "smtps" and how != "late" else [mails[-1]]
            )
            await until(lambda expected=expected: not any(gone() for gone in expected))
            assert server.commit_queue.memory.in_use == 0, (port, how)
    finally:
        gc.enable()
    assert len(mails) == 8


async def test_clients_that_send_octet_by_octet_block_nobody_and_time_out(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "LOGIN_SECONDS", 2.0)
    slow = [await Client.connect(server.port("smtp"), "127.0.0.8") for _ in range(40)]
    started = time.monotonic()

    async def drip(client: Client) -> float:
        with suppress(ConnectionError):
            while not (client.reader.at_eof() or client.writer.is_closing()):  # a reset is no end of file
                client.writer.write(b"E")
                await asyncio.sleep(0.02)
        return time.monotonic() - started

    dripping = [asyncio.create_task(drip(client)) for client in slow]
    ended = [asyncio.create_task(client.closed()) for client in slow]
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    assert (await (await Client.logged_in(server)).send(b"Subject: x\r\n\r\n.\r\n")).startswith("250")
    assert time.monotonic() - begun < 60  # far less on a machine that does nothing else
    assert all(await asyncio.gather(*ended)) and max(await asyncio.gather(*dripping)) < 150


async def test_the_address_that_a_trusted_proxy_names_is_the_client_s(
    database: Database, broker_url: str, tmp_path: Path
) -> None:
    async with running(
        database, broker_url, tmp_path, proxy_from="127.0.0.8/31", max_connections_per_address=2
    ) as server:
        trusting = ssl.create_default_context(cafile=str(server.cafile))

        async def through_proxy(header: bytes, port: str = "smtp") -> Client:
            client = await Client.connect(server.port(port), "127.0.0.8")
            client.writer.write(header)
            if port == "smtps":
                await client.writer.start_tls(trusting, server_hostname="localhost")
            return client

        async def offers_clear_logins(client: Client) -> bool:
            assert (await client.reply())[-1].startswith("220")
            client.writer.write(b"EHLO x\r\n")
            return any("AUTH" in line for line in await client.reply())

        # given clients behind the proxy, on the LAN and outside
        near, far = b"PROXY TCP4 192.168.1.9 10.0.0.1 99 25\r\n", b"PROXY TCP4 203.0.113.5 10.0.0.1 99 25\r\n"
        assert await offers_clear_logins(await through_proxy(near))
        strangers = [await through_proxy(far) for _ in range(2)]
        assert not any([await offers_clear_logins(client) for client in strangers])
        # then each is counted under its own address, also before TLS
        assert (await (await through_proxy(far)).reply())[-1].startswith("421")
        secure = await through_proxy(near, "smtps")
        assert await offers_clear_logins(secure)
        assert (await secure.ask(plain("alex@local.com"))).startswith("235")
        # and no other client can name an address, and the proxy cannot leave it out
        liar = await Client.connect(server.port("smtp"), "127.0.0.1")
        liar.writer.write(far)
        assert [(await liar.reply())[-1][:3] for _ in range(2)] == ["220", "500"]
        silent = await through_proxy(b"EHLO client.example\r\n")
        with suppress(ConnectionError):
            assert await silent.reader.read() == b""


async def test_the_next_client_gets_a_renewed_certificate(database: Database, broker_url: str, tmp_path: Path) -> None:
    pairs = [server_tls.self_signed_file(load(data=tmp_path / name)) for name in ("first", "second")]
    files = tmp_path / "server.pem"
    files.write_bytes(pairs[0].read_bytes())
    async with running(database, broker_url, tmp_path, tls_cert_file=files) as server:
        before = [ssl.create_default_context(cafile=str(pair)) for pair in pairs]
        old = await Client.connect(server.port("smtps"), context=before[0])
        await old.reply()

        files.write_bytes(pairs[1].read_bytes())
        for _ in range(2):
            server.listener._certificate.reload_if_changed()

        with pytest.raises(ssl.SSLCertVerificationError):
            await Client.connect(server.port("smtps"), context=before[0])
        new = await Client.connect(server.port("smtps"), context=before[1])
        assert (await new.reply())[-1].startswith("220")
        upgraded = await Client.connect(server.port("submission"))
        await upgraded.reply()
        await upgraded.ask("EHLO x", "STARTTLS")
        await upgraded.writer.start_tls(before[1], server_hostname="localhost")
        for client in (upgraded, old):
            client.writer.write(b"EHLO x\r\n")
            assert len(await client.reply()) > 1
            assert (await client.ask(plain("alex@local.com"))).startswith("235")
