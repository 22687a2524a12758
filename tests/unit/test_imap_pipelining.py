"""Pipelined commands: answers go out together, others have their turn; a mail alone is sent as among others."""

from __future__ import annotations

import asyncio

import pytest

from services.imap_out.connection import COMMANDS_IN_TURN, ImapConnection
from services.imap_out.folder_store import FolderStore
from shared.errors import Permanent
from tests.fuzz.imap_sessions import ImapDoor, connected, rest
from tests.fuzz.sessions import Wire


class CountedWire(Wire):
    """writes: how often something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        super().write(data)


async def selected() -> tuple[ImapConnection, CountedWire]:
    """A session with a selected folder, whose output is empty."""
    wire = CountedWire()
    connection = connected(ImapDoor(), wire)
    for line in (b'a LOGIN alex@local.com "secret"', b"b EXAMINE INBOX", b"c NOOP"):
        await rest(connection)
        connection.data_received(line + b"\r\n")
    await rest(connection)
    wire.out.clear()
    wire.writes = 0
    return connection, wire


async def answer(connection: ImapConnection, wire: Wire, command: bytes) -> bytes:
    wire.out.clear()
    connection.data_received(command + b"\r\n")
    await rest(connection)
    return bytes(wire.out)


async def test_answers_to_pipelined_commands_go_out_together() -> None:
    connection, wire = await selected()
    # when twenty commands come in one packet
    connection.data_received(b"".join(b"d%d UID FETCH 1 FLAGS\r\n" % number for number in range(20)))
    await rest(connection)
    # then their answers are in order, in one packet
    assert [line.split(b" ")[0] for line in wire.out.splitlines() if line.startswith(b"d")] == [
        b"d%d" % number for number in range(20)
    ]
    assert wire.writes == 1
    connection.connection_lost(None)


async def test_many_pipelined_commands_leave_others_their_turn() -> None:
    connection, wire = await selected()
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while b"e OK" not in wire.out:
            turns += 1
            await asyncio.sleep(0)

    connection.data_received(b"d NOOP\r\n" * (10 * COMMANDS_IN_TURN) + b"e NOOP\r\n")
    await take_turns()
    assert turns >= 10
    connection.connection_lost(None)


@pytest.mark.parametrize("prefix", ["", "UID "])
@pytest.mark.parametrize(
    "items",
    [
        *("BODY.PEEK[]", "(BODY.PEEK[])", "RFC822", "(RFC822 RFC822.SIZE)", "BODY[]", "(FLAGS BODY[] UID)"),
        *("BODY.PEEK[]<2.5>", "BODY.PEEK[]<99999.5>", "(INTERNALDATE BODY.PEEK[]<0.4> BODY.PEEK[] MODSEQ)"),
        *("(BODY.PEEK[] BODY.PEEK[HEADER])", "(BODY.PEEK[] ENVELOPE)", "BINARY.PEEK[]", "BODY.PEEK[TEXT]"),
    ],
)
async def test_a_mail_alone_is_sent_as_among_others(prefix: str, items: str) -> None:
    # given the answer for two mails
    connection, wire = await selected()
    both = await answer(connection, wire, f"d {prefix}FETCH 1:2 {items}".encode())
    connection.connection_lost(None)
    # then each alone gets its part of it
    connection, wire = await selected()
    alone = [await answer(connection, wire, f"d {prefix}FETCH {number} {items}".encode()) for number in (1, 2)]
    connection.connection_lost(None)
    parts = [part.rpartition(b"d OK")[0] for part in alone]
    assert all(parts) and b"".join(parts) == both.rpartition(b"d OK")[0]


@pytest.mark.parametrize("items", ["BODY.PEEK[]", "(RFC822.SIZE RFC822)", "BODY.PEEK[TEXT]"])
async def test_a_mail_whose_octets_are_gone_fails_alone(monkeypatch: pytest.MonkeyPatch, items: str) -> None:
    # given a session from whose folder the octets of all mails were purged
    async def none(*_: object) -> dict[int, bytes]:
        return {}

    async def gone(*_: object) -> bytes:
        raise Permanent("the octets are gone")

    monkeypatch.setattr(FolderStore, "read_heads", none)
    monkeypatch.setattr("tests.fuzz.imap_sessions._MemoryFolders.read_span", gone)
    connection, wire = await selected()
    # then a fetch says so, sends nothing of the mail, and the session goes on
    said = await answer(connection, wire, f"d UID FETCH 1 {items}".encode())
    assert said.startswith(b"d NO [EXPUNGEISSUED] ")
    assert (await answer(connection, wire, b"e NOOP")).startswith(b"e OK")
    connection.connection_lost(None)


@pytest.mark.parametrize("number", ["0", "01", "4294967296", "1234567890123", "1,", "1:0", "x", "-1"])
async def test_a_wrong_number_of_a_mail_is_refused(number: str) -> None:
    connection, wire = await selected()
    said = await answer(connection, wire, f"d UID FETCH {number} (FLAGS)".encode())
    assert said.startswith(b"d BAD ")
    connection.connection_lost(None)
