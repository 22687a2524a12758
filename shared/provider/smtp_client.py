"""A logged-in SMTP connection to a provider (RFC 5321): pipelined commands (RFC 2920) and streamed DATA.

shared/provider/smtp_connect.py opens the connection; this module then reads and writes it. Replies are matched to
commands in the order of the commands, so several commands may wait for a reply. Only CRLF line ends are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from shared.errors import Temporary
from shared.mime.dot_stuffing import CrlfDotStuffer

COMMAND_SECONDS = 300.0
"""Time limit for the reply to MAIL and RCPT: seconds (RFC 5321 section 4.5.3.2)."""
DATA_SECONDS = 120.0
"""Time limit for the reply to DATA and RSET: seconds (RFC 5321 section 4.5.3.2)."""
BLOCK_SECONDS = 180.0
"""Time limit for sending one piece of the mail: seconds (RFC 5321 section 4.5.3.2)."""
ANSWER_SECONDS = 600.0
"""Time limit for the reply to the final dot: seconds; a shorter one causes duplicates."""
BUFFER_OCTETS = 64 * 1024
"""Octets at the end of a mail that are sent together with its final dot: no more than the kernel buffers anyway."""

SERVER_FULL = 421
AUTH_REQUIRED = 530
START_DATA = 354
REPLY_CHARACTERS = 500
"""Length of a reply's text: characters."""
REPLY_OCTETS = 32 * 1024
"""Longest reply with all its lines: octets (RFC 5321 section 4.5.3.1.5 allows 512 a line)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of the server. text: without the code, in one line, at most 500 characters."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip()

    @property
    def accepted(self) -> bool:
        """2xx: success."""
        return 200 <= self.code < 300  # RFC 5321 4.2.1

    @property
    def refused(self) -> bool:
        """5xx: permanent failure."""
        return 500 <= self.code < 600  # RFC 5321 4.2.1

    @property
    def temporary(self) -> bool:
        """4xx: temporary failure on a connection that stays open."""
        return 400 <= self.code < 500 and self.code != SERVER_FULL  # RFC 5321 4.2.1

    @property
    def status(self) -> str:
        """The enhanced status code (RFC 3463), derived from the code if the reply has none."""
        found = re.match(r"([245]\.\d{1,3}\.\d{1,3})(?!\S)", self.text)
        return found[1] if found else f"{self.code // 100}.0.0"


class SmtpConnectionLost(Temporary):
    """The connection ended before the final dot: the provider has not accepted the mail."""

    kind: ClassVar[str] = "connection"


class OutcomeUnknown(Temporary):
    """The connection ended, or ten minutes passed, between the final dot and the reply: the result is unknown."""

    kind: ClassVar[str] = "connection"


class Commands:
    """Commands that are sent in one write (RFC 2920). replies: a future for each command, set when they are sent."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        """:param lines: without line ends. :raises SmtpConnectionLost: a control character in a command."""
        if any(_CONTROL.search(line) for line in lines):
            raise SmtpConnectionLost("a command with a control character in it was not sent")
        self.lines = lines
        self.replies: list[asyncio.Future[Reply]] = []


@dataclass(frozen=True, slots=True)
class OpenMessage:
    """A mail between the reply 354 and its final dot."""

    answer: asyncio.Future[Reply]  # the reply to the final dot; a refusal may come earlier
    rest: bytes  # the last octets of the mail, at most about ``BUFFER_OCTETS``

    @property
    def answered(self) -> bool:
        """Whether a reply has come, or the connection has ended."""
        return self.answer.done()


class _ReplyReader(asyncio.Protocol):
    """Reads replies and sets the futures of the commands in order; tracks whether more may be written."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.ended = ""
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._rest = b""
        self._texts: list[bytes] = []
        self._octets = 0
        self._writable: asyncio.Future[None] | None = None  # set while the transport is paused

    def expect(self) -> asyncio.Future[Reply]:
        """Return a future for the reply after those that are expected already."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.ended:
            _fail(future, self.ended)
        else:
            self._waiting.append(future)
        return future

    def close(self, reason: str) -> None:
        """Close the connection; all expected replies fail with this reason."""
        self.ended = self.ended or reason
        self.transport.close()
        while self._waiting:
            _fail(self._waiting.popleft(), reason)
        self.resume_writing()

    async def drain(self) -> None:
        """Wait until the transport accepts more. :raises ConnectionError: the connection has ended."""
        if self._writable is not None:
            await self._writable
        if self.ended:
            raise ConnectionError(self.ended)

    def data_received(self, data: bytes) -> None:
        """Split the octets into lines."""
        if self._rest:
            data = self._rest + data
        start = 0
        while (end := data.find(b"\n", start)) >= 0 and not self.ended:
            self._add_line(data[start:end])
            start = end + 1
        self._rest = data[start:]
        if self._octets + len(self._rest) > REPLY_OCTETS:
            self.close(_NO_SMTP)

    def _add_line(self, line: bytes) -> None:
        """Add a line to the reply; the last line has no hyphen after its code (RFC 5321 section 4.2.1)."""
        mark = line[3:4]
        if not (line[:3].isdigit() and len(line) >= 3 and mark in (b" ", b"-", b"\r", b"")):
            self.close(_NO_SMTP)
            return
        self._texts.append(line[4:])
        if mark == b"-":
            self._octets += len(line)
            if self._octets > REPLY_OCTETS:
                self.close(_NO_SMTP)
            return
        texts, self._texts, self._octets = self._texts, [], 0
        if not self._waiting:  # 421, or the server is out of step: later replies could not be matched
            self.close("the server sent an unexpected reply")
            return
        future = self._waiting.popleft()
        if not future.done():
            future.set_result(Reply(int(line[:3]), in_one_line(b"\n".join(texts).decode("utf-8", "surrogateescape"))))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the expected replies."""
        self.close("the connection was lost")

    def pause_writing(self) -> None:
        """Let ``drain`` wait: the transport's buffer is full."""
        if self._writable is None and not self.ended:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let ``drain`` return: the transport accepts more."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)


class SmtpClient:
    """A logged-in SMTP connection. extensions: announced by EHLO, lower-case name to parameters."""

    def __init__(self, transport: asyncio.BaseTransport, where: str, extensions: Mapping[str, str]) -> None:
        """:param transport: of the logged-in connection. :param where: host and port, for error texts."""
        self._where = where
        self._line = _ReplyReader(cast(asyncio.Transport, transport))
        transport.set_protocol(self._line)
        self.extensions = dict(extensions)

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as this side knows."""
        return not self._line.ended and not self._line.transport.is_closing()

    @property
    def pipelining(self) -> bool:
        """Whether commands may be sent before the replies to earlier ones (RFC 2920)."""
        return "pipelining" in self.extensions

    def send(self, commands: Commands) -> None:
        """Send commands in one write, without waiting; ``reply`` waits for a reply."""
        commands.replies = [self._line.expect() for _ in commands.lines]
        if self.alive:
            self._line.transport.write(_octets(commands))

    async def reply(self, reply: asyncio.Future[Reply], seconds: float = COMMAND_SECONDS) -> Reply:
        """Wait for a reply. :raises SmtpConnectionLost: no reply; the connection is closed."""
        try:
            if not reply.done():
                async with asyncio.timeout(seconds):
                    return await reply
            return reply.result()
        except OSError as error:  # TimeoutError is a subclass
            self.close()
            raise SmtpConnectionLost(f"{self._where}: {_why(error)}") from error
        except BaseException:
            self.close()  # a late reply must not be matched to the next command
            raise

    async def command(self, line: bytes, seconds: float = COMMAND_SECONDS) -> Reply:
        """Send a command and wait for its reply. :raises SmtpConnectionLost: no reply; the connection is closed."""
        commands = Commands([line])
        self.send(commands)
        return await self.reply(commands.replies[0], seconds)

    async def send_content(self, pieces: AsyncIterator[bytes]) -> OpenMessage:
        """Send a mail after the reply 354, but for its final dot and the octets that leave together with it.

        An exception in ``pieces`` closes the connection, as does every other failure.

        :param pieces: the mail, in pieces of any size. :raises SmtpConnectionLost: the connection ended.
        """
        # Expected from now on: a server may refuse before it has read everything, and that reply must not be lost.
        answer = self._line.expect()
        try:
            async with asyncio.timeout(None) as deadline:
                return OpenMessage(answer, await self._stream(pieces, answer, deadline))
        except BaseException as error:
            answer.cancel()
            self.close()
            if isinstance(error, OSError):  # TimeoutError is a subclass
                raise SmtpConnectionLost(f"{self._where}: {_why(error)} while the mail was sent") from error
            raise

    def send_final_dot(self, message: OpenMessage, following: Commands | None = None) -> None:
        """Send the rest of the mail with its final dot. :param following: commands to send in the same write."""
        octets = message.rest + b".\r\n"
        if following is not None:
            following.replies = [self._line.expect() for _ in following.lines]
            octets += _octets(following)
        self._line.transport.write(octets)

    def early_reply(self, message: OpenMessage) -> Reply:
        """Return the refusal that came before the final dot, and close the connection: the mail is not whole.

        :raises SmtpConnectionLost: the connection ended, or the reply is no refusal.
        """
        self.close()
        try:
            reply = message.answer.result()
        except ConnectionError as error:
            raise SmtpConnectionLost(f"{self._where}: {_why(error)} while the mail was sent") from error
        if not 400 <= reply.code < 600:  # RFC 5321 4.2.1
            raise SmtpConnectionLost(f"{self._where}: a reply {reply.code} came before the end of the mail")
        return reply

    async def final_reply(self, message: OpenMessage) -> Reply:
        """Wait for the reply to the final dot. :raises OutcomeUnknown: the connection ended, or no reply came."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reply = await message.answer
        except TimeoutError as error:
            self.close()
            raise OutcomeUnknown(
                f"{self._where}: no reply within {ANSWER_SECONDS:g} s after the mail was sent"
            ) from error
        except ConnectionError as error:
            self.close()
            raise OutcomeUnknown(f"{self._where}: {_why(error)} after the mail was sent, before the reply") from error
        except BaseException:
            self.close()
            raise
        if reply.code == SERVER_FULL:
            self.close()
        return reply

    async def _stream(
        self, pieces: AsyncIterator[bytes], answer: asyncio.Future[Reply], deadline: asyncio.Timeout
    ) -> bytes:
        """Send all but the last octets, and return those; stop if the reply came too early.

        At most one piece waits in memory.
        """
        stuffer = CrlfDotStuffer()
        loop = asyncio.get_running_loop()
        unsent = b""
        async for piece in pieces:
            unsent += stuffer.feed(piece)
            if len(unsent) <= BUFFER_OCTETS:
                continue
            self._line.transport.write(unsent)
            unsent = b""
            deadline.reschedule(loop.time() + BLOCK_SECONDS)
            drained = asyncio.ensure_future(self._line.drain())
            either: set[asyncio.Future[Any]] = {drained, answer}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    return b""
                await drained
            finally:
                drained.cancel()
            deadline.reschedule(None)  # reading the next piece has its own time limit
        return unsent + stuffer.finish()

    async def reset(self) -> None:
        """Abort the mail transaction (RSET). :raises SmtpConnectionLost: the connection is no longer usable."""
        reply = await self.command(b"RSET", DATA_SECONDS)
        if not reply.accepted:
            self.close()
            raise SmtpConnectionLost(f"{self._where}: RSET was answered {reply.code}")

    async def quit(self) -> None:
        """Send QUIT, wait briefly for the reply, and close."""
        if self.alive:
            with contextlib.suppress(SmtpConnectionLost):  # it is closed anyway
                await self.command(b"QUIT", 5.0)
        self.close()

    def close(self) -> None:
        """Close the connection at once."""
        self._line.close("the connection was closed")


_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_NO_SMTP = "the reply is not an SMTP reply"


def _octets(commands: Commands) -> bytes:
    return b"\r\n".join([*commands.lines, b""])


def in_one_line(text: str) -> str:
    """Return a reply's text as one printable line, with the enhanced status code only once."""
    if text.isascii() and (plain := text.strip()).isprintable():
        return plain[:REPLY_CHARACTERS]
    lines = [part.strip() for part in text.split("\n")]
    found = re.match(r"[245]\.\d{1,3}\.\d{1,3} ", lines[0])
    prefix = found[0] if found else "\0"
    words = " ".join([lines[0], *(part.removeprefix(prefix) for part in lines[1:])])
    clean = words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in clean).strip()[:REPLY_CHARACTERS]


def _why(error: BaseException) -> str:
    return "no answer" if isinstance(error, TimeoutError) else str(error) or "the connection was lost"


def _fail(future: asyncio.Future[Reply], reason: str) -> None:
    if not future.done():
        future.set_exception(ConnectionError(reason))
        future.exception()  # marks the exception as retrieved: the command may have no waiter
