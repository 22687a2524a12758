"""Transfers mails of a POP3 session by RETR or TOP, ahead of the replies where possible, with the fence behind them.

If the server announces PIPELINING, commands are sent ahead, in a window limited by number and octets.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from shared.net.dial import host_port
from shared.provider.pop3_fence import NOOP, Fence, FenceCommand, noop_command
from shared.provider.pop3_listing import fetch_counts, fetch_sizes
from shared.provider.pop3_replies import is_temporary
from shared.provider.pop3_stream import LIST_OCTETS, Pop3Stream
from shared.provider.reply_texts import trim
from shared.provider.retrieval import HEAD_OCTETS, STEP_OCTETS, MailRequest, ReserveMemory, Retrieved
from shared.provider.session_errors import OutOfStep, ProtocolError

WINDOW_COMMANDS = 200
"""Pipelined commands without a reply."""
WINDOW_OCTETS = 4 * 1024 * 1024
"""Octets of the mails that pipelined commands request."""
BATCH_MAILS = 200
"""Mails behind which one fence follows where commands are not sent ahead: it costs a round trip."""
BATCH_OCTETS = STEP_OCTETS
"""Octets of mails behind which one fence follows: they are in memory until then. Only the last mail reserves more."""
INCONCLUSIVE_FENCES = 3
"""Fences in a row behind the same mail, each about another mail that the server does not know any more."""
PROOF_SECONDS = 10.0
"""Longest wait for each line of the rest of a mail, or for the known reply behind it: seconds."""
BATCH_SECONDS = 5.0
"""Longest time between two fences: seconds; a connection that is lost costs the mails since the last one."""
CUT_SHORT = (
    "the provider cuts it short: what follows its end is a part of it (dots at the beginning of lines are not doubled, "
    "RFC 1939 section 3)"
)
"""Reason for skipping a mail whose reply continues after its end."""


class _Window:
    """The RETR or TOP commands of a transfer: how many may be sent before their replies."""

    def __init__(self, verb: str, requests: Sequence[MailRequest], commands: int) -> None:
        """:param commands: limit of commands without a reply."""
        self._form = b"TOP %d 0\r\n" if verb == "TOP" else b"RETR %d\r\n"
        self._requests = requests
        self._commands = commands
        self._sent = 0
        self._octets = 0
        self._pending: deque[tuple[MailRequest, Sequence[FenceCommand]]] = deque()

    def fill(self, fence: Fence | None) -> bytes:
        """Return the commands to send now. :param fence: to send behind each."""
        if len(self._pending) > self._commands // 2:
            return b""
        lines = []
        while self._sent < len(self._requests) and len(self._pending) < self._commands:
            mail = self._requests[self._sent]
            if self._pending and self._octets + mail.octets > WINDOW_OCTETS:
                break
            behind = fence.draw(fence.length) if fence is not None else []
            lines += [self._form % mail.number, *(command.line for command in behind)]
            self._pending.append((mail, behind))
            self._octets += mail.octets
            self._sent += 1
        return b"".join(lines)

    def next(self) -> tuple[int, Sequence[FenceCommand]] | None:
        """Return the number of the mail whose reply comes next, and the fence behind it; None if none was
        requested."""
        if not self._pending:
            return None
        mail, behind = self._pending.popleft()
        self._octets -= mail.octets
        return mail.number, behind


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
        requests: Sequence[MailRequest],
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
        fence = self._fence = self._fence or await self._find_fence()
        ahead = self.ahead
        window = _Window(verb, requests, WINDOW_COMMANDS if ahead else 1)
        batch: deque[Retrieved] = deque()  # read, and not fenced yet
        due = 0.0
        requested = True
        while requested:
            commands = b"" if stop() else window.fill(fence if ahead else None)
            if commands:
                if not ahead:
                    self._check_silence(batch)
                self._stream.write(commands)
            sent = window.next()
            requested = sent is not None
            behind: Sequence[FenceCommand] = ()
            if sent is not None:
                number, behind = sent
                due = due if batch else time.monotonic() + BATCH_SECONDS
                batch.append(await self._mail(verb, number, max_octets, reserve_memory, first=not batch))
                if batch[-1].refusal is not None:
                    fence.forget(number)
            ends = not requested or ahead or self.alone or _is_full(batch) or time.monotonic() > due
            if batch and ends and await self._pass_fence(fence, batch, behind):
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
                reply = trim(line)
                return Retrieved(number, None, 0, b"", reply, temporary=is_temporary(reply))
            body = await self._stream.body(max_octets, reserve_memory)
        except ProtocolError as error:
            if first:
                raise
            raise self._out_of_step(()) from error
        kept = None if body.too_large else body.kept
        return Retrieved(number, kept, body.octets, body.sha256, None, body.head)

    async def _pass_fence(self, fence: Fence, batch: Sequence[Retrieved], sent: Sequence[FenceCommand]) -> bool:
        """Whether the fence proves these mails whole; False if only the next fence can. :param sent: what was sent
        ahead; empty: nothing.

        :raises OutOfStep: a mail is not whole.
        """
        self.reading = batch[0].number if len(batch) == 1 else None
        proven = True
        if sent:
            for command in sent:
                proven = await self._is_answered(fence, command, batch) and proven
            if not proven and _is_full(batch):
                raise self._out_of_step(batch)
        elif any(mail.refusal is None for mail in batch):
            await self._ask(fence, batch)
        self.reading = None
        return proven

    async def _ask(self, fence: Fence, batch: Sequence[Retrieved]) -> None:
        """Send the commands of a fence one by one: only one to a server without pipelining, as each costs a round trip.

        :raises OutOfStep: another reply comes, or a reply before it is asked for.
        """
        for _ in range(INCONCLUSIVE_FENCES):
            proven = True
            for command in fence.draw(fence.length if self.ahead or self.alone else 1):
                self._check_silence(batch)
                self._stream.write(command.line)
                proven = await self._is_answered(fence, command, batch) and proven
                self._check_silence(batch)
            if proven:
                return
        raise self._out_of_step(batch)

    async def _is_answered(self, fence: Fence, command: FenceCommand, batch: Sequence[Retrieved]) -> bool:
        """Whether the known reply comes; False if the server refuses this command, as about a mail that is gone.

        :raises OutOfStep: another line comes; of a mail fetched alone, only if the known reply comes behind it.
        """
        self._stream.command = f"{fence.verb} behind mail {batch[-1].number}"
        try:
            line = await self._stream.line()
        except ProtocolError:  # a line that is too long
            line = b""
        if command.is_answered(line):
            return True
        refused = line[:4].upper() == b"-ERR"
        if refused:
            fence.forget(command.number)
        if self.alone and not await self._is_answered_late(fence, command):
            return True
        if refused and not self.alone:
            return False
        raise self._out_of_step(batch)

    async def _is_answered_late(self, fence: Fence, command: FenceCommand) -> bool:
        """Whether the known reply comes behind another line: that was the rest of a mail. False: the server gave that
        line in its place, and then the known reply to a second command.

        :raises ProtocolError: it gives others. :raises Temporary: the connection ends. Neither proves anything.
        """
        second = fence.draw_about_mail(but=command)
        self._stream.write(second.line)
        late, octets = False, 0
        while True:
            try:
                async with asyncio.timeout(PROOF_SECONDS):
                    line = await self._stream.line(LIST_OCTETS)
            except TimeoutError as error:
                raise ProtocolError(f"{self._stream.where}: another reply") from error
            if second.is_answered(line) and (late or second != command):
                break
            late = late or command.is_answered(line)
            octets += len(line) + 1
            if octets > LIST_OCTETS:
                raise self._stream.too_long(LIST_OCTETS)
        if octets and not late:
            raise ProtocolError(f"{self._stream.where}: another reply")
        return late

    def _check_silence(self, batch: Sequence[Retrieved]) -> None:
        """Check that the server sends nothing before it is asked. :raises OutOfStep: it does."""
        if self._stream.has_input:
            raise self._out_of_step(batch)

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
            CUT_SHORT,
            head,
        )

    async def _find_fence(self) -> Fence:
        """Return the fence that the server answers as expected. :raises ProtocolError: there is none."""
        if any(self.uidls.values()) and await self._is_known(fence := Fence.of_uidls(self.uidls)):
            return fence
        sizes = await fetch_sizes(self._stream)
        if sizes and await self._is_known(fence := Fence.of_sizes(sizes)):
            return fence
        if await self._is_known(fence := Fence.of_counts(*await fetch_counts(self._stream))):
            return fence
        raise ProtocolError(
            f"{host_port(self._stream.server)}: UIDL, LIST and STAT have other replies each time, so a mail that is "
            "cut short cannot be detected"
        )

    async def _is_known(self, fence: Fence) -> bool:
        """Whether the server answers a command of the fence as expected, while nothing else can come.

        A server that ignores the number sends the whole list, whose lines begin with numbers; NOOP shows its end.
        """
        stream = self._stream
        stream.command = f"{fence.verb} of one mail"
        command = fence.draw_about_mail()
        stream.write(command.line + NOOP if self.ahead else command.line)
        line = await stream.line()
        if not _is_status(line):
            raise stream.not_pop3()
        known = command.is_answered(line)
        if not self.ahead:
            if not self.alone and (known or line[:1] == b"-"):
                return known  # NOOP would cost a round trip
            stream.write(NOOP)
        octets = 0
        while not _is_status(line := await stream.line(LIST_OCTETS)):
            octets += len(line) + 1
            if octets > LIST_OCTETS:
                raise stream.too_long(LIST_OCTETS)
        fence.noop = noop_command(line)
        return known


def _is_status(line: bytes) -> bool:
    return line.upper().startswith((b"+OK", b"-ERR"))
