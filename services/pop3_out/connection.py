"""The connection under a session: lines in, answers out, TLS and deadlines, in bounded memory."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

import structlog

from services.pop3_out import replies
from services.pop3_out.readahead import PrefetchBudget
from services.pop3_out.session import AUTH_OCTETS, Pop3Session
from shared.model import Local
from shared.net.server_tls import Certificate

INPUT_OCTETS = 64 * 1024
"""Commands that wait in memory; more are left to the kernel, and so to the client."""
OUTPUT_OCTETS = 16 * 1024
"""Unsent answers above which nothing more is done for the client. So a client that does not read has at most so much
and one piece of an answer (session.py) in memory; where it is more, it counts against the budget (readahead.py)."""
BURST_OCTETS = 64 * 1024
"""Answers to commands that came together are written together, about so much at once."""
MAX_PENDING_RETR = 100
COMMANDS_IN_TURN = 200
"""After so many commands that came together it is the turn of the other sessions."""

LOGIN_SECONDS = 60.0
IDLE_SECONDS = 600.0
"""RFC 1939 section 3 wants ten minutes at least."""
SESSION_SECONDS = 12 * 3600.0
"""Well below the shortest retention time: no mail that a session may read is purged."""
TLS_SECONDS = 20.0
CLOSING_SECONDS = 10.0
PAUSE_SECONDS = 5.0
"""After which a client that asks for nothing has nothing held in memory for it."""

_RETR = re.compile(rb"retr +(\d{1,9}) *\r?\n", re.IGNORECASE)

log = structlog.get_logger()


class Pop3Registry(Protocol):
    """Who keeps the open connections: the listener."""

    certificate: Certificate
    budget: PrefetchBudget

    def admit(self, peer: str) -> bool:
        """Whether there is room for one more from there; it is counted then."""

    def enter(self, connection: Pop3Connection) -> None:
        """It is open, and was admitted."""

    def leave(self, connection: Pop3Connection) -> None:
        """It is closed."""

    def register_session(self, local: Local) -> str | None:
        """Whether one more session of this account may begin: None, and it counts; or why not, with the code."""


class Pop3Connection(asyncio.Protocol):
    """One client's connection. ``session`` exists from the greeting on. ``entered``: the keeper counted it as open."""

    def __init__(
        self,
        keeper: Pop3Registry,
        open_session: Callable[[Pop3Connection, bool], Pop3Session],
        *,
        tls: bool,
        peer: str = "",
    ) -> None:
        """:param open_session: makes the session of this connection, told whether it is under TLS.
        :param tls: TLS from the start; the keeper has admitted it, before the handshake.
        :param peer: the client's address; "": where the connection comes from."""
        self._registry = keeper
        self._open_session = open_session
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._read_paused = False  # reading is paused: there is input enough
        self._write_paused = False  # writing is paused: the client does not read
        self._unsent = 0  # octets that were unsent then, which count against the budget
        self._drained: asyncio.Future[None] | None = None  # who waits for it to read
        self._command_task: asyncio.Task[None] | None = None  # the command in hand, if it takes time
        self._input_ended = False
        self._closing = False
        self.entered = self._left = False
        self.session: Pop3Session | None = None
        self.peer = peer
        self._opened_at = self._active_at = time.monotonic()

    # ------------------------------------------------------------------------------------------ from the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._use_transport(transport)
        if not self.peer:
            peer = transport.get_extra_info("peername")
            self.peer = str(peer[0]) if peer else ""
        if not self._tls and not self._registry.admit(self.peer):
            self.write(replies.TOO_MANY_CONNECTIONS)
            self._close()
            return
        self.entered = True
        self._registry.enter(self)
        self.session = self._open_session(self, self._tls)
        self.write(replies.GREETING)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._input += data
        self._run_commands()
        if len(self._input) > INPUT_OCTETS:
            self._pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more; under TCP alone it may still read the answers to what it sent."""
        if self._tls:
            return False
        self._input_ended = True
        self._run_commands()
        return not self._closing

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._transport is not None:
            self._count_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._write_paused = False
        self._count_unsent(0)
        self._active_at = time.monotonic()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._run_commands()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._count_unsent(0)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        session = self.session
        # A QUIT that came is carried out, also for a client that does not wait for the answer.
        if self._command_task is not None and not (session is not None and session.committing):
            asyncio.get_running_loop().call_soon(
                self._command_task.cancel
            )  # not before its first step, which may be due
        if session is not None:
            session.release_memory()
        self._unregister()

    # ------------------------------------------------------------------------------------------ for the listener

    def check_deadlines(self, now: float) -> None:
        """End what takes too long. :param now: monotonic seconds."""
        idle = now - self._active_at
        if self._closing:
            if idle > CLOSING_SECONDS:
                self.abort()
            return
        session = self.session
        working = self._command_task is not None and not self._write_paused
        if session is not None and session.local is not None:
            late = (idle > IDLE_SECONDS and not working) or now - self._opened_at > SESSION_SECONDS
        else:  # a login in hand may wait for its turn
            late = now - self._opened_at > LOGIN_SECONDS * (2 if working else 1)
        if late and not (session is not None and session.committing):
            self.abort()  # without an answer and without deleting anything (RFC 1939 section 3)
        elif session is not None and idle > PAUSE_SECONDS and self._command_task is None:
            session.release_memory()

    def stop(self) -> None:
        """Take no new command; close once the command in hand is done."""
        if self.session is None:
            self.abort()
        else:
            self.session.stopping = True

    @property
    def busy(self) -> bool:
        """Whether a command is in hand or its answer not yet read."""
        return self._command_task is not None or self._write_paused

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def end_session(self) -> None:
        """End the session between two commands, without a word, as after a time-out."""
        if not (self.session is not None and self.session.committing):
            self.abort()

    # ------------------------------------------------------------------------------------------ for the session

    def write(self, data: bytes) -> None:
        """Hand this to the client."""
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has read most of what was written.

        :raises ConnectionError: it is gone.
        """
        while self._write_paused and not self._closing:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        if self._closing:
            raise ConnectionResetError("the client is gone")

    def drop_clear_text(self) -> None:
        """Throw away what else came in clear; what comes from here on is the handshake's (RFC 2595 section 4)."""
        self._pause_reading()
        self._input.clear()

    async def start_tls(self, answer: bytes) -> None:
        """Write ``answer`` in clear and go on under TLS; ``end_clear_input`` comes before.

        :raises ConnectionError: no TLS came about; the connection is closed.
        """
        self.write(answer)
        loop = asyncio.get_running_loop()
        transport = self._transport
        if transport is None or self._closing:
            raise ConnectionResetError("the client is gone")
        try:
            under_tls = await loop.start_tls(
                transport,
                self,
                self._registry.certificate.context,
                server_side=True,
                ssl_handshake_timeout=TLS_SECONDS,
                ssl_shutdown_timeout=CLOSING_SECONDS,
            )
        except (OSError, ssl.SSLError) as error:
            log.info("pop3 tls failed", peer=self.peer, error=str(error))
            self.abort()
            self._unregister()
            raise ConnectionResetError("no TLS") from error
        if under_tls is None:  # asyncio says so when the client left during the handshake
            self._unregister()
            raise ConnectionResetError("the client is gone")
        self._tls = True
        self._read_paused = self._write_paused = False
        self._count_unsent(0)
        self._use_transport(under_tls)

    def register_session(self, local: Local) -> str | None:
        """Whether one more session of this account may begin: None, and it counts; or why not, with the code."""
        return self._registry.register_session(local)

    def pending_retr_numbers(self) -> list[int]:
        """The numbers of the RETR commands that are next in the input."""
        numbers: list[int] = []
        position = 0
        while len(numbers) < MAX_PENDING_RETR and (found := _RETR.match(self._input, position)):
            numbers.append(int(found[1]))
            position = found.end()
        return numbers

    # ------------------------------------------------------------------------------------------ inside

    def _count_unsent(self, octets: int) -> None:
        self._registry.budget.left += self._unsent - octets
        self._unsent = octets

    def _use_transport(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        self._transport.set_write_buffer_limits(high=OUTPUT_OCTETS)

    def _start_command(self, work: Coroutine[Any, Any, bytes]) -> None:
        self._command_task = asyncio.get_running_loop().create_task(self._finish_command(work))

    async def _finish_command(self, work: Coroutine[Any, Any, bytes]) -> None:
        try:
            answer = await work
        finally:
            self._command_task = None
        if answer:
            self.write(answer)
        self._active_at = time.monotonic()
        if self.session is not None and self.session.ended:
            self._close()
        else:
            self._run_commands()

    def _run_commands(self) -> None:
        """Do the commands that are here, as far as they need no waiting, and write their answers at once."""
        session = self.session
        out: list[bytes] = []
        held = turn = 0
        while session is not None and not (self._command_task or self._write_paused or self._closing or session.ended):
            if turn == COMMANDS_IN_TURN:
                asyncio.get_running_loop().call_soon(self._run_commands)
                break
            line = self._next_line(session)
            if line is None:
                break
            turn += 1
            answer = session.reject_long_line() if line is _TOO_LONG else session.run_line(line)
            if not isinstance(answer, bytes):
                self.write(b"".join(out))
                out, held = [], 0
                self._start_command(answer)
                break
            out.append(answer)
            held += len(answer)
            if held > BURST_OCTETS:
                self.write(b"".join(out))
                out, held = [], 0
        if turn:  # a line that does not end is no sign of life (RFC 1939 section 3)
            self._active_at = time.monotonic()
        if out:
            self.write(b"".join(out))
        if (
            self._command_task is None
            and not self._write_paused
            and ((session is not None and session.ended) or (self._input_ended and b"\n" not in self._input))
        ):
            self._close()
        elif self._read_paused and len(self._input) <= INPUT_OCTETS and self._command_task is None:
            self._resume_reading()

    def _next_line(self, session: Pop3Session) -> bytes | None:
        """A line without its end, None if there is no whole one, or _TOO_LONG."""
        end = self._input.find(b"\n", 0, AUTH_OCTETS)
        if end < 0:
            return _TOO_LONG if len(self._input) > session.max_line_octets(bytes(self._input[:4])) else None
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        return line.removesuffix(b"\r")

    def _pause_reading(self) -> None:
        if not self._read_paused and self._transport is not None and not self._transport.is_closing():
            self._read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._read_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _close(self) -> None:
        """Close once everything is sent; ``check`` cuts a client that does not read it."""
        self._closing = True
        self._active_at = time.monotonic()
        if self._transport is not None:
            self._transport.close()

    def _unregister(self) -> None:
        if self.entered and not self._left:
            self._left = True
            self._registry.leave(self)
        # Both refer to this connection. What they hold is to go now, not when the collector comes.
        self.session = self._transport = None


_TOO_LONG = b"\n"
"""Stands for a line that is too long; no line holds a line end."""
