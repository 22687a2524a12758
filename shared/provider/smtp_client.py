"""A logged-in SMTP connection to a provider (RFC 5321): commands in groups (RFC 2920), and a DATA stage that streams.

shared/provider/smtp_connect.py makes the connection; from then on it is read here. Replies are handed out in the order
in which commands went out, so several may be under way. Only CRLF line ends leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from shared.errors import Temporary
from shared.mime.dot_stuffing import CrlfDotStuffer

COMMAND_SECONDS = 300.0
"""RFC 5321 4.5.3.2: MAIL and RCPT."""
DATA_SECONDS = 120.0
BLOCK_SECONDS = 180.0
"""For one piece of the mail to be taken."""
ANSWER_SECONDS = 600.0
"""From the final dot to the reply: giving up earlier makes duplicates."""
BUFFER_OCTETS = 64 * 1024
"""The end of a mail goes out together with its dot if it is not longer: no more than the kernel takes anyway."""

SERVER_FULL = 421
AUTH_REQUIRED = 530
START_DATA = 354
REPLY_CHARACTERS = 500
REPLY_OCTETS = 32 * 1024
"""No reply is longer, all its lines together (RFC 5321 4.5.3.1.5 allows 512 octets a line)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered. text: without the code, in one line, at most 500 characters."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip()

    @property
    def accepted(self) -> bool:
        """2xx: done."""
        return 200 <= self.code < 300  # RFC 5321 4.2.1

    @property
    def refused(self) -> bool:
        """5xx: not now and not later."""
        return 500 <= self.code < 600  # RFC 5321 4.2.1

    @property
    def temporary(self) -> bool:
        """4xx: not now, perhaps later, on a connection that stands."""
        return 400 <= self.code < 500 and self.code != SERVER_FULL  # RFC 5321 4.2.1

    @property
    def status(self) -> str:
        """The enhanced status code (RFC 3463), made from the code where there is none."""
        found = re.match(r"([245]\.\d{1,3}\.\d{1,3})(?!\S)", self.text)
        return found[1] if found else f"{self.code // 100}.0.0"


class SmtpConnectionLost(Temporary):
    """The connection ended before the final dot: the provider does not have the mail."""

    kind: ClassVar[str] = "connection"


class OutcomeUnknown(Temporary):
    """The connection ended, or ten minutes passed, between the final dot and the reply: nobody knows."""

    kind: ClassVar[str] = "connection"


class Commands:
    """Commands that go out in one write (RFC 2920). replies: what is awaited for each, once they are sent."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        """:param lines: without line ends. :raises Lost: one holds a control character, and would be two commands."""
        if any(_CONTROL.search(line) for line in lines):
            raise SmtpConnectionLost("a command with a control character in it was not sent")
        self.lines = lines
        self.replies: list[asyncio.Future[Reply]] = []


class _ReplyReader(asyncio.Protocol):
    """The connection's read side: replies to those who wait, in order; and whether more may be written."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.ended = ""
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._rest = b""
        self._texts: list[bytes] = []
        self._octets = 0
        self._room: asyncio.Future[None] | None = None

    def expect(self) -> asyncio.Future[Reply]:
        """The reply that comes behind those that are expected already."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.ended:
            _fail(future, self.ended)
        else:
            self._waiting.append(future)
        return future

    def end(self, reason: str) -> None:
        """Close; whoever waits hears why."""
        self.ended = self.ended or reason
        self.transport.close()
        while self._waiting:
            _fail(self._waiting.popleft(), reason)
        self.resume_writing()

    async def drain(self) -> None:
        """Wait until the transport takes more. :raises ConnectionError: it never will."""
        if self._room is not None:
            await self._room
        if self.ended:
            raise ConnectionError(self.ended)

    def data_received(self, data: bytes) -> None:
        """Cut what came into lines."""
        if self._rest:
            data = self._rest + data
        start = 0
        while (end := data.find(b"\n", start)) >= 0 and not self.ended:
            self._take(data[start:end])
            start = end + 1
        self._rest = data[start:]
        if self._octets + len(self._rest) > REPLY_OCTETS:
            self.end(_NO_SMTP)

    def _take(self, line: bytes) -> None:
        """A line of a reply; the last one has no hyphen behind its code (RFC 5321 4.2.1)."""
        mark = line[3:4]
        if not (line[:3].isdigit() and len(line) >= 3 and mark in (b" ", b"-", b"\r", b"")):
            self.end(_NO_SMTP)
            return
        self._texts.append(line[4:])
        if mark == b"-":
            self._octets += len(line)
            if self._octets > REPLY_OCTETS:
                self.end(_NO_SMTP)
            return
        texts, self._texts, self._octets = self._texts, [], 0
        if not self._waiting:  # a goodbye (421), or the server is out of step: no later reply could be told apart
            self.end("the server spoke unasked")
            return
        future = self._waiting.popleft()
        if not future.done():
            future.set_result(Reply(int(line[:3]), in_one_line(b"\n".join(texts).decode("utf-8", "surrogateescape"))))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing comes any more."""
        self.end("the connection was lost")

    def pause_writing(self) -> None:
        """The transport holds enough."""
        if self._room is None and not self.ended:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        """The transport takes more."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)


class SmtpClient:
    """An SMTP connection that is logged in. extensions: what the server announced, lower-case name to parameters."""

    def __init__(self, transport: asyncio.BaseTransport, where: str, extensions: Mapping[str, str]) -> None:
        """:param transport: taken over from whoever logged in. :param where: host and port, for messages."""
        self._where = where
        self._line = _ReplyReader(cast(asyncio.Transport, transport))
        transport.set_protocol(self._line)
        self.extensions = dict(extensions)

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as is known here."""
        return not self._line.ended and not self._line.transport.is_closing()

    @property
    def pipelining(self) -> bool:
        """Whether commands may go out before the replies to earlier ones are there (RFC 2920)."""
        return "pipelining" in self.extensions

    def send(self, commands: Commands) -> None:
        """Send commands in one write, without waiting; ``reply`` waits for the replies."""
        commands.replies = [self._line.expect() for _ in commands.lines]
        if self.alive:
            self._line.transport.write(_octets(commands))

    async def reply(self, reply: asyncio.Future[Reply], seconds: float = COMMAND_SECONDS) -> Reply:
        """Wait for a reply. :raises Lost: there is none; the connection is closed."""
        try:
            if not reply.done():
                async with asyncio.timeout(seconds):
                    return await reply
            return reply.result()
        except OSError as error:  # TimeoutError is one
            self.close()
            raise SmtpConnectionLost(f"{self._where}: {_why(error)}") from error
        except BaseException:
            self.close()  # a reply may still come: it must not be taken for that of the next command
            raise

    async def command(self, line: bytes, seconds: float = COMMAND_SECONDS) -> Reply:
        """Send a command and wait for its reply. :raises Lost: no reply; the connection is closed."""
        commands = Commands([line])
        self.send(commands)
        return await self.reply(commands.replies[0], seconds)

    async def send_data(
        self,
        pieces: AsyncIterator[bytes],
        before_final_dot: Callable[[], Awaitable[None]],
        pipeline_next: Callable[[], Commands | None] = lambda: None,
    ) -> Reply:
        """Send a mail; DATA was answered 354. Whatever ``before_dot`` and ``pieces`` raise ends the connection first.

        :param pieces: the mail, in pieces of any size. :param before_dot: awaited when only the final dot is missing.
        :param behind: commands that go out with the dot, in the same write.
        :raises Lost: the connection ended before the dot. :raises Unanswered: … after it.
        """
        # Waited for from now on: a server may refuse before it has read everything, and the reply must not be lost.
        answer = self._line.expect()
        try:
            async with asyncio.timeout(None) as deadline:
                rest = await self._stream(pieces, answer, deadline)
                if not answer.done():
                    await before_final_dot()
            if answer.done():
                early = self._early(answer)
                self.close()
                return early
            more = pipeline_next()
            if more is None:
                self._line.transport.write(rest + b".\r\n")
            else:
                more.replies = [self._line.expect() for _ in more.lines]
                self._line.transport.write(rest + b".\r\n" + _octets(more))
        except BaseException as error:
            answer.cancel()
            self.close()
            if isinstance(error, OSError):  # TimeoutError is one
                raise SmtpConnectionLost(f"{self._where}: {_why(error)} while the mail was sent") from error
            raise
        return await self._answer(answer)

    async def _stream(
        self, pieces: AsyncIterator[bytes], answer: asyncio.Future[Reply], deadline: asyncio.Timeout
    ) -> bytes:
        """Send all but the last octets, and return those; or stop, if the answer came too early.

        Never more than a piece waits in memory.
        """
        stuffer = CrlfDotStuffer()
        loop = asyncio.get_running_loop()
        held = b""
        async for piece in pieces:
            held += stuffer.feed(piece)
            if len(held) <= BUFFER_OCTETS:
                continue
            self._line.transport.write(held)
            held = b""
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
            deadline.reschedule(None)  # the store has its own deadlines
        return held + stuffer.finish()

    def _early(self, answer: asyncio.Future[Reply]) -> Reply:
        try:
            reply = answer.result()
        except ConnectionError as error:
            raise SmtpConnectionLost(f"{self._where}: {_why(error)} while the mail was sent") from error
        if not 400 <= reply.code < 600:  # RFC 5321 4.2.1
            raise SmtpConnectionLost(f"{self._where}: a reply {reply.code} came before the end of the mail")
        return reply

    async def _answer(self, answer: asyncio.Future[Reply]) -> Reply:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reply = await answer
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

    async def reset(self) -> None:
        """Forget the mail that was begun (RSET). :raises Lost: the connection is not usable any more."""
        reply = await self.command(b"RSET", DATA_SECONDS)
        if not reply.accepted:
            self.close()
            raise SmtpConnectionLost(f"{self._where}: RSET was answered {reply.code}")

    async def quit(self) -> None:
        """Say goodbye, briefly, and close."""
        if self.alive:
            with contextlib.suppress(SmtpConnectionLost):  # it is closed anyway
                await self.command(b"QUIT", 5.0)
        self.close()

    def close(self) -> None:
        """End the connection at once."""
        self._line.end("the connection was closed")


_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_NO_SMTP = "an answer that is none of SMTP"


def _octets(commands: Commands) -> bytes:
    return b"\r\n".join([*commands.lines, b""])


def in_one_line(text: str) -> str:
    """A reply's text in one printable line; the enhanced status code is not repeated for every line of the reply."""
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
        future.exception()  # seen: nobody may wait for it any more
