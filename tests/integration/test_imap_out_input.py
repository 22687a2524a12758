"""services/imap_out as a process: literals that are wrong or cut, lines that are too long, clients that vanish."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.db.database import Database
from tests.imap_clients import ImapServerProcess, imap_server
from tests.integration.test_imap_out_limits import MIB, forget_peak
from tests.polling import until

ONE = b"Subject: one\r\n\r\nHello\r\n"


@pytest.fixture
async def server(database_url: str, database: Database, tmp_path: Path) -> AsyncIterator[ImapServerProcess]:
    """The service on a fresh database, with a mail in INBOX of alex; without a broker."""
    async with imap_server(database_url, database, tmp_path, [ONE]) as started:
        yield started


def sessions(server: ImapServerProcess) -> int:
    """The open connections, as the metrics have them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=60) as answer:
        found = re.search(rb"^mailgroup_imap_sessions ([\d.]+)$", answer.read(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


@pytest.mark.parametrize(
    "sent",
    [
        *(b"SELECT {abc}", b"SELECT {-1}", b"SELECT {5", b"SELECT {}", b"SELECT {5+", b"SELECT {+5}"),
        *(b"SELECT ~{5+}\r\nINBOX", b"SELECT {6+}\r\nIN\0BOX", b"SELECT IN\0BOX", b"NOOP {3+}\r\nabc", b"{3+}\r\nabc"),
        *(b"SELECT {99999+}\r\n" + b"x" * 99_999, b"LOGIN {70000+}\r\n" + b"x" * 70_000 + b" y"),
        *(b"APPEND INBOX (\\Recent) {3+}\r\nabc", b"APPEND INBOX ~{3+}\r\nabc trailing", b"APPEND {3+}\r\nabc"),
        *(b"SEARCH " + b"{1+}\r\na " * 101, b"FETCH 1 BODY[" + b"1." * 200 + b"]", b"SEARCH " + b"NOT " * 200 + b"ALL"),
    ],
)
async def test_what_is_wrong_is_refused_and_the_session_goes_on(server: ImapServerProcess, sent: bytes) -> None:
    client = await server.login()
    client.send(b"x " + sent + b"\r\ny SEARCH ALL\r\n")
    untagged, answer = await client.finish(b"x")
    assert answer.startswith((b"BAD ", b"NO ")) and untagged == []
    assert await client.finish(b"y") == ([b"* SEARCH 1"], b"OK SEARCH: searched")


async def test_a_literal_that_waits_is_refused_before_it_is_sent(server: ImapServerProcess) -> None:
    client = await server.login()
    for command in (
        b"SELECT {70000}",
        b"SELECT {99999999999}",
        b"LOGIN {5000000}",
        b"SELECT ~{5}",
        b"APPEND INBOX {0}",
    ):
        assert (await client.refused(command, b"NO" if b"APPEND" in command else b"BAD")) != b""
    assert await client.ok(b"SEARCH ALL") == [b"* SEARCH 1"]


@pytest.mark.parametrize(
    "sent",
    [b"y" * 70_000, b"x NOOP " + b"y" * 70_000, b"x SELECT {100000001+}\r\n", b"x NOOP {9999999999999999999+}\r\n"],
)
async def test_what_has_no_end_ends_the_session(server: ImapServerProcess, sent: bytes) -> None:
    client = await server.login()
    client.send(sent)
    response = await client.response()
    if response.startswith(b"x BAD "):
        response = await client.response()
    assert response.startswith(b"* BYE ")


async def test_twenty_mistakes_in_a_row_end_a_session(server: ImapServerProcess) -> None:
    client = await server.login()
    for _ in range(3):
        for _ in range(15):
            await client.refused(b"XYZZY", b"BAD")
        await client.ok(b"NOOP")
    for number in range(20):
        client.send(b"m%d XYZZY\r\n" % number)
    rest = await client.reader.read()
    assert b"* BYE too many invalid commands\r\n" in rest and rest.count(b" BAD ") == 20


async def test_a_mail_that_is_cut_is_in_no_folder(server: ImapServerProcess) -> None:
    whole = b"Subject: cut\r\n\r\n" + b"x" * MIB
    for part in (10, 5_000, len(whole) - 1):
        client = await server.login()
        client.send(b"x APPEND INBOX {%d+}\r\n%b" % (len(whole), whole[:part]))
        await client.writer.drain()
        await client.close()
    # the whole mail, but not the line that ends the command
    client = await server.login()
    client.send(b"x APPEND INBOX {%d+}\r\n%b" % (len(ONE), ONE))
    client.writer.write_eof()
    assert await client.reader.read() == b""
    other = await server.login()
    assert await other.ok(b"SEARCH ALL") == [b"* SEARCH 1"]
    await until(lambda: _only_one(server))


async def _only_one(server: ImapServerProcess) -> bool:
    async with server.database.statement() as connection:
        cursor = await connection.execute("select count(*) from blobs")
        return await cursor.fetchone() == (1,)


async def test_clients_that_vanish_leave_nothing_behind(server: ImapServerProcess) -> None:
    async def vanish_everywhere() -> None:
        for sent in (
            b"",
            b"x",
            b"x SEL",
            b"x SELECT {5}\r\nIN",
            b"x IDLE\r\n",
            b"x FETCH 1 BODY[]\r\n",
            b"x APPEND INBOX {900000+}\r\nab",
        ):
            client = await server.login()
            client.send(sent)
            await client.writer.drain()
            await client.close()
        (await server.connect()).send(b"a LOGIN {4}\r\n")
        for client in server.clients:
            await client.close()
        server.clients.clear()

        async def are_gone() -> bool:
            return await asyncio.to_thread(sessions, server) == 0

        await until(are_gone)

    for _ in range(5):
        await vanish_everywhere()
    before = forget_peak(server)
    for _ in range(20):
        await vanish_everywhere()
    assert forget_peak(server) - before < 8 * MIB
