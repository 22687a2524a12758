"""Runs IMAP sessions with a provider in memory: the input is what the server sends, in one piece and in small ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

from shared.errors import Permanent, Temporary
from shared.model import Server
from shared.provider.credentials import Credential
from shared.provider.imap_client import ImapClient
from shared.provider.imap_responses import MalformedResponse, Value, listed_folder, parse_values
from shared.provider.imap_stream import ImapStream
from shared.provider.mail_text import MailText
from shared.provider.retrieval import MailRequest
from shared.provider.session_errors import OutOfStep
from shared.provider.session_stream import ReceivedOctets
from tests.fuzz.sessions import Wire

LIMIT = 1 << 20
_SERVER = Server("imap.company.com", 143, "none")
_GREETING = b"* OK ready\r\n* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN IDLE UIDPLUS\r\nt1 OK done\r\n"
_LOGIN = b"t2 OK [CAPABILITY IMAP4rev1 IDLE UIDPLUS] in\r\n"
_LIST = b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nt3 OK\r\n* SEARCH 1 2 3\r\nt4 OK\r\n"


def _stream(data: bytes, step: int) -> ImapStream:
    """Return a stream whose server has sent these octets, in pieces, and ended the connection."""
    received = ReceivedOctets()
    received.connection_made(cast(asyncio.Transport, Wire()))
    for start in range(0, len(data), step):
        received.data_received(data[start : start + step])
    received.eof_received()
    stream = ImapStream(_SERVER, received, 60.0, 60.0)
    stream._prefix = "t"  # otherwise no input has the right tags
    return stream


async def _responses(data: bytes, step: int) -> list[object]:
    """Read all responses; the last one is the error that ended them."""
    stream = _stream(data, step)
    found: list[object] = []
    while True:
        try:
            response = await stream.response(LIMIT)
        except Temporary as error:
            return [*found, str(error)]
        assert response.tag and len(response.text) <= 16 * LIMIT
        values: object = None
        try:
            values = _plain(parse_values(response.parts))
        except MalformedResponse:
            values = "malformed"
        texts = [bytes(part.kept) for part in response.parts if isinstance(part, MailText)]
        assert not any(re.search(rb"(?<!\r)\n", text) for text in texts)
        listed_folder(response)
        found.append((response.tag, response.kind, response.number, response.code, response.shown, values, texts))


def _plain(value: Value) -> object:
    """Return a value that can be compared."""
    if isinstance(value, MailText):
        return bytes(value.kept)
    return [_plain(one) for one in value] if isinstance(value, list) else value


async def _mails(data: bytes, step: int) -> list[object]:
    """Log in, list, fetch, delete and wait; the last item is what ended that."""
    stream = _stream(_GREETING + _LOGIN + _LIST + data, step)
    client = ImapClient(stream, ("INBOX",))
    found: list[object] = []
    try:
        await client.greet()
        await client.login(Credential("u", "secret"))
        assert (await client.fetch_list()).complete
        async for mail in client.retrieve([MailRequest(uid, 100) for uid in (1, 2, 3)], LIMIT):
            found.append((mail.number, mail.body and bytes(mail.body), mail.refusal))
        await client.delete([1])
        await client.wait_for_news(0)
        await client.quit()
    except (Temporary, Permanent) as error:
        assert "secret" not in str(error)
        assert not isinstance(error, OutOfStep) or client.reading is None
        return [*found, str(error)]
    return found


async def _filing(data: bytes, step: int) -> list[object]:
    """Log in, search the folder for sent mail and a mail there, mark a mail, append one; the last item ended that."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"Subject: sent\r\n\r\n"

    stream = _stream(_GREETING + _LOGIN + data, step)
    client = ImapClient(stream, ("INBOX",))
    found: list[object] = []
    try:
        await client.greet()
        await client.login(Credential("u", "secret"))
        folder = await client.find_sent_folder("")
        found.append(folder.raw)
        found.append(await client.has_mail(folder, "a@b"))
        await client.mark_answered(["INBOX:7:1"])
        await client.append_sent(folder, pieces(), 17, utf8=False)
    except (Temporary, Permanent) as error:
        assert "secret" not in str(error)
        return [*found, str(error)]
    return found


def _both(read: Callable[[bytes, int], Coroutine[Any, Any, list[object]]], data: bytes) -> list[object]:
    outs = [asyncio.run(read(data, step)) for step in (len(data) + 1000, 1 + len(data) % 5)]
    assert outs[0] == outs[1]
    return outs[0]


def imap_session(data: bytes) -> None:
    """Responses and mails do not depend on how the server's octets are split, and a mail has octets of the server.

    Whatever a server sends, a session ends with one of its errors.
    """
    _both(_responses, data)
    for found in _both(_mails, data):
        if isinstance(found, tuple) and found[1] is not None:
            octets = found[1]
            plain = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            assert octets in plain or octets in plain.replace(b"\\", b"")


def imap_filing(data: bytes) -> None:
    """What is found among the provider's sent mail does not depend on how the server's octets are split.

    The folder's name is one that the server sent. Whatever it sends, the session ends with one of its errors.
    """
    for found in _both(_filing, data):
        if isinstance(found, bytes):
            assert found in data or found in data.replace(b"\\", b"") or found == b"NIL"
