"""The port of the console: its listening socket, its connections and their limits, on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import structlog
import uvicorn

from services.admin.web.connection import (
    CLOSING_SECONDS,
    CONNECTIONS,
    HEAD_OCTETS,
    KEEP_ALIVE_SECONDS,
    TLS_SECONDS,
    ConsoleConnection,
)
from shared.auth.session_registry import SessionRegistry
from shared.errors import Permanent
from shared.net import server_tls
from shared.net.listening import Acceptor
from shared.settings import Settings

MAX_CONNECTIONS = 500
"""Open connections in all, if the process may open as many files; each open page with live status has one."""
GRACE_SECONDS = 5
"""Limit for open requests and running token requests at shutdown: seconds; pages take far less."""
_BACKLOG = 256
"""Length of the queue of connections that are not accepted yet."""
_CHECK_SECONDS = 1.0
"""Interval between two checks of the deadlines of all connections: seconds."""

log = structlog.get_logger()


class ConsoleServer(uvicorn.Server):
    """A uvicorn server that the service stops: the service handles the signals."""

    def __init__(self, settings: Settings, app: Any, max_connections: int = MAX_CONNECTIONS) -> None:
        """:param max_connections: open connections in all; the settings limit those of one address."""
        super().__init__(_config(settings, app))
        self._max_connections = max_connections
        self._registry: SessionRegistry[ConsoleConnection] = SessionRegistry(
            "http", CONNECTIONS, settings, max_connections
        )
        self._acceptor = Acceptor("http", ())
        self._deadlines: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections from these sockets."""
        await super().startup(sockets=[])  # it serves none itself
        for listening in sockets or []:
            listening.setblocking(False)
            if (context := self.config.ssl) is not None:
                self._serve_tls(listening, context)
            else:
                await self._acceptor.serve(listening, self._create)
        self._deadlines = asyncio.create_task(self._check_deadlines(), name="console deadlines")

    def _serve_tls(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        self._acceptor.serve_tls(
            listening,
            self._create,
            lambda: context,
            handshake_seconds=TLS_SECONDS,
            closing_seconds=CLOSING_SECONDS,
        )

    def _create(self, peer: str) -> ConsoleConnection:
        return ConsoleConnection(self._registry, self.config, self.server_state, peer, self._make_room)

    def _make_room(self) -> None:
        """End the connection that has waited for a whole request for the longest time, if there are too many.

        So a crowd of clients that send half a request delays no client that sends a whole one.
        """
        if len(self._registry.connections) >= self._max_connections:
            waiting = [(since, each) for each in self._registry.connections if (since := each.waits_since) is not None]
            if waiting:
                min(waiting, key=itemgetter(0))[1].end()

    async def _check_deadlines(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            for connection in list(self._registry.connections):
                connection.check_deadlines()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and let open requests end."""
        await self._acceptor.close()
        await super().shutdown(sockets)
        if self._deadlines is not None:
            self._deadlines.cancel()

    async def main_loop(self) -> None:
        """Update the Date header once a second; uvicorn's own loop wakes up ten times for it."""
        while not await self.on_tick(0):  # noqa: ASYNC110  # it waits for a time, not for an event
            await asyncio.sleep(1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service."""
        yield


def listen(settings: Settings) -> socket.socket:
    """Open the listening socket. :raises Permanent: the port is in use."""
    address = (settings.admin_bind, settings.admin_port)
    family = socket.AF_INET6 if ":" in settings.admin_bind else socket.AF_INET
    try:
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        # without uvloop, Nagle's algorithm would delay a body by 40 ms after its header
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise Permanent(f"MAILGROUP_ADMIN_PORT {address[0]}:{address[1]}: {error.strerror}") from error


def _config(settings: Settings, app: Any) -> uvicorn.Config:
    def context(config: uvicorn.Config, default: object) -> ssl.SSLContext:
        return server_tls.server_context(settings)

    return uvicorn.Config(
        app,
        lifespan="off",
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=HEAD_OCTETS,
        ssl_context_factory=context if settings.console_has_tls else None,
    )
