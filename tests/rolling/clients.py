"""Mail clients that count what they notice. Each of them repeats what it did until it has succeeded."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from tests.faults.books import Submitted
from tests.faults.mails import stuffed

PATIENCE_SECONDS = 60.0
PASSWORD = "secret"
OUTCOMES = ("told", "refused", "broken", "temporary", "permanent")
"""How a session can end without success. told: by 421, -ERR [SYS/TEMP] or BYE instead of the next command's reply, or
in IDLE, as the server goes down. refused: the connection was refused, or ended before the greeting. broken: no reply to
a command. temporary, permanent: any other refusal."""


@dataclass(slots=True)
class Tally:
    """What the clients of a protocol noticed."""

    sessions: int = 0  # that ended as the client wanted
    commands: int = 0  # with the wanted reply
    ends: Counter[str] = field(default_factory=Counter)  # other ends of sessions, by OUTCOMES
    examples: list[str] = field(default_factory=list)  # of them, for the report
    longest_outage: float = 0.0  # seconds from a failed session to the next one that succeeded
    _failed_at: float | None = None

    def succeed(self) -> None:
        """Count a session."""
        self.sessions += 1
        if self._failed_at is not None:
            self.longest_outage = max(self.longest_outage, time.monotonic() - self._failed_at)
            self._failed_at = None

    def fail(self, end: Ended) -> None:
        """Count an end without success."""
        self.ends[end.outcome] += 1
        self.examples.append(str(end))
        if self._failed_at is None and end.outcome != "told":
            self._failed_at = time.monotonic()


class Ended(Exception):
    """A session ended without success. :ivar outcome: one of OUTCOMES."""

    def __init__(self, outcome: str, text: str) -> None:
        super().__init__(f"{outcome}: {text}")
        self.outcome = outcome


class Connection:
    """A connection that is read line by line. Every reply that is awaited is counted."""

    def __init__(self, tally: Tally, judge: Callable[[bytes], str], more: Callable[[bytes], bool]) -> None:
        """:param judge: returns "" for a reply to go on with, or an outcome. :param more: whether lines follow."""
        self._tally, self._judge, self._more = tally, judge, more
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    @asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[Self]:
        """Connect, and read the greeting. :raises Ended: from the block, too."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        except (OSError, TimeoutError) as error:
            raise Ended("refused", repr(error)) from error
        try:
            try:
                await self.ask(None)
            except Ended as end:
                raise Ended("refused", str(end)) if end.outcome == "broken" else end from end
            yield self
        finally:
            self._writer.transport.abort()

    async def ask(self, command: bytes | None) -> bytes:
        """Send a command, if any, and return the first line of the reply."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if command is not None:
                    self._writer.write(command + b"\r\n")
                line = await self._reader.readline()
                while self._more(line):
                    line = await self._reader.readline()
        except (OSError, TimeoutError) as error:
            raise Ended("broken", f"{(command or b'')[:20]!r}: {error!r}") from error
        if not line.endswith(b"\n"):
            raise Ended("broken", f"{(command or b'')[:20]!r}: the connection ended")
        if outcome := self._judge(line):
            raise Ended(outcome, f"{(command or b'')[:20]!r}: {line.decode('latin-1').strip()}")
        self._tally.commands += 1
        return line

    async def block(self) -> bytes:
        """Read the rest of a multi-line POP3 reply, without dot-stuffing (RFC 1939 section 3)."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                octets = b"\r\n" + await self._reader.readuntil(b"\r\n.\r\n")
        except (OSError, EOFError, TimeoutError) as error:
            raise Ended("broken", f"in a mail: {error!r}") from error
        return octets.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")[2:]

    async def lines(self) -> list[bytes]:
        """Read the lines of a listing."""
        lines = []
        while (line := await self._reader.readline()) != b".\r\n":
            if not line:
                raise Ended("broken", "in a listing: the connection ended")
            lines.append(line)
        return lines


def judge_pop3(reply: bytes) -> str:
    """Return the outcome of a POP3 reply, "" for +OK (RFC 1939, RFC 3206)."""
    if reply.startswith(b"+OK"):
        return ""
    if reply.startswith(b"-ERR [SYS/TEMP] the server is going down"):
        return "told"
    return "temporary" if reply.startswith((b"-ERR [SYS/TEMP]", b"-ERR [IN-USE]")) else "permanent"


def judge_smtp(reply: bytes) -> str:
    """Return the outcome of an SMTP reply, "" for 2yz and 3yz (RFC 5321 sections 4.2.1 and 3.8)."""
    if reply[:1] in (b"2", b"3"):
        return ""
    return "told" if reply.startswith(b"421 4.3.2") else "temporary" if reply[:1] == b"4" else "permanent"


async def read_mailbox(
    port: int, address: str, got: dict[bytes, bytes], tally: Tally, seconds: float = 0.0, gap: float = 0.0
) -> None:
    """Read the new mails of a mailbox in one session.

    :param got: mails by UIDL. :param seconds: time before QUIT, with a STAT each ``gap`` seconds.
    """
    async with Connection(tally, judge_pop3, lambda line: False).to(port) as pop3:
        await pop3.ask(b"USER " + address.encode())
        await pop3.ask(b"PASS " + PASSWORD.encode())
        await pop3.ask(b"UIDL")
        for line in await pop3.lines():
            number, uidl = line.split()
            if uidl not in got:
                await pop3.ask(b"RETR " + number)
                got[uidl] = await pop3.block()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(gap)
            await pop3.ask(b"STAT")
        await pop3.ask(b"QUIT")


async def submit(port: int, mails: list[Submitted], tally: Tally, pause: float) -> None:
    """Submit mails that are not accepted yet in one session. :param pause: seconds before each of them."""
    async with Connection(tally, judge_smtp, lambda line: line[3:4] == b"-").to(port) as smtp:
        await smtp.ask(b"EHLO client")
        word = base64.b64encode(b"\0".join((b"", mails[0].author.encode(), PASSWORD.encode())))
        await smtp.ask(b"AUTH PLAIN " + word)
        for mail in [mail for mail in mails if not mail.accepted]:
            await asyncio.sleep(pause)
            await smtp.ask(b"MAIL FROM:<" + mail.author.encode() + b">")
            for address in (*mail.relayed, *mail.inside):
                await smtp.ask(b"RCPT TO:<" + address.encode() + b">")
            await smtp.ask(b"DATA")
            mail.outstanding += 1
            try:
                await smtp.ask(stuffed(mail.mail).removesuffix(b"\r\n"))
                mail.accepted = True
                mail.outstanding -= 1
            except Ended as end:
                mail.outstanding -= end.outcome != "broken"
                raise
        await smtp.ask(b"QUIT")
