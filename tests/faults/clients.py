"""Mail clients that behave like real ones: they retry without a final reply, and delete only mails that they stored."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

from tests.faults.books import Copies, Submitted, digest
from tests.faults.mails import stuffed
from tests.faults.seen import Listings

PATIENCE_SECONDS = 40.0
PAUSE_SECONDS = 0.3
PASSWORD = "secret"


class Gone(Exception):
    """The connection ended, a reply took too long, or it was not the expected one."""


class Refused(Gone):
    """A permanent refusal: a mail program shows it to its user, asks for another password, or gives the mail up.

    No fault of a server is a reason for it. The text is the reply.
    """


_TEMPORARY = (b"-ERR [SYS/TEMP]", b"-ERR [IN-USE]", b"-ERR [LOGIN-DELAY]")
"""Replies of POP3 after which a mail program tries again by itself (RFC 2449 section 8, RFC 3206)."""


class Line:
    """A connection that is read line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Line]:
        """Connect to 127.0.0.1 for the block. :raises Gone: for any network or protocol error in the block."""
        writer = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
            yield cls(reader, writer)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            raise Gone(repr(error)) from error
        finally:
            if writer is not None:
                writer.close()

    async def ask(self, octets: bytes | None = None) -> bytes:
        """Send these octets, if any, and return the next line."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            if octets is not None:
                self._writer.write(octets)
                await self._writer.drain()
            line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise Gone("the connection ended")
        return line

    async def block(self) -> bytes:
        """Read a multi-line reply up to its final dot, and return it without dot-stuffing (RFC 1939 section 3)."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            octets = b"\r\n" + await self._reader.readuntil(b"\r\n.\r\n")
        return octets.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")[2:]

    async def reply(self, command: bytes | None = None) -> bytes:
        """Send a command, if any, and return the last line of the SMTP reply."""
        line = await self.ask(command)
        while line[3:4] == b"-":
            line = await self.ask()
        return line


async def submit(port: int, mail: Submitted) -> None:
    """Submit a mail until it is accepted.

    Counts the transactions that ended without a final reply, and keeps permanent refusals.
    """
    while not mail.accepted:
        try:
            async with Line.to(port) as line:
                await _hand_in(line, mail)
        except Refused as error:
            mail.refusals.append(str(error))
        except Gone:
            pass
        if not mail.accepted:
            await asyncio.sleep(PAUSE_SECONDS)


async def _hand_in(line: Line, mail: Submitted) -> None:
    await _wanted(line, None, b"2")
    await _wanted(line, b"EHLO client\r\n", b"2")
    word = base64.b64encode(b"\0".join((b"", mail.author.encode(), PASSWORD.encode())))
    await _wanted(line, b"AUTH PLAIN " + word + b"\r\n", b"2")
    await _wanted(line, b"MAIL FROM:<" + mail.author.encode() + b"> BODY=8BITMIME\r\n", b"2")
    for address in (*mail.relayed, *mail.refused, *mail.inside):
        await _wanted(line, b"RCPT TO:<" + address.encode() + b">\r\n", b"2")
    await _wanted(line, b"DATA\r\n", b"3")
    mail.outstanding += 1
    reply = await line.reply(stuffed(mail.mail))
    mail.outstanding -= 1  # this transaction was answered
    if reply[:1] == b"2":
        mail.accepted = True
    else:
        _raise_for(reply)


async def _wanted(line: Line, command: bytes | None, code: bytes) -> None:
    reply = await line.reply(command)
    if reply[:1] != code:
        _raise_for(reply)


def _raise_for(reply: bytes) -> NoReturn:
    raise (Refused if reply[:1] == b"5" else Gone)(reply.decode("latin-1").strip())


async def read(
    port: int, address: str, got: dict[bytes, bytes], listings: Listings | None = None, *, delete: bool = False
) -> int:
    """Read the mails of a mailbox that are not in ``got`` yet. :param got: mails by UIDL.

    :param listings: listings of earlier sessions of this mailbox, to compare. :param delete: delete what is read.
    :return: the number of listed mails that were in ``got``. :raises Gone: before all mails were read, or before QUIT
        was answered.
    """
    listings = listings or Listings()
    async with Line.to(port) as line:
        for command in (None, f"USER {address}\r\n".encode(), f"PASS {PASSWORD}\r\n".encode(), b"UIDL\r\n"):
            await _ok(line, command)
        listed: list[tuple[bytes, bytes]] = []
        while (entry := await line.ask()) != b".\r\n":
            number, uidl = entry.split()
            listed.append((number, uidl))
        uidls = [uidl for _, uidl in listed]
        known = sum(uidl in got for uidl in uidls)
        listings.compare(address, got.keys(), uidls)
        for number, uidl in listed:
            if uidl not in got:
                await _ok(line, b"RETR " + number + b"\r\n")
                got[uidl] = await line.block()
            if delete:
                await _ok(line, b"DELE " + number + b"\r\n")
        if delete:
            listings.delete(address, uidls, answered=False)
        await _ok(line, b"QUIT\r\n")
        if delete:
            listings.delete(address, uidls, answered=True)
    return known


async def _ok(line: Line, command: bytes | None) -> None:
    reply = await line.ask(command)
    if not reply.startswith(b"+OK"):
        raise (Gone if reply.startswith(_TEMPORARY) else Refused)(reply.decode("latin-1").strip())


def copies(mailboxes: dict[str, dict[bytes, bytes]]) -> Copies:
    """Count the mails that were read, by digest and mailbox."""
    return Counter((digest(mail), address) for address, got in mailboxes.items() for mail in got.values())
