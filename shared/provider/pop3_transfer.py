"""Transfers mails of a POP3 session by RETR or TOP, ahead of the replies where possible, with the fence behind them.

If the server announces PIPELINING, commands are sent ahead, in a window limited by number and octets.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from shared.net.dial import host_port
from shared.provider.pop3_errors import OutOfStep, ProtocolError
from shared.provider.pop3_fence import Fence
from shared.provider.pop3_listing import fetch_counts, fetch_sizes
from shared.provider.pop3_replies import HEAD_OCTETS, trim
from shared.provider.pop3_stream import LIST_OCTETS, STEP_OCTETS, Pop3Stream, ReserveMemory

WINDOW_COMMANDS = 200
"""Pipelined commands without a reply."""
WINDOW_OCTETS = 4 * 1024 * 1024
"""Octets of the mails that pipelined commands request."""
BATCH_MAILS = 200
"""Mails behind which one fence follows where commands are not sent ahead: it costs a round trip."""
BATCH_OCTETS = STEP_OCTETS
"""Octets of mails behind which one fence follows: they are in memory until then. Only the last mail reserves more."""
BATCH_SECONDS = 5.0
"""Longest time between two fences: seconds; a connection that is lost costs the mails since the last one."""


@dataclass(frozen=True, slots=True)
class RetrRequest:
    """A mail to retrieve. octets: its size from LIST, trusted for the window only."""

    number: int
    octets: int


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The result of one RETR or TOP."""

    number: int
    body: bytearray | None  # CRLF line ends, dot-stuffing undone; None if refused or too large
    octets: int  # length of the body, also if it was too large
    sha256: bytes
    refusal: str | None  # the trimmed -ERR reply
    head: bytes = b""  # the first octets of a mail that was too large


class _Window:
    """The RETR or TOP commands of a transfer: how many may be sent before their replies."""

    def __init__(self, verb: str, requests: Sequence[RetrRequest], commands: int) -> None:
        """:param commands: limit of commands without a reply."""
        self._form = b"TOP %d 0\r\n" if verb == "TOP" else b"RETR %d\r\n"
        self._requests = requests
        self._commands = commands
        self._sent = 0
        self._octets = 0
        self._pending: deque[RetrRequest] = deque()

    def fill(self, fence: Fence | None) -> bytes:
        """Return the commands to send now. :param fence: to send behind each."""
        if len(self._pending) > self._commands // 2:
            return b""
        lines = []
        while self._sent < len(self._requests) and len(self._pending) < self._commands:
            mail = self._requests[self._sent]
            if self._pending and self._octets + mail.octets > WINDOW_OCTETS:
                break
            lines.append(self._form % mail.number)
            if fence is not None:
                lines.append(fence.command(mail.number))
            self._pending.append(mail)
            self._octets += mail.octets
            self._sent += 1
        return b"".join(lines)

    def next(self) -> int | None:
        """Return the number of the mail whose reply comes next; None if none was requested."""
        if not self._pending:
            return None
        mail = self._pending.popleft()
        self._octets -= mail.octets
        return mail.number


def _is_full(batch: Sequence[Retrieved]) -> bool:
    return len(batch) >= BATCH_MAILS or sum(mail.octets for mail in batch) >= BATCH_OCTETS


class MailTransfer:
    """The transfers of one session.

    uidls: the unique ids of this session's list, by number. ahead: commands are sent before the replies to those before
    them. alone: a fence follows each mail. reading: the number of the mail whose reply is being read, for the report if
    the session ends there.
    """

    def __init__(self, stream: Pop3Stream) -> None:
        self.uidls: Mapping[int, str] = {}
        self.ahead = False
        self.alone = False
        self.reading: int | None = None
        self._stream = stream
        self._fence: Fence | None = None

    async def fetch(
        self,
        verb: str,
        requests: Sequence[RetrRequest],
        max_octets: int,
        stop: Callable[[], bool],
        reserve_memory: ReserveMemory | None,
    ) -> AsyncIterator[Retrieved]:
        """Send RETR or TOP for each mail, in order, until ``stop()`` is true. Each mail returned is whole.

        :param max_octets: the largest mail to keep. :param reserve_memory: awaited before a large mail grows.
        :raises OutOfStep: a mail is not whole; ``reading`` is its number if it was fetched alone, otherwise None.
        """
        if not requests:
            return
        fence = self._fence = self._fence or await self._find_fence(requests[0].number)
        ahead = self.ahead
        window = _Window(verb, requests, WINDOW_COMMANDS if ahead else 1)
        batch: deque[Retrieved] = deque()  # read, and not fenced yet
        due = 0.0
        number: int | None = 0
        while number is not None:
            commands = b"" if stop() else window.fill(fence if ahead else None)
            if commands:
                self._stream.write(commands)
            number = window.next()
            if number is not None:
                due = due if batch else time.monotonic() + BATCH_SECONDS
                batch.append(await self._mail(verb, number, max_octets, reserve_memory, first=not batch))
            if batch and (number is None or ahead or self.alone or _is_full(batch) or time.monotonic() > due):
                await self._pass_fence(fence, batch, sent=ahead)
                while batch:
                    yield batch.popleft()

    async def _mail(
        self, verb: str, number: int, max_octets: int, reserve_memory: ReserveMemory | None, *, first: bool
    ) -> Retrieved:
        """Read the reply to RETR or TOP. :param first: of its batch; else the reply may be the rest of a mail before.

        :raises OutOfStep: as it may be.
        """
        self._stream.command = f"{verb} of mail {number}"
        self.reading = number if first else None
        try:
            ok, line = await self._stream.reply()
            if not ok:
                return Retrieved(number, None, 0, b"", trim(line))
            body = await self._stream.body(max_octets, reserve_memory)
        except ProtocolError as error:
            if first:
                raise
            raise self._out_of_step(()) from error
        kept = None if body.too_large else body.kept
        return Retrieved(number, kept, body.octets, body.sha256, None, body.head)

    async def _pass_fence(self, fence: Fence, batch: Sequence[Retrieved], *, sent: bool) -> None:
        """Check that the reply to the fence comes next. :param sent: the fence was sent with the command before it.

        :raises OutOfStep: something else comes.
        """
        self.reading = batch[0].number if len(batch) == 1 else None
        given = [mail.number for mail in batch if mail.refusal is None]
        if not given and not sent:
            self.reading = None
            return
        number = given[-1] if given else batch[-1].number
        self._stream.command = f"{fence.verb} behind mail {number}"
        if not sent:
            self._stream.write(fence.command(number))
        try:
            answer, text = await self._stream.answer()
        except ProtocolError as error:
            raise self._out_of_step(batch) from error
        matches = answer == b"+OK" and fence.matches(number, text)
        gone = not given and answer == b"-ERR"  # a mail that does not exist any more is refused twice
        if not (matches or gone) or (not sent and self._stream.has_input):
            raise self._out_of_step(batch)
        self.reading = None

    def _out_of_step(self, batch: Sequence[Retrieved]) -> OutOfStep:
        """Return the error. Only a mail that was fetched alone is at fault: pipelining may be, too."""
        head = b""
        if not self.alone:
            self.reading = None
        elif self.reading is not None:
            head = batch[0].head if batch[0].body is None else bytes(memoryview(batch[0].body)[:HEAD_OCTETS])
        return OutOfStep(
            f"{self._stream.where}: another reply; a mail before it may be cut short at a line that is a lone dot "
            "(RFC 1939 section 3)",
            head,
        )

    async def _find_fence(self, number: int) -> Fence:
        """Return the fence that the server answers as expected."""
        if self.uidls and await self._is_answered(fence := Fence.of_uidls(self.uidls), number):
            return fence
        sizes = await fetch_sizes(self._stream)
        if sizes and await self._is_answered(fence := Fence.of_sizes(sizes), number):
            return fence
        if await self._is_answered(fence := Fence.of_counts(*await fetch_counts(self._stream)), number):
            return fence
        raise ProtocolError(
            f"{host_port(self._stream.server)}: UIDL, LIST and STAT have other replies each time, so a mail that is "
            "cut short cannot be detected"
        )

    async def _is_answered(self, fence: Fence, number: int) -> bool:
        """Whether the server answers the fence as expected, while nothing else can come."""
        stream = self._stream
        stream.command = f"{fence.verb} of one mail"
        stream.write(fence.command(number))
        ok, text = await stream.reply()
        if ok and fence.matches(number, text):
            return True
        if ok:  # a server that ignores the number sends the whole list, whose lines begin with numbers
            stream.write(b"NOOP\r\n")
            octets = 0
            while not (line := await stream.line(LIST_OCTETS)).upper().startswith((b"+OK", b"-ERR")):
                octets += len(line)
                if octets > LIST_OCTETS:
                    raise stream.too_long(LIST_OCTETS)
        return False
