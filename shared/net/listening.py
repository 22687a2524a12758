"""Opens the listening sockets for mail clients and accepts their connections (pop3_out, smtp_in).

``Acceptor`` accepts connections one by one where they count before the TLS handshake or come from proxies with the
PROXY protocol. Elsewhere the server of the event loop accepts them, which is faster.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from shared.net import proxy_protocol
from shared.net.proxy_protocol import Networks
from shared.settings import Settings, SettingsError

BACKLOG = 512
"""Connections that the kernel queues until they are accepted."""
SPARE_FILES = 100
"""Files that a process has open besides its connections."""

OnConnection = Callable[[socket.socket, str], Awaitable[None]]
"""Called with a connection and the client's IP address."""

log = structlog.get_logger()


def limit_by_open_files(requested: int) -> int:
    """Raise RLIMIT_NOFILE for this many connections, up to the hard limit; return how many may be open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = requested + SPARE_FILES
    limit = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(1, limit - SPARE_FILES)


def listen(settings: Settings, setting: str, port: int) -> socket.socket:
    """Open a listening socket. :param setting: the port's setting. :raises SettingsError: the port is not available."""
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    try:
        listening = socket.create_server((settings.bind, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"MAILGROUP_{setting}: {port}: cannot listen on {settings.bind}: {error.strerror or error}"
        ) from error
    listening.setblocking(False)
    return listening


class Acceptor:
    """Accepts connections one by one, and reads the PROXY header of connections from proxies."""

    def __init__(self, protocol: str, proxies: Networks) -> None:
        """:param protocol: for the log. :param proxies: their connections begin with a PROXY header."""
        self._protocol = protocol
        self._proxies = proxies
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, listening: socket.socket, on_connection: OnConnection) -> None:
        """Accept connections until ``close``. :param on_connection: called for many connections at the same time."""
        self._spawn(self._accept(listening, on_connection))

    async def close(self) -> None:
        """Stop accepting, and drop connections whose ``on_connection`` has not returned."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket, on_connection: OnConnection) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    client, address = await loop.sock_accept(listening)
                except OSError as error:  # no free file descriptor, or the client disconnected first
                    log.warning(f"{self._protocol} accept failed", error=str(error))
                    await asyncio.sleep(0.1)
                    continue
                self._spawn(self._read_proxy_header(client, str(address[0]), on_connection))

    async def _read_proxy_header(self, client: socket.socket, peer: str, on_connection: OnConnection) -> None:
        try:
            if proxy_protocol.is_among(self._proxies, peer):
                peer = await proxy_protocol.read_header(client) or peer
        except (OSError, proxy_protocol.MalformedProxyHeader) as error:
            cause = str(error) or type(error).__name__
            log.warning(f"{self._protocol} PROXY header refused", peer=peer, error=cause)
            client.close()
            return
        except asyncio.CancelledError:
            client.close()
            raise
        await on_connection(client, peer)

    async def start_tls_server(
        self,
        client: socket.socket,
        peer: str,
        connection: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        seconds: float,
        closing_seconds: float,
    ) -> None:
        """Start ``connection`` with TLS. A handshake that fails, or takes longer than ``seconds``, is only logged."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                client,
                ssl=context,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=closing_seconds,
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are subclasses
            cause = str(error) or type(error).__name__
            log.info(f"{self._protocol} TLS handshake failed", peer=peer, error=cause)
