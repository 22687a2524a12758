"""The ports that mail clients come in at, and how connections are taken there (pop3_out, smtp_in).

Where connections have to count before their TLS handshake, or come from proxies that tell whom they speak for, they are
taken one by one (``Doorkeeper``). Elsewhere the event loop's own server does it, which is faster.
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
"""Connections that the kernel keeps until they are taken."""
SPARE_FILES = 100
"""Files that a process has open beside its connections."""

OnConnection = Callable[[socket.socket, str], Awaitable[None]]
"""Takes a connection and the client's IP address."""

log = structlog.get_logger()


def limit_by_open_files(wanted: int) -> int:
    """How many connections of ``wanted`` this process may have open, after raising its limit of open files as far as it
    goes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + SPARE_FILES
    limit = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(1, limit - SPARE_FILES)


def listen(settings: Settings, setting: str, port: int) -> socket.socket:
    """A listening socket. :param setting: that gives the port. :raises SettingsError: it cannot be had."""
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
    """Takes connections one by one, and hears on behalf of whom proxies come."""

    def __init__(self, protocol: str, proxies: Networks) -> None:
        """:param protocol: for the log. :param proxies: whose connections begin with a header of the PROXY protocol."""
        self._protocol = protocol
        self._proxies = proxies
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, listening: socket.socket, welcome: OnConnection) -> None:
        """Take what comes, until ``close``. :param welcome: is called for many at once."""
        self._spawn(self._accept(listening, welcome))

    async def close(self) -> None:
        """Take no more, and drop what has not come in yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket, welcome: OnConnection) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    client, address = await loop.sock_accept(listening)
                except OSError as error:  # out of files, or the client left before it was taken
                    log.warning(f"{self._protocol} connection not taken", reason=str(error))
                    await asyncio.sleep(0.1)
                    continue
                self._spawn(self._read_proxy_header(client, str(address[0]), welcome))

    async def _read_proxy_header(self, client: socket.socket, peer: str, welcome: OnConnection) -> None:
        try:
            if proxy_protocol.is_among(self._proxies, peer):
                peer = await proxy_protocol.read_header(client) or peer
        except (OSError, proxy_protocol.MalformedProxyHeader) as error:
            reason = str(error) or type(error).__name__
            log.warning(f"{self._protocol} connection of a proxy refused", peer=peer, reason=reason)
            client.close()
            return
        except asyncio.CancelledError:
            client.close()
            raise
        await welcome(client, peer)

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
        """Begin ``connection`` with TLS. A handshake that fails within ``seconds`` is logged, and that was all."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                client,
                ssl=context,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=closing_seconds,
            )
        except OSError as error:  # ssl.SSLError is one, and so is the time-out
            reason = str(error) or type(error).__name__
            log.info(f"{self._protocol} handshake failed", peer=peer, reason=reason)
