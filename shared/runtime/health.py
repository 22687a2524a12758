"""Serves /metrics, /livez and /readyz of a service on its metrics port.

A separate thread serves them, so that probes get a response while the event loop is busy; a heartbeat shows that the
loop runs. Ready means that the dependencies answered at the last heartbeat. While the heartbeat is late, nothing is
known about them: the service is not ready, and names no server as the cause. Alive does not depend on the dependencies,
because a restart fixes none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from types import TracebackType
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


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing for a probe."""


class Health:
    """Serves the three pages inside the context."""

    def __init__(self, settings: Settings, name: str, database: Database, broker: Broker | None) -> None:
        """:param broker: None for a service that works without it."""
        self._address = (settings.metrics_host, settings.metrics_port_of(name))
        self._database, self._broker = database, broker
        self._beat_at = time.monotonic()
        self._missing: list[str] = ["starting"]

    async def __aenter__(self) -> Health:
        """:raises Permanent: the port is taken."""
        try:
            self._server = make_server(*self._address, self._answer, _Server, _Quiet)
        except OSError as error:
            raise Permanent(f"metrics port {self._address[0]}:{self._address[1]}: {error.strerror}") from error
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True, name="health").start()
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
            checks = {"database": self._database.ready(CHECK_SECONDS)}
            if self._broker is not None:
                checks["broker"] = self._broker.answers(CHECK_SECONDS)
            answers = await asyncio.gather(*checks.values())
            self._missing = [name for name, answer in zip(checks, answers, strict=True) if not answer]
            self._beat_at = time.monotonic()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _answer(self, environ: dict[str, object], start: Callable[..., object]) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                return _metrics(environ, start)  # type: ignore[no-any-return]  # untyped in the library
            case "/livez":
                age = time.monotonic() - self._beat_at
                return _plain(start, age < DEAD_AFTER_SECONDS, f"heartbeat {age:.1f} s ago")
            case "/readyz":
                age = time.monotonic() - self._beat_at
                if age >= STALE_SECONDS:
                    return _plain(start, False, f"last heartbeat {age:.0f} s ago")
                return _plain(start, not self._missing, "waiting for " + ", ".join(self._missing))
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"not found\n"]


_metrics = make_wsgi_app()


def _plain(start: Callable[..., object], healthy: bool, problem: str) -> Iterable[bytes]:
    start("200 OK" if healthy else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"ok\n" if healthy else f"{problem}\n".encode()]
