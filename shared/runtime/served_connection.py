"""A connection of a mail client to one of our servers: input, output, TLS and deadlines, in bounded memory.

A protocol derives its connection (pop3_out, imap_out): it takes what has arrived from ``_input``, and says what it does
in ``_state``. Replies that the client does not read count against the budget of its account.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, cast

import structlog

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
reply (piece_reader.py) in memory; what is unsent then counts against the budget (memory_budget.py)."""
BURST_OCTETS = 64 * 1024
"""Replies are written together: octets of one write, about."""
LEAST_OCTETS_A_SECOND = 1024
"""Least rate at which a client reads: octets a second; GPRS at the edge of a cell still has twice of it."""
TLS_SECONDS = 20.0
CLOSING_SECONDS = 10.0
PAUSE_SECONDS = 5.0
"""Pause between two commands after which no mail is held in memory for the client."""

log = structlog.get_logger()


class ConnectionState(Enum):
    """The life of a connection, in this order; READY and BUSY alternate."""

    NEW = auto()  # before the greeting
    READY = auto()  # runs the next command
    BUSY = auto()  # awaits a command
    CLOSING = auto()  # sends what is unsent, and runs no command
    CLOSED = auto()


_ENDING = (ConnectionState.CLOSING, ConnectionState.CLOSED)


@dataclass(frozen=True, slots=True)
class ConnectionDeadlines:
    """Limits of time: seconds."""

    login: float  # from the greeting to the login
    idle: float  # between two commands
    pause: float  # longest pause of a client that reads a reply
    session: float  # of a session in all


class ServedSession(Protocol):
    """The session of a connection. stopping: the server stops."""

    stopping: bool

    @property
    def local(self) -> Local | None:
        """The account that is logged in."""

    @property
    def committing(self) -> bool:
        """Whether a change is being committed, for which the connection must not be cancelled."""

    def release_memory(self) -> None:
        """Drop the mails that are read ahead: the client pauses or has disconnected."""


class ConnectionKeeper(Protocol):
    """Keeps the open connections: the listener."""

    certificate: Certificate
    budget: MemoryBudget

    def account_budget(self, local_id: int) -> MemoryBudget:
        """The share of an account in ``budget``."""

    def admit(self, connection: Any) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""

    def on_closed(self, connection: Any) -> None:
        """Count the connection no longer."""

    def register_session(self, connection: Any, local: Local) -> str | None:
        """Count a session of this account. Returns None, or the reason of a refusal with its response code."""


class ServedConnection(AdmittedConnection):
    """One client's connection."""

    protocol: str
    """Name for the log."""

    def __init__(self, registry: ConnectionKeeper, deadlines: ConnectionDeadlines, *, tls: bool, peer: str) -> None:
        """:param tls: TLS from the start; ``admit`` is called before the handshake.
        :param peer: the client's IP address; "": the address of the transport."""
        self._registry = registry
        self._deadlines = deadlines
        self._tls = tls
        self._state = ConnectionState.NEW
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
        self.peer = peer
        self._opened_at = self._active_at = time.monotonic()

    # ------------------------------------------------------------------------------------------ of the protocol

    @property
    def _served(self) -> ServedSession | None:
        """The session, from the greeting until the end."""
        raise NotImplementedError

    def _open(self) -> None:
        """Open the session, and send the greeting."""
        raise NotImplementedError

    def _refuse(self) -> None:
        """Say that there are too many connections."""
        raise NotImplementedError

    def _continue(self) -> None:
        """Go on: input has arrived or ended, or the client has read."""
        raise NotImplementedError

    def _end_work(self) -> None:
        """The client has disconnected: end the command that is running."""
        raise NotImplementedError

    def _drop_session(self) -> None:
        """Forget the session."""
        raise NotImplementedError

    def _farewell(self, reason: str) -> bytes:
        """Return what is sent to the client before the server closes the connection by itself; b"": nothing."""
        return b""

    @property
    def _is_working(self) -> bool:
        """Whether a command is running."""
        return self._state is ConnectionState.BUSY

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
            self._refuse()
            self._close()
            return
        self._state = ConnectionState.READY
        self._open()

    def data_received(self, data: bytes) -> None:
        if self._state in _ENDING:
            return
        self._input += data
        self._continue()
        if len(self._input) > LOGIN_INPUT_OCTETS and self._state is ConnectionState.BUSY and self.account is None:
            log.info("session ended, too much input before the login", peer=self.peer)
            self.abort()
        elif len(self._input) > INPUT_OCTETS:
            self._pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more. Without TLS it may still read the replies to what it sent."""
        if self._tls:
            return False
        self._input_ended = True
        self._continue()
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
        self._continue()

    def connection_lost(self, exc: Exception | None) -> None:
        self._count_unsent(0)
        self._wake_drain()
        session = self._served
        # A change that the client has asked for is committed, also if the client does not wait for the reply.
        if not (session is not None and session.committing):
            self._end_work()
        if session is not None:
            session.release_memory()
        self._unregister()

    # ------------------------------------------------------------------------------------------ for the listener

    @property
    def account(self) -> Local | None:
        """The account that is logged in, None before the login."""
        session = self._served
        return session.local if session is not None else None

    def check_deadlines(self, now: float) -> None:
        """Close the connection if a deadline has passed. :param now: monotonic seconds."""
        idle = now - self._active_at
        if self._is_ending:
            if idle > CLOSING_SECONDS:
                self.abort()
            return
        session = self._served
        limits = self._deadlines
        working = self._is_working and not self._write_paused
        if session is not None and session.local is not None:
            idle_too_long = idle > limits.idle and not self.busy
            late = self._reads_too_slowly(now) or idle_too_long or now - self._opened_at > limits.session
        else:  # a login that is being checked may wait for its turn
            late = now - self._opened_at > limits.login * (2 if working else 1)
        if late and not (session is not None and session.committing):
            self.end_session(self._farewell("the connection was idle, or open, for too long"))  # without a change
        elif session is not None and idle > PAUSE_SECONDS and not self._is_working:
            session.release_memory()

    def _reads_too_slowly(self, now: float) -> bool:
        """Count what the client has read since the last call. Returns whether it is less than the least rate."""
        if not self._write_paused or self._transport is None:
            self._rate = None
            return False
        read = self._written - unacknowledged_octets(self._transport)
        if self._rate is None:
            self._rate = LeastRate(LEAST_OCTETS_A_SECOND, self._deadlines.pause, now)
        else:
            self._rate.record(read - self._read_by_client, now)
        self._read_by_client = read
        return self._rate.seconds_left(now) < 0

    def stop(self) -> None:
        """Refuse new commands. The command that is running ends as usual."""
        session = self._served
        if session is None:
            self.abort()
        else:
            session.stopping = True

    @property
    def busy(self) -> bool:
        """Whether a command is running or the client has not read its reply."""
        return self._is_working or self._write_paused

    def abort(self) -> None:
        """Close the connection at once and drop what is unsent."""
        if self._transport is not None:
            self._state = ConnectionState.CLOSING
            self._transport.abort()

    def end_session(self, reply: bytes = b"") -> None:
        """Close the connection, unless a change is being committed.

        :param reply: what the client gets; b"": nothing, as after a timeout.
        """
        session = self._served
        if session is not None and session.committing:
            return
        if not reply:
            self.abort()
        elif not self._is_ending:
            self.write(reply)
            self._close()

    def on_account_changed(self) -> None:
        """End the session: the account was disabled, removed or given another password."""
        log.info("session ended, account changed", local=self.account and self.account.address, peer=self.peer)
        self.end_session(self._farewell("the account was changed, log in again"))

    # ------------------------------------------------------------------------------------------ for the session

    def write(self, data: bytes) -> None:
        """Send data to the client."""
        self._send(data)

    def _send(self, data: bytes) -> None:
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
        self._send(reply)
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
            log_handshake_failure(self.protocol, self.peer, error)
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
        self._state = ConnectionState.CLOSING
        self._active_at = time.monotonic()
        if self._transport is not None:
            self._transport.close()

    def _unregister(self) -> None:
        """Count the connection no longer, and release its memory."""
        self._state = ConnectionState.CLOSED
        if self._admitted:
            self._admitted = False
            self._registry.on_closed(self)
        # Both refer to this connection: without the cycle their memory is freed now, not by the garbage collector.
        self._drop_session()
        self._transport = None
