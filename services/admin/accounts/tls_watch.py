"""Finds out that a port wants TLS from the start: to a client without TLS such a server stays silent."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from shared.model import Server
from shared.net.dial import TlsError, host_port, speaks_tls
from shared.settings import PrivateHosts

QUIET_SECONDS = 1.0
"""Silence of a server after which a TLS handshake is tried: seconds; a greeting takes less as a rule."""
PROBE_SECONDS = 1.5
"""Time limit of that try: seconds; with the silence less than 3 s."""

T = TypeVar("T")


class TlsWatch:
    """Watches one connection to a server, of the account's settings, that is made without TLS at first."""

    def __init__(self, server: Server, allow_private: PrivateHosts) -> None:
        self._server = server
        self._allow_private = allow_private
        self._connected = asyncio.Event()
        self._silent = True

    def note(self, step: str, _found: str = "") -> None:
        """Note a step of the connection, as a ProgressCallback."""
        if step == "connected":
            self._connected.set()
        elif self._connected.is_set():
            self._silent = False

    async def run(self, work: Coroutine[None, None, T]) -> T:
        """Run the work on the connection. If the server is silent, a TLS handshake is tried meanwhile.

        :raises TlsError: the port wants TLS; the work is cancelled.
        """
        working = asyncio.ensure_future(work)
        suspicion = asyncio.ensure_future(self._wants_tls())
        try:
            await asyncio.wait({working, suspicion}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and suspicion.result():
                raise TlsError(
                    f"{host_port(self._server)}: this port wants TLS from the start; "
                    f"choose SSL/TLS (implicit) for {self._server.port}"
                )
            return await working
        finally:
            for task in (working, suspicion):
                task.cancel()
            await asyncio.gather(working, suspicion, return_exceptions=True)

    async def _wants_tls(self) -> bool:
        if self._server.tls == "implicit":
            return False
        await self._connected.wait()
        await asyncio.sleep(QUIET_SECONDS)
        return self._silent and await speaks_tls(self._server, self._allow_private, PROBE_SECONDS)
