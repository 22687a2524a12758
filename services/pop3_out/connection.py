"""The connection of a POP3 session: command lines, replies, TLS and deadlines, in bounded memory."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any, Protocol, cast

import structlog

from services.pop3_out import replies
from services.pop3_out.session import AUTH_OCTETS, Pop3Session
from shared.model import Local
from shared.net.least_rate import LeastRate, unacknowledged_octets
from shared.net.listening import AdmittedConnection, log_handshake_failure
from shared.net.server_tls import Certificate
from shared.runtime.memory_budget import MemoryBudget

INPUT_OCTETS = 64 * 1024
"""Commands that wait in memory: octets; more stay in the kernel, so a client that sends faster has to wait."""
LOGIN_INPUT_OCTETS = 32 * 1024
"""The same while a password is checked: octets; with more the connection is closed. No share limits it yet, and
of all connections together it would be hundreds of megabytes."""
OUTPUT_OCTETS = 16 * 1024
"""Unsent replies above which no command is run: octets. A client that does not read has at most this and one piece of a
reply (mail_reader.py) in memory; what is unsent then counts against the budget (readahead.py)."""
BURST_OCTETS = 64 * 1024
"""Replies to pipelined commands are written together: octets of one write, about."""
MAX_PENDING_RETR = 100
"""RETR commands in the input that are read ahead together."""
COMMANDS_IN_TURN = 200
"""Pipelined commands of one session before the other sessions have their turn."""
REPLIES_IN_TURN = 256 * 1024
"""The same for the replies: octets; a LIST of a thousand mails takes as long as a hundred short commands."""

LOGIN_SECONDS = 60.0
IDLE_SECONDS = 600.0
"""RFC 1939 section 3 requires ten minutes at least. Also the longest pause of a client that reads a reply."""
LEAST_OCTETS_A_SECOND = 1024
"""Least rate at which a client reads: octets a second; GPRS at the edge of a cell still has twice of it."""
SESSION_SECONDS = 12 * 3600.0
"""Longest session: seconds; far below the shortest retention time, so no mail that a session may read is purged."""
TLS_SECONDS = 20.0
CLOSING_SECONDS = 10.0
PAUSE_SECONDS = 5.0
"""Pause between two commands after which no mail is held in memory for the client."""

_RETR = re.compile(rb"retr +(\d{1,9}) *\r?\n", re.IGNORECASE)
_TOO_LONG = b"\n"
"""A line that is too long; no other line contains a line end."""

log = structlog.get_logger()


class State(Enum):
    """The life of a connection, in this order; READY and BUSY alternate."""

    NEW = auto()  # before the greeting
    READY = auto()  # runs the next command
    BUSY = auto()  # awaits a command
    CLOSING = auto()  # sends what is unsent, and runs no command
    CLOSED = auto()


_READY = State.READY  # a member of an enum costs more to find
_ENDING = (State.CLOSING, State.CLOSED)


class Pop3Registry(Protocol):
    """Keeps the open connections: the listener."""

    certificate: Certificate
    budget: MemoryBudget

    def account_budget(self, local_id: int) -> MemoryBudget:
        """The share of an account in ``budget``."""

    def admit(self, connection: Pop3Connection) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""

    def on_closed(self, connection: Pop3Connection) -> None:
        """Count the connection no longer."""

    def register_session(self, connection: Pop3Connection, local: Local) -> str | None:
        """Count a session of this account. Returns None, or the reason of a refusal with its response code."""


class Pop3Connection(AdmittedConnection):
    """One client's connection. ``session`` exists from the greeting until the end."""

    def __init__(
        self,
        registry: Pop3Registry,
        open_session: Callable[[Pop3Connection, bool], Pop3Session],
        *,
        tls: bool,
        peer: str = "",
    ) -> None:
        """:param open_session: makes the session of this connection; the second argument is ``tls``.
        :param tls: TLS from the start; ``admit`` is called before the handshake.
        :param peer: the client's IP address; "": the address of the transport."""
        self._registry = registry
        self._open_session = open_session
        self._tls = tls
        self._state = State.NEW
        self._admitted = False  # the registry counts the connection
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._input_ended = False
        self._read_paused = False  # there is enough input
        self._write_paused = False  # the client does not read
        self.budget = registry.budget  # of the account after the login
        self._unsent = 0  # octets that were unsent when writing was paused; they count against the budget
        self._written = self._read_by_client = 0  # octets of replies; the second as of the last check of deadlines
        self._rate: LeastRate | None = None  # while the client does not read
        self._drained: asyncio.Future[None] | None = None  # set when writing goes on
        self._command_task: asyncio.Task[None] | None = None
        self.session: Pop3Session | None = None
        self.peer = peer
        self._opened_at = self._active_at = time.monotonic()

    # ------------------------------------------------------------------------------------------ admission

    def admit(self) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""
        self._admitted = self._registry.admit(self)
        return self._admitted

    def close_if_unused(self) -> None:
        """After a TLS handshake: count the connection no longer if it failed."""
        if self._transport is None:
            self._unregister()

    # ------------------------------------------------------------------------------------------ from the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._use_transport(transport)
        if not self.peer:
            peer = transport.get_extra_info("peername")
            self.peer = str(peer[0]) if peer else ""
        if not self._admitted and not self.admit():
            self.write(replies.TOO_MANY_CONNECTIONS)
            self._close()
            return
        self._state = State.READY
        self.session = self._open_session(self, self._tls)
        self.write(replies.GREETING)

    def data_received(self, data: bytes) -> None:
        if self._state in _ENDING:
            return
        self._input += data
        self._run_commands()
        if len(self._input) > LOGIN_INPUT_OCTETS and self._state is State.BUSY and self.account is None:
            log.info("session ended, too much input before the login", peer=self.peer)
            self.abort()
        elif len(self._input) > INPUT_OCTETS:
            self._pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more. Without TLS it may still read the replies to what it sent."""
        if self._tls:
            return False
        self._input_ended = True
        self._run_commands()
        return not self._is_ending

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._transport is not None:
            self._count_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._write_paused = False
        self._count_unsent(0)
        self._active_at = time.monotonic()
        self._wake_drain()
        self._run_commands()

    def connection_lost(self, exc: Exception | None) -> None:
        self._count_unsent(0)
        self._wake_drain()
        session = self.session
        # A QUIT that has arrived is carried out, also if the client does not wait for the reply.
        if self._command_task is not None and not (session is not None and session.committing):
            asyncio.get_running_loop().call_soon(self._command_task.cancel)  # after its first step, which may be due
        if session is not None:
            session.release_memory()
        self._unregister()

    # ------------------------------------------------------------------------------------------ for the listener

    @property
    def account(self) -> Local | None:
        """The account that is logged in, None before the login."""
        return self.session.local if self.session is not None else None

    def check_deadlines(self, now: float) -> None:
        """Close the connection if a deadline has passed. :param now: monotonic seconds."""
        idle = now - self._active_at
        if self._is_ending:
            if idle > CLOSING_SECONDS:
                self.abort()
            return
        session = self.session
        working = self._command_task is not None and not self._write_paused
        if session is not None and session.local is not None:
            idle_too_long = idle > IDLE_SECONDS and not self.busy
            late = self._reads_too_slowly(now) or idle_too_long or now - self._opened_at > SESSION_SECONDS
        else:  # a login that is being checked may wait for its turn
            late = now - self._opened_at > LOGIN_SECONDS * (2 if working else 1)
        if late and not (session is not None and session.committing):
            self.abort()  # without a reply and without deleting anything (RFC 1939 section 3)
        elif session is not None and idle > PAUSE_SECONDS and self._command_task is None:
            session.release_memory()

    def _reads_too_slowly(self, now: float) -> bool:
        """Count what the client has read since the last call. Returns whether it is less than the least rate."""
        if not self._write_paused or self._transport is None:
            self._rate = None
            return False
        read = self._written - unacknowledged_octets(self._transport)
        if self._rate is None:
            self._rate = LeastRate(LEAST_OCTETS_A_SECOND, IDLE_SECONDS, now)
        else:
            self._rate.record(read - self._read_by_client, now)
        self._read_by_client = read
        return self._rate.seconds_left(now) < 0

    def stop(self) -> None:
        """Refuse new commands. The command that is running ends as usual."""
        if self.session is None:
            self.abort()
        else:
            self.session.stopping = True

    @property
    def busy(self) -> bool:
        """Whether a command is running or the client has not read its reply."""
        return self._command_task is not None or self._write_paused

    def abort(self) -> None:
        """Close the connection at once and drop what is unsent."""
        if self._transport is not None:
            self._state = State.CLOSING
            self._transport.abort()

    def end_session(self, reply: bytes = b"") -> None:
        """Close the connection, unless mails are being deleted.

        :param reply: of the client's next command; b"": none, as after a timeout.
        """
        if self.session is not None and self.session.committing:
            return
        if not reply:
            self.abort()
        elif not self._is_ending:
            self.write(reply)
            self._close()

    def on_account_changed(self) -> None:
        """End the session: the account was disabled, removed or given another password."""
        log.info("session ended, account changed", local=self.account and self.account.address, peer=self.peer)
        self.end_session()

    # ------------------------------------------------------------------------------------------ for the session

    def write(self, data: bytes) -> None:
        """Send data to the client."""
        if data and self._transport is not None and not self._transport.is_closing():
            self._written += len(data)
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has read most of what was sent.

        :raises ConnectionError: the client has disconnected.
        """
        while self._write_paused and not self._is_ending:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        if self._is_ending:
            raise ConnectionResetError("the client has disconnected")

    def drop_clear_text(self) -> None:
        """Drop the input that arrived without TLS; what comes next is the handshake (RFC 2595 section 4)."""
        self._pause_reading()
        self._input.clear()

    async def start_tls(self, reply: bytes) -> None:
        """Send the reply without TLS, then start TLS. ``drop_clear_text`` is called before.

        :raises ConnectionError: the handshake failed; the connection is closed.
        """
        self.write(reply)
        transport = self._transport
        if transport is None or self._is_ending:
            raise ConnectionResetError("the client has disconnected")
        try:
            under_tls = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                self._registry.certificate.context,
                server_side=True,
                ssl_handshake_timeout=TLS_SECONDS,
                ssl_shutdown_timeout=CLOSING_SECONDS,
            )
        except (OSError, ssl.SSLError) as error:
            log_handshake_failure("pop3", self.peer, error)
            self.abort()
            self._unregister()
            raise ConnectionResetError("no TLS") from error
        if under_tls is None:  # asyncio returns None if the client disconnected during the handshake
            self._unregister()
            raise ConnectionResetError("the client has disconnected")
        self._tls = True
        self._read_paused = self._write_paused = False
        self._count_unsent(0)
        self._use_transport(under_tls)

    def register_session(self, local: Local) -> str | None:
        """Count a session of this account. Returns None, or the reason of a refusal with its response code.

        :raises ConnectionError: the client has disconnected: nothing would end the session's count.
        """
        if self._is_ending:
            raise ConnectionResetError("the client has disconnected")
        refusal = self._registry.register_session(self, local)
        if refusal is None:
            unsent = self._unsent
            self._count_unsent(0)
            self.budget = self._registry.account_budget(local.id)
            self._count_unsent(unsent)
        return refusal

    def pending_retr_numbers(self) -> list[int]:
        """The numbers of the RETR commands that are next in the input."""
        numbers: list[int] = []
        position = 0
        while len(numbers) < MAX_PENDING_RETR and (match := _RETR.match(self._input, position)):
            numbers.append(int(match[1]))
            position = match.end()
        return numbers

    # ------------------------------------------------------------------------------------------ commands

    def _start_command(self, work: Coroutine[Any, Any, bytes]) -> None:
        self._state = State.BUSY
        self._command_task = asyncio.get_running_loop().create_task(self._finish_command(work))

    async def _finish_command(self, work: Coroutine[Any, Any, bytes]) -> None:
        try:
            reply = await work
        finally:
            self._command_task = None
            if self._state is State.BUSY:
                self._state = State.READY
        if reply:
            self.write(reply)
        self._active_at = time.monotonic()
        if self.session is not None and self.session.ended:
            self._close()
        else:
            self._run_commands()

    def _run_commands(self) -> None:
        """Run the commands that have arrived, up to the first that has to wait, and write their replies together."""
        session = self.session
        if session is None or self._state is not _READY:
            return
        out: list[bytes] = []
        octets = in_turn = commands = 0
        while not (self._write_paused or session.ended):
            if commands == COMMANDS_IN_TURN or in_turn > REPLIES_IN_TURN:
                asyncio.get_running_loop().call_soon(self._run_commands)
                break
            line = self._next_line(session)
            if line is None:
                break
            commands += 1
            reply = session.reject_long_line() if line is _TOO_LONG else session.run_line(line)
            if not isinstance(reply, bytes):
                self.write(b"".join(out))  # before the command starts: a connection that fails here cancels it
                out, octets = [], 0
                self._start_command(reply)
                break
            out.append(reply)
            octets += len(reply)
            in_turn += len(reply)
            if octets > BURST_OCTETS:
                self.write(b"".join(out))
                out, octets = [], 0
        if commands:  # a line without an end does not extend the deadline (RFC 1939 section 3)
            self._active_at = time.monotonic()
        if out:
            self.write(b"".join(out))
        if self._state is _READY:
            ended = session.ended or (self._input_ended and b"\n" not in self._input)
            if ended and not self._write_paused:
                self._close()
            elif self._read_paused and len(self._input) <= INPUT_OCTETS:
                self._resume_reading()

    def _next_line(self, session: Pop3Session) -> bytes | None:
        """A line without its end, None if there is no complete one, or _TOO_LONG."""
        end = self._input.find(b"\n", 0, AUTH_OCTETS)
        if end < 0:
            return _TOO_LONG if len(self._input) > session.max_line_octets(bytes(self._input[:4])) else None
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        return line.removesuffix(b"\r")

    # ------------------------------------------------------------------------------------------ the transport

    def _use_transport(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not derive from it
        self._transport.set_write_buffer_limits(high=OUTPUT_OCTETS)

    def _count_unsent(self, octets: int) -> None:
        self.budget.add(octets - self._unsent)
        self._unsent = octets

    def _wake_drain(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _pause_reading(self) -> None:
        if not self._read_paused and self._transport is not None and not self._transport.is_closing():
            self._read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._read_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # ------------------------------------------------------------------------------------------ the end

    @property
    def _is_ending(self) -> bool:
        return self._state in _ENDING

    def _close(self) -> None:
        """Close after everything is sent; ``check_deadlines`` aborts the connection if the client does not read it."""
        self._state = State.CLOSING
        self._active_at = time.monotonic()
        if self._transport is not None:
            self._transport.close()

    def _unregister(self) -> None:
        """Count the connection no longer, and release its memory."""
        self._state = State.CLOSED
        if self._admitted:
            self._admitted = False
            self._registry.on_closed(self)
        # Both refer to this connection: without the cycle their memory is freed now, not by the garbage collector.
        self.session = self._transport = None
