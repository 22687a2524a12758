"""Serves /metrics, /livez and /readyz of a service on its metrics port; /metrics alone of another process.

Threads serve them, so that probes get a response while the event loop is busy; a heartbeat shows that the
loop runs. Ready means that the dependencies answered at the last heartbeat, and that this version works with the schema
of the database: during an upgrade a new process is not ready before the migration. While the heartbeat is late, nothing
is known about them: the service is not ready, and names no server as the cause. A service that stops is not ready.
Alive does not depend on the dependencies, because a restart fixes none.

SECURITY. Connections are limited in number, octets and time. If an address has as many as it may have, a new connection
replaces its oldest one: half-sent requests thus use up nothing for good, and a probe, which sends its request at once,
gets its response.
"""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from shared.amqp.broker import Broker
from shared.db.database import Database
from shared.errors import Permanent
from shared.settings import Settings

HEARTBEAT_SECONDS = 1.0
"""Pause between two heartbeats, and two checks of the dependencies: seconds."""
CHECK_SECONDS = 2.0
"""Time limit for the answer of a dependency: seconds."""
STALE_SECONDS = 5.0
"""Age of the last heartbeat at which /readyz believes it no more: seconds; longer than a pause and a check."""
DEAD_AFTER_SECONDS = 60.0
"""Age of the last heartbeat at which /livez fails: seconds."""


MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS = 64, 16
"""Open connections in all, and of one address: an orchestrator and Prometheus have one or two."""
REQUEST_SECONDS = 10.0
"""Time from a connection to the end of its response: seconds."""
HEAD_OCTETS = 8 * 1024
"""Octets of a request that are read; a probe has some hundred."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._open: dict[
            socket.socket, tuple[str, float]
        ] = {}  # address of the client, monotonic seconds; oldest first
        self._lock = Lock()
        super().__init__(address, handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Count a connection, and end the oldest one of its address, or of all, if there are too many."""
        address = str(client_address[0])
        with self._lock:
            ours = [each for each, (other, _) in self._open.items() if other == address]
            oldest = next(iter(self._open), None) if len(self._open) >= MAX_CONNECTIONS else None
            oldest = ours[0] if len(ours) >= MAX_CONNECTIONS_PER_ADDRESS else oldest
            if oldest is not None:
                self._end(oldest)
            self._open[request] = (address, time.monotonic())
        return True

    def service_actions(self) -> None:
        """End the connections whose time is over; called twice a second."""
        with self._lock:
            before = time.monotonic() - REQUEST_SECONDS
            for connection in [each for each, (_, since) in self._open.items() if since < before]:
                self._end(connection)

    def shutdown_request(self, request: Any) -> None:
        """Count a connection no longer, and close it."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing for a client that has disconnected."""

    def _end(self, connection: socket.socket) -> None:
        """Wake up the thread of a connection, which then closes it."""
        self._open.pop(connection, None)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class _LimitedHead(io.RawIOBase):
    """The beginning of what a client sends."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._left = HEAD_OCTETS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into the buffer. :return: the number of octets; 0 at the end of the head."""
        octets = self._connection.recv(min(self._left, len(buffer))) if self._left else b""
        buffer[: len(octets)] = octets
        self._left -= len(octets)
        return len(octets)


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_LimitedHead(self.connection))

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing for a probe."""


class Health:
    """Serves the three pages inside the context."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        database: Database,
        broker: Broker | None,
        stopping: asyncio.Event | None = None,
    ) -> None:
        """:param broker: None for a service that works without it. :param stopping: set when the service stops."""
        self._address = (settings.metrics_host, settings.metrics_port_of(name))
        self._database, self._broker = database, broker
        self._stopping = stopping or asyncio.Event()
        self._beat_at = time.monotonic()
        self._missing: list[str] = ["starting"]

    async def __aenter__(self) -> Health:
        """:raises Permanent: the port is taken."""
        self._server = _start_server(*self._address, self._answer)
        self._heart = asyncio.create_task(self._beat(), name="heartbeat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heart.cancel()
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()

    async def _beat(self) -> None:
        while True:
            self._missing = await self._find_missing()
            self._beat_at = time.monotonic()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _find_missing(self) -> list[str]:
        checks: list[Coroutine[Any, Any, str | None]] = [self._database.find_missing(CHECK_SECONDS)]
        if self._broker is not None:
            checks.append(_find_missing_broker(self._broker))
        return [name for name in await asyncio.gather(*checks) if name is not None]

    def _answer(self, environ: dict[str, object], start: Callable[..., object]) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                return _answer_metrics(environ, start)
            case "/livez":
                age = time.monotonic() - self._beat_at
                return _plain(start, age < DEAD_AFTER_SECONDS, f"heartbeat {age:.1f} s ago")
            case "/readyz":
                if self._stopping.is_set():
                    return _plain(start, False, "stopping")
                age = time.monotonic() - self._beat_at
                if age >= STALE_SECONDS:
                    return _plain(start, False, f"last heartbeat {age:.0f} s ago")
                return _plain(start, not self._missing, "waiting for " + ", ".join(self._missing))
        return _not_found(start)


@contextmanager
def serve_metrics(host: str, port: int) -> Iterator[None]:
    """Serve /metrics, for a process that is no service. :raises Permanent: the port is taken."""

    def answer(environ: dict[str, object], start: Callable[..., object]) -> Iterable[bytes]:
        return _answer_metrics(environ, start) if environ.get("PATH_INFO") == "/metrics" else _not_found(start)

    server = _start_server(host, port, answer)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _start_server(host: str, port: int, answer: Callable[..., Iterable[bytes]]) -> WSGIServer:
    """Listen, and serve in threads. :raises Permanent: the port is taken."""
    try:
        server = make_server(host, port, answer, _Server, _Quiet)
    except OSError as error:
        raise Permanent(f"metrics port {host}:{port}: {error.strerror}") from error
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True, name="health").start()
    return server


async def _find_missing_broker(broker: Broker) -> str | None:
    return None if await broker.answers(CHECK_SECONDS) else "broker"


_metrics = make_wsgi_app()


def _answer_metrics(environ: dict[str, object], start: Callable[..., object]) -> Iterable[bytes]:
    return _metrics(environ, start)  # type: ignore[no-any-return]  # untyped in the library


def _not_found(start: Callable[..., object]) -> Iterable[bytes]:
    start("404 Not Found", [("Content-Type", "text/plain")])
    return [b"not found\n"]


def _plain(start: Callable[..., object], healthy: bool, problem: str) -> Iterable[bytes]:
    start("200 OK" if healthy else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"ok\n" if healthy else f"{problem}\n".encode()]
