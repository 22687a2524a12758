"""How a session's commands are read and its replies written: aiosmtpd's connection with another loop.

aiosmtpd's own loop formats two lines of log for every command, arms a timer, waits for a stream and writes through one;
together that takes longer than what the commands do. Here a command costs a search for its line end and a call. Its
dispatch by name, its session, envelope, flow control and the commands without a decision of ours stay aiosmtpd's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar, cast

from aiosmtpd import smtp

READ_AHEAD_OCTETS = 64 * 1024
"""A client that sends more than this before it is read has to wait."""
UNSENT_OCTETS = 64 * 1024
"""A client that leaves so much of replies unread is not read any further."""
COMMANDS_IN_TURN = 100
"""After so many commands that were sent at once it is the turn of the other sessions."""
COMMAND_OCTETS = 2048
AUTH_OCTETS = 12_288  # RFC 4954 section 4
CLOSING_SECONDS = 5.0
MAX_BAD_COMMANDS = 5
"""Lines that are no command: the connection ends with the fifth."""

COMMAND_LIMITS = {"NOOP": 10_000, "RSET": 10_000, "MAIL": 10_000, "DATA": 10_000, "RCPT": 200_000}
OTHER_COMMAND_LIMIT = 100
"""Commands of one session; over it, 421."""
_ENHANCED_CODES = {
    "221": "2.0.0",
    "250": "2.0.0",
    "421": "4.3.0",
    "454": "4.7.0",
    "500": "5.5.2",
    "501": "5.5.4",
    "502": "5.5.1",
    "503": "5.5.1",
    "504": "5.5.4",
}
"""Enhanced codes of replies that aiosmtpd makes (RFC 3463)."""
_BARE_REPLY = re.compile(r"([245]\d\d) (?!\d\.\d{1,3}\.\d{1,3} )")


class LineTooLong(Exception):
    """The client sent a line that is longer than any may be (AUTH_OCTETS). It has been passed over."""


class CommandLoop(smtp.SMTP):
    """Reads commands and calls ``smtp_NAME`` for them, one after the other, until the session ends."""

    session: smtp.Session
    _names: ClassVar[Sequence[str]]

    def __init__(self, host_name: str, idle_seconds: float) -> None:
        """:param idle_seconds: how long the client may say nothing."""
        super().__init__(
            None,
            enable_SMTPUTF8=True,
            hostname=host_name,
            ident="ESMTP mailgroup",
            timeout=idle_seconds,
            loop=asyncio.get_running_loop(),
        )
        self._raw_transport: asyncio.Transport | None = None  # the one below TLS
        self._ended = False
        self._input = b""
        self._position = 0  # octets of the input that are read
        self._reading_paused = False  # whether the transport reads no more for now
        self._end_of_input = False
        self._under_tls = False
        self._arrived: asyncio.Future[None] | None = None
        self._command_counts: dict[str, int] = {}
        self._bad_commands = self._in_turn = 0
        self._quiet_until = self._timer_at = 0.0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._names = [name for name in dir(cls) if name.startswith("smtp_")]

    def __dir__(self) -> Iterable[str]:
        """The commands: aiosmtpd looks for them among all names, three times for every connection."""
        return self._names

    # ------------------------------------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        """Keep it for whoever reads, and let the client wait if nobody does."""
        self._input = self._input[self._position :] + data if self._position < len(self._input) else data
        self._position = 0
        if self._arrived is not None:
            if not self._arrived.done():
                self._arrived.set_result(None)
        elif len(self._input) > READ_AHEAD_OCTETS and self.transport is not None:
            cast(asyncio.Transport, self.transport).pause_reading()
            self._reading_paused = True

    def eof_received(self) -> bool:
        """The client sends no more; under TCP alone it may still read the answers to what it sent."""
        self._end_of_input = True
        if self._arrived is not None:
            self._arrived.cancel()
        return not self._under_tls

    async def _wait_for_input(self) -> None:
        """Wait until the client has sent more than there is. Cancelled when it sends nothing more."""
        if self._reading_paused and self.transport is not None:
            cast(asyncio.Transport, self.transport).resume_reading()
            self._reading_paused = False
        self._arrived = self.loop.create_future()
        if self._end_of_input:
            self._arrived.cancel()
        try:
            await self._arrived
        finally:
            self._arrived = None
            self._in_turn = 0

    async def read_line(self) -> bytes:
        """The next line, without its end (CRLF, or LF alone). :raises LineTooLong: it is passed over.

        Of a line that is too long no more is kept: sent octet by octet, every octet would cost a look at all of it.
        """
        too_long = False
        while (end := self._input.find(b"\n", self._position)) < 0:
            if len(self._input) - self._position > AUTH_OCTETS:
                too_long = True
                self.drop_input()
            await self._wait_for_input()
        line, self._position = self._input[self._position : end], end + 1
        if too_long or len(line.rstrip(b"\r\n")) > AUTH_OCTETS:
            raise LineTooLong
        return line.rstrip(b"\r\n")

    async def read_available(self) -> bytes:
        """What the client has sent, one octet at least; bounded by READ_AHEAD_OCTETS and what one read can bring."""
        while self._position == len(self._input):
            await self._wait_for_input()
        chunk = self._input[self._position :] if self._position else self._input
        self.drop_input()
        return chunk

    def push_back(self, octets: bytes) -> None:
        """Put back what belongs to the commands behind it."""
        self._input, self._position = octets + self._input[self._position :], 0

    def drop_input(self) -> None:
        """Drop what the client has sent so far."""
        self._input, self._position = b"", 0

    def drop_clear_text(self) -> None:
        """Before TLS, when nothing more is read in clear: what was sent already counts for nothing (RFC 3207)."""
        self.drop_input()
        self._reading_paused = False  # the transport under TLS is another one

    # ------------------------------------------------------------------------------------------ writing

    def write(self, reply: str) -> None:
        """Send a reply. Nothing is sent to a client that is gone."""
        if not self._ended and self.transport is not None and not self.transport.is_closing():
            cast(asyncio.Transport, self.transport).write(reply.encode("utf-8", "replace") + b"\r\n")

    async def push(self, status: str | bytes) -> None:
        """Send a reply, with an enhanced code."""
        text = status.decode() if isinstance(status, bytes) else status
        bare = _BARE_REPLY.match(text)
        if bare and bare[1] in _ENHANCED_CODES:
            text = f"{bare[1]} {_ENHANCED_CODES[bare[1]]} {text[4:]}"
        self.write(text)
        transport = cast(asyncio.Transport | None, self.transport)
        if transport is not None and transport.get_write_buffer_size() > UNSENT_OCTETS:
            await self._drain()

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError:
            self.abort()

    # ------------------------------------------------------------------------------------------ the loop

    async def _handle_client(self) -> None:
        try:
            await self.push(f"220 {self.hostname} {self.__ident__}")
            while self.transport is not None and not self._ended:
                await self._run_next_command()
                self._in_turn += 1
                if self._in_turn >= COMMANDS_IN_TURN:
                    self._in_turn = 0
                    await asyncio.sleep(0)
        except asyncio.CancelledError:  # the client is gone, or the session was ended
            # Raised further, it would be kept by the task, and with it the mail in hand, until the collector comes.
            if self.transport is not None:
                self.transport.close()

    async def _run_next_command(self) -> None:
        try:
            line = await self.read_line()
        except LineTooLong:
            await self._reject_command("500 Command line too long")
            return
        word, _, rest = line.partition(b" ")
        command = word.upper().decode("ascii", "replace")
        method = self._smtp_methods.get(command)
        if not line:
            await self._reject_command("500 Error: bad syntax")
        elif len(line) > (AUTH_OCTETS if command == "AUTH" and self.session.extended_smtp else COMMAND_OCTETS):
            await self._reject_command("500 Command line too long")
        elif method is None:
            await self._reject_command("500 Error: command not recognized")
        elif self._command_counts.get(command, 0) >= COMMAND_LIMITS.get(command, OTHER_COMMAND_LIMIT):
            self.end_session(f"421 4.7.0 {command} sent too many times")
        else:
            self._command_counts[command] = self._command_counts.get(command, 0) + 1
            self._reset_timeout()
            try:
                await method(rest.strip().decode("utf-8", "surrogateescape") if rest else None)
            except Exception as error:  # it is for handle_exception to tell one from another
                await self.push(await self.handle_exception(error))

    async def _reject_command(self, reply: str) -> None:
        self._bad_commands += 1
        if self._bad_commands < MAX_BAD_COMMANDS:
            await self.push(reply)
        else:
            self.end_session("502 5.5.1 Too many unrecognized commands, goodbye.")

    # ------------------------------------------------------------------------------------------ ends

    def end_session(self, reply: str) -> None:
        """Say this and close."""
        if self._ended:
            return
        if self._handler_coroutine is None:
            self.abort()
            return
        self.write(reply)
        self._ended = True
        if self.transport is not None:
            self.transport.close()
            self.transport = None
        if self._raw_transport is not None:
            self.loop.call_later(CLOSING_SECONDS, self._raw_transport.abort)  # of a client that does not read this
        if asyncio.current_task() is not self._handler_coroutine:
            self._handler_coroutine.cancel()

    def abort(self) -> None:
        """Close at once, whatever is not sent yet."""
        self._ended = True
        if self._raw_transport is not None:
            self._raw_transport.abort()
        self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Let go of what it holds: aiosmtpd's connections refer to themselves, and wait for the collector."""
        super().connection_lost(error)
        self.drop_input()
        self._raw_transport = None
        del self._reader, self._writer

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Wait for the client so long from now on. The timer is let run, and looks when it ends whether it may."""
        if self._ended:
            return
        self._quiet_until = self.loop.time() + (duration or self._timeout_duration)
        if self._timeout_handle is None or self._quiet_until < self._timer_at:
            self._arm()

    def _arm(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self._timer_at = self._quiet_until
        self._timeout_handle = self.loop.call_at(self._timer_at, self._timeout_cb)

    def _timeout_cb(self) -> None:
        if self._ended:
            return
        if self.loop.time() < self._quiet_until:
            self._arm()
        else:
            self.end_session("421 4.4.2 Timeout")
