"""The server closes no connection without an untagged BYE that names the reason (RFC 3501 section 3.4)."""

from __future__ import annotations

import time

import pytest

from services.imap_out.connection import IDLE_SECONDS, LOGIN_SECONDS, SESSION_SECONDS, ImapConnection
from shared.runtime.served_connection import ConnectionState
from tests.fuzz.imap_sessions import ImapDoor, connected, rest
from tests.fuzz.sessions import Wire

_LOGIN = b'a LOGIN alex@local.com "secret"\r\n'


async def session(*sent: bytes) -> tuple[ImapConnection, Wire]:
    """A session that has got this input."""
    wire = Wire()
    connection = connected(ImapDoor(), wire)
    await rest(connection)
    for piece in sent:
        connection.data_received(piece)
        await rest(connection)
    return connection, wire


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        ([], LOGIN_SECONDS),
        ([_LOGIN], IDLE_SECONDS),
        ([_LOGIN, b"b SELECT INBOX\r\n", b"c IDLE\r\n"], IDLE_SECONDS),
        ([_LOGIN, b"b SELECT {5}\r\n", b"IN"], SESSION_SECONDS),
    ],
)
async def test_a_deadline_says_good_bye(sent: list[bytes], seconds: float) -> None:
    connection, wire = await session(*sent)
    connection.check_deadlines(time.monotonic() + seconds + 1)
    assert wire.out.endswith(b"\r\n* BYE the connection was idle, or open, for too long\r\n") and wire.closed
    connection.connection_lost(None)


async def test_no_good_bye_stands_within_a_response() -> None:
    connection, wire = await session(_LOGIN)
    connection._state = ConnectionState.BUSY
    connection.check_deadlines(time.monotonic() + SESSION_SECONDS + 1)
    assert b"BYE" not in wire.out and wire.closed
    connection.connection_lost(None)


async def test_a_changed_account_says_good_bye() -> None:
    connection, wire = await session(_LOGIN)
    connection.on_account_changed()
    assert wire.out.endswith(b"\r\n* BYE the account was changed, log in again\r\n") and wire.closed
    connection.connection_lost(None)


@pytest.mark.parametrize(
    ("sent", "last"),
    [
        (b"x LOGIN a b\r\n" * 3, b"* BYE too many failed logins"),
        (b'x LOGIN guessed@local.com "secret"\r\n', b"* BYE too many failed logins"),
        (b"x NOOP {999999+}\r\n", b"* BYE a literal of a refused command is too long"),
        (b"x AUTHENTICATE PLAIN\r\n" + b"A" * 13_000, b"* BYE the line is too long"),
        (_LOGIN + b"x IDLE\r\n" + b"D" * 2_000 + b"\r\n", b"* BYE the line is too long"),
        (b"x LOGOUT\r\n", b"x OK LOGOUT: bye"),
        (b"y" * 20_000, b"* BYE the line is too long"),
    ],
    ids=["logins", "throttled", "dropped literal", "response", "idle", "logout", "line"],
)
async def test_what_ends_a_session_says_good_bye_once(sent: bytes, last: bytes) -> None:
    connection, wire = await session(sent)
    assert wire.closed and wire.out.endswith(last + b"\r\n") and wire.out.count(b"* BYE") == 1
    connection.connection_lost(None)
