"""A browser's connection to the console: uvicorn's HTTP protocol, with the deadlines and limits of the mail ports.

SECURITY. A client without a login may open connections and send part of a request. So each connection counts before its
TLS handshake, and a request has to arrive in time and within limits. (services/admin/web/request_guard.py limits its
body.) What a client does not read holds a connection for a limited time, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import h11
import uvicorn
from prometheus_client import Gauge
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from shared.auth.session_registry import SessionRegistry
from shared.model import Local
from shared.net.listening import AdmittedConnection

CONNECTIONS = Gauge("mailgroup_http_connections", "Open connections to the console.")

HEAD_OCTETS = 16 * 1024
"""Longest request line with its header: octets; a session's cookie and a long search have less than one KiB."""
HEAD_SECONDS = 10.0
"""Time for a request line and its header, from the connection or from the first octet: seconds."""
BODY_SECONDS = 60.0
"""Time for a request body: seconds; an accounts file of 4 MiB needs 70 KiB a second."""
KEEP_ALIVE_SECONDS = 5
"""Pause between two requests of a connection: seconds; the next request connects again."""
UNREAD_SECONDS = 60.0
"""Time for a client to read some of a response: seconds."""
TLS_SECONDS, CLOSING_SECONDS = 10.0, 5.0
"""Time for a TLS handshake, and for its end: seconds."""

_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 47\r\n"
    b"Connection: close\r\n\r\nThere are too many connections. Try again soon\n"
)


class ConsoleConnection(H11Protocol, AdmittedConnection):
    """One connection. peer: the IP address of the browser or of the proxy in front."""

    account: Local | None = None  # no session of a mail account

    def __init__(
        self,
        registry: SessionRegistry[ConsoleConnection],
        config: uvicorn.Config,
        state: ServerState,
        peer: str,
        make_room: Callable[[], None],
    ) -> None:
        """:param peer: "": the address of the transport. :param make_room: ends a connection if there are too many."""
        super().__init__(config, state, {})
        self.peer = peer
        self._registry = registry
        self._make_room = make_room
        self._admitted = False
        self._read_by_client = 0  # how often the client has read enough of a response
        self._progress: tuple[object, ...] = ()  # what the client has to get on with
        self._since = time.monotonic()  # when that began

    def on_account_changed(self) -> None:
        """Do nothing: sessions of the console are rows, which each request reads."""

    # ------------------------------------------------------------------------------------------ admission

    def admit(self) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""
        self._make_room()
        self._admitted = self._registry.admit(self)
        return self._admitted

    def close_if_unused(self) -> None:
        """After a TLS handshake: count the connection no longer if it failed."""
        if self.transport is None:  # set by connection_made; declared as never None in the library
            self._unregister()

    def _unregister(self) -> None:
        if self._admitted:
            self._admitted = False
            self._registry.remove(self)

    # ------------------------------------------------------------------------------------------ from the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the library
        """Start, or refuse the connection if there are too many."""
        if not self.peer:
            address = transport.get_extra_info("peername")
            self.peer = str(address[0]) if address else ""
        if not self._admitted and not self.admit():
            transport.write(_REFUSED)
            transport.close()
            return
        super().connection_made(transport)
        _, self._progress = self._awaited()
        self._since = time.monotonic()  # not of the first check: all connections would then be of one age

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no longer."""
        if self._admitted:
            self._unregister()
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._admitted:
            super().data_received(data)

    def resume_writing(self) -> None:
        """Note that the client has read."""
        self._read_by_client += 1
        super().resume_writing()

    # ------------------------------------------------------------------------------------------ deadlines

    @property
    def waits_since(self) -> float | None:
        """The monotonic seconds since when no whole request has come; None: a request or a handshake is under way."""
        if self.transport is None or self.flow.write_paused or self.conn.their_state is not h11.IDLE:
            return None
        return self._since

    def end(self) -> None:
        """Close the connection at once, and count it no longer."""
        self._unregister()
        self.connections.discard(self)
        self.transport.abort()

    def check_deadlines(self) -> None:
        """Close the connection if the client has made no progress for too long."""
        seconds, progress = self._awaited()
        if progress != self._progress:
            self._progress, self._since = progress, time.monotonic()
        elif seconds is not None and time.monotonic() - self._since > seconds:
            self.transport.abort()

    def _awaited(self) -> tuple[float | None, tuple[object, ...]]:
        """Return the time for what the client has to do now, None without a limit; and its progress so far."""
        if self.flow.write_paused:
            return UNREAD_SECONDS, ("unread", self._read_by_client)
        state = self.conn.their_state
        if state is h11.IDLE:
            return HEAD_SECONDS, ("head", self.cycle)
        return (BODY_SECONDS if state is h11.SEND_BODY else None), (state, self.cycle)
