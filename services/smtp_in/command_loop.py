"""Reads SMTP commands and writes replies: aiosmtpd's connection with another loop.

aiosmtpd's loop formats two log lines, arms a timer, waits for a stream reader and writes through a stream writer for
every command, which takes longer than the commands. Here a command costs one search for the line end and one call.
The dispatch by name, session, envelope, flow control and RSET and NOOP are aiosmtpd's.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

from services.smtp_in.aiosmtpd_private import SmtpProtocol

READ_AHEAD_OCTETS = 64 * 1024
"""Input that waits for the session: octets; more stays in the kernel, so a client that sends faster has to wait."""
UNSENT_OCTETS = 64 * 1024
"""Unsent replies above which no command is read: octets; limits the memory for a client that does not read."""
COMMANDS_IN_TURN = 100
"""Pipelined commands of one session before the other sessions have their turn."""
COMMAND_OCTETS = 2048
AUTH_OCTETS = 12_288  # RFC 4954 section 4
CLOSING_SECONDS = 5.0
"""Time to send the last reply: seconds; then the connection is aborted."""
MAX_BAD_COMMANDS = 5
"""Lines that are no command: the session ends with the fifth."""

COMMAND_LIMITS = {"NOOP": 10_000, "RSET": 10_000, "MAIL": 10_000, "DATA": 10_000, "RCPT": 200_000}
"""Calls of each command in one session; above, the session ends with 421."""
OTHER_COMMAND_LIMIT = 100
"""The same for any other command."""
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
"""Enhanced status codes (RFC 3463) of the replies that aiosmtpd writes."""
_BARE_REPLY = re.compile(r"([245]\d\d) (?!\d\.\d{1,3}\.\d{1,3} )")


class LineTooLong(Exception):
    """The client sent a line longer than AUTH_OCTETS. The line was skipped."""


class CommandLoop(SmtpProtocol):
    """Reads commands and calls ``smtp_NAME`` for each, one after the other, until the session ends."""

    def __init__(self, host_name: str, idle_seconds: float) -> None:
        """:param idle_seconds: timeout of a client that sends no complete command."""
        super().__init__(host_name, idle_seconds)
        self._raw_transport: asyncio.Transport | None = None  # the one below TLS
        self._input = b""
        self._position = 0  # octets of the input that are read
        self._reading_paused = False
        self._end_of_input = False
        self._under_tls = False
        self._arrived: asyncio.Future[None] | None = None  # set by the next input
        self._command_counts: dict[str, int] = {}
        self._bad_commands = self._in_turn = 0

    # ------------------------------------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        """Store the input, and pause reading if the session does not wait for input."""
        self._input = self._input[self._position :] + data if self._position < len(self._input) else data
        self._position = 0
        if self._arrived is not None:
            if not self._arrived.done():
                self._arrived.set_result(None)
        elif len(self._input) > READ_AHEAD_OCTETS and self.transport is not None:
            cast(asyncio.Transport, self.transport).pause_reading()
            self._reading_paused = True

    def eof_received(self) -> bool:
        """The client sends no more. Without TLS it may still read the replies to what it sent."""
        self._end_of_input = True
        if self._arrived is not None:
            self._arrived.cancel()
        return not self._under_tls

    async def _wait_for_input(self) -> None:
        """Wait for more input. Cancelled if the client sends no more."""
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
        """Return the next line without its end (CRLF, or LF alone).

        A line that is too long is dropped while it arrives: kept, each octet of it would cost a search of all before.

        :raises LineTooLong: the line was skipped.
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
        """Return all input that has arrived, at least one octet; at most READ_AHEAD_OCTETS and one read more."""
        while self._position == len(self._input):
            await self._wait_for_input()
        chunk = self._input[self._position :] if self._position else self._input
        self.drop_input()
        return chunk

    @property
    def unread_octets(self) -> int:
        """Octets of the input that wait."""
        return len(self._input) - self._position

    def push_back(self, octets: bytes) -> None:
        """Return octets to the start of the input: they belong to the next commands."""
        self._input, self._position = octets + self._input[self._position :], 0

    def drop_input(self) -> None:
        """Drop the input that has arrived."""
        self._input, self._position = b"", 0

    def drop_clear_text(self) -> None:
        """Drop the input that arrived without TLS, before the handshake (RFC 3207)."""
        self.drop_input()
        self._reading_paused = False  # the TLS transport is another one

    # ------------------------------------------------------------------------------------------ writing

    def write(self, reply: str) -> None:
        """Send a reply, unless the connection is closed."""
        if not self.ended and self.transport is not None and not self.transport.is_closing():
            cast(asyncio.Transport, self.transport).write(reply.encode("utf-8", "replace") + b"\r\n")

    async def push(self, status: str | bytes) -> None:
        """Send a reply, with an enhanced status code, and wait while too much is unsent."""
        text = status.decode() if isinstance(status, bytes) else status
        bare = _BARE_REPLY.match(text)
        if bare and bare[1] in _ENHANCED_CODES:
            text = f"{bare[1]} {_ENHANCED_CODES[bare[1]]} {text[4:]}"
        self.write(text)
        transport = cast(asyncio.Transport | None, self.transport)
        if transport is not None and transport.get_write_buffer_size() > UNSENT_OCTETS:
            try:
                await self.drain()
            except ConnectionError:
                self.abort()

    # ------------------------------------------------------------------------------------------ the loop

    async def run_session(self) -> None:
        """Greet the client and run its commands."""
        try:
            await self.push(f"220 {self.hostname} {self.__ident__}")
            while self.transport is not None and not self.ended:
                await self._run_next_command()
                self._in_turn += 1
                if self._in_turn >= COMMANDS_IN_TURN:
                    self._in_turn = 0
                    await asyncio.sleep(0)
        except asyncio.CancelledError:  # the client disconnected, or the session was ended
            # Raised further, the task would keep the exception, and with it the mail, until the garbage collector runs.
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
        method = self.commands.get(command)
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
            self.restart_timer()
            try:
                await method(rest.strip().decode("utf-8", "surrogateescape") if rest else None)
            except Exception as error:  # handle_exception logs it and chooses the reply
                await self.push(await self.handle_exception(error))

    async def _reject_command(self, reply: str) -> None:
        self._bad_commands += 1
        if self._bad_commands < MAX_BAD_COMMANDS:
            await self.push(reply)
        else:
            self.end_session("502 5.5.1 Too many unrecognized commands, goodbye.")

    # ------------------------------------------------------------------------------------------ the end

    def end_session(self, reply: str) -> None:
        """Send a last reply and close."""
        if self.ended:
            return
        if self.session_task is None:
            self.abort()
            return
        self.write(reply)
        self.ended = True
        if self.transport is not None:
            self.transport.close()
            self.transport = None
        if self._raw_transport is not None:
            self.loop.call_later(CLOSING_SECONDS, self._raw_transport.abort)  # the client does not read the reply
        if asyncio.current_task() is not self.session_task:
            self.session_task.cancel()

    def on_timeout(self) -> None:
        """End the session of a client that sent no complete command in time."""
        self.end_session("421 4.4.2 Timeout")

    def abort(self) -> None:
        """Close at once and drop what is unsent."""
        self.ended = True
        if self._raw_transport is not None:
            self._raw_transport.abort()
        self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Release all memory and the transport now, without the garbage collector."""
        super().connection_lost(error)
        self.drop_input()
        self._raw_transport = None
        self.release_streams()
