"""Listening sockets for mail clients, and how their connections are accepted (pop3_out, smtp_in).

Connections that count before their TLS handshake, and connections from load balancers with a PROXY header, are accepted
one by one. The event loop's server accepts the others, which is faster.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any

import structlog

from shared.net import proxy_protocol
from shared.net.proxy_protocol import Networks
from shared.settings import Settings, SettingsError

BACKLOG = 512
"""Connections that the kernel holds until they are accepted."""
SPARE_FILES = 200
"""Files that a process has open besides its connections, which are counted after their PROXY header."""
MAX_PENDING_HEADERS = 100
"""Connections of load balancers whose PROXY header has not arrived, for a process; more are closed. The header follows
the connection at once."""

log = structlog.get_logger()


def limit_by_open_files(requested: int) -> int:
    """Raise the process's limit of open files as far as ``requested`` connections need and the system allows.

    Returns how many connections the process may have open, at most ``requested``.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = requested + SPARE_FILES
    limit = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(1, limit - SPARE_FILES)


def listen(settings: Settings, setting: str, port: int) -> socket.socket:
    """Open a listening socket.

    :param setting: name of the setting with the port, for the error.
    :raises SettingsError: the address or port cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    try:
        listening = socket.create_server((settings.bind, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"MAILGROUP_{setting}: {port}: cannot listen on {settings.bind}: {error.strerror or error}"
        ) from error
    listening.setblocking(False)
    return listening


def listen_all(settings: Settings, ports: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """Open a listening socket for each (setting, port), or none. :raises SettingsError: as ``listen``."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(listen(settings, setting, port)) for setting, port in ports]
        opened.pop_all()
    return sockets


class AdmittedConnection(asyncio.Protocol):
    """A connection whose admission is decided before its TLS handshake."""

    def admit(self) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""
        raise NotImplementedError

    def close_if_unused(self) -> None:
        """After a handshake: count the connection no longer if ``connection_made`` was not called."""
        raise NotImplementedError


Create = Callable[[str], AdmittedConnection]
"""Makes the protocol of a connection. The argument is the client's IP address, "" if the transport knows it."""
OnConnection = Callable[[socket.socket, str], Awaitable[None]]
"""Starts a connection. The second argument is the client's IP address."""


class Acceptor:
    """Accepts connections until ``close``, and reads the PROXY headers of load balancers."""

    def __init__(self, protocol: str, proxies: Networks) -> None:
        """:param protocol: protocol name for the log. :param proxies: networks whose connections begin with a PROXY
        header."""
        self._protocol = protocol
        self._proxies = proxies
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._pending_headers = 0

    async def serve(self, listening: socket.socket, create: Create) -> None:
        """Serve connections that start without TLS. They decide their admission in ``connection_made``."""
        loop = asyncio.get_running_loop()

        async def start(client: socket.socket, peer: str) -> None:
            await loop.connect_accepted_socket(lambda: create(peer), client)

        if self._proxies:
            self._spawn(self._accept(listening, start))
        else:
            self._servers.append(await loop.create_server(lambda: create(""), sock=listening, backlog=BACKLOG))

    def serve_tls(
        self,
        listening: socket.socket,
        create: Create,
        context: Callable[[], ssl.SSLContext],
        *,
        handshake_seconds: float,
        closing_seconds: float,
    ) -> None:
        """Serve connections that start with TLS; those that are not admitted are closed before the handshake.

        :param context: returns the TLS context of the next connection.
        """

        async def start(client: socket.socket, peer: str) -> None:
            connection = create(peer)
            if not connection.admit():
                client.close()
                return
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection,
                    client,
                    ssl=context(),
                    ssl_handshake_timeout=handshake_seconds,
                    ssl_shutdown_timeout=closing_seconds,
                )
            except OSError as error:  # ssl.SSLError and the timeout are OSErrors
                log_handshake_failure(self._protocol, peer, error)
            finally:
                connection.close_if_unused()

        self._spawn(self._accept(listening, start))

    async def close(self) -> None:
        """Accept no more, and close connections that have not started."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket, start: OnConnection) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    client, address = await loop.sock_accept(listening)
                except OSError as error:  # too many open files, or the client disconnected before
                    log.warning("accept failed", protocol=self._protocol, error=str(error))
                    await asyncio.sleep(0.1)
                    continue
                self._spawn(self._read_proxy_header(client, str(address[0]), start))

    async def _read_proxy_header(self, client: socket.socket, peer: str, start: OnConnection) -> None:
        if proxy_protocol.is_among(self._proxies, peer):
            self._pending_headers += 1
            try:
                if self._pending_headers > MAX_PENDING_HEADERS:
                    raise proxy_protocol.MalformedProxyHeader(f"{MAX_PENDING_HEADERS} other headers are awaited")
                peer = await proxy_protocol.read_header(client) or peer
            except (OSError, proxy_protocol.MalformedProxyHeader) as error:
                log.warning("proxy header refused", protocol=self._protocol, peer=peer, error=_text(error))
                client.close()
                return
            except asyncio.CancelledError:
                client.close()
                raise
            finally:
                self._pending_headers -= 1
        await start(client, peer)


def log_handshake_failure(protocol: str, peer: str, error: OSError) -> None:
    """Log a TLS handshake that failed: scanners and clients with the wrong port make many."""
    log.info("tls handshake failed", protocol=protocol, peer=peer, error=_text(error))


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
