"""The listener of a protocol whose connections are served here (served_connection.py): ports, deadlines, the stop.

A protocol derives its listener (pop3_out, imap_out), which knows its settings and makes its sessions.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

from shared.net import listening
from shared.net.listening import Acceptor
from shared.net.server_tls import Certificate
from shared.runtime.memory_budget import MemoryBudget
from shared.runtime.served_connection import CLOSING_SECONDS, TLS_SECONDS, ServedConnection
from shared.settings import Settings

MAX_CONNECTIONS = 4_000
"""Open connections in all, if the process may open as many files."""
CHECK_LOGINS_SECONDS = 1.0
"""Interval of the check whether the accounts of open sessions have changed: seconds."""
CHECK_DEADLINES_SECONDS = 1.0
STOP_IDLE_SECONDS = 1.0
"""Time for the next command of a client, when the server stops: seconds; then the client gets the last reply before
it."""
STOP_BUSY_SECONDS = 5.0
"""Time for running commands to end when the server stops: seconds."""


class OpenConnections(Protocol):
    """The open connections of a listener: its registry (shared/auth/session_registry.py)."""

    @property
    def connections(self) -> Collection[ServedConnection]:
        """The open connections, in no order."""

    def admit(self, connection: Any) -> bool:
        """Register a connection if the limits allow one more. Returns whether it is registered."""


class ServedListener(ABC):
    """Accepts connections, and closes them when the service stops.

    :ivar budget: memory for mails on the way to and from clients.
    """

    def __init__(
        self,
        protocol: str,
        settings: Settings,
        certificate: Certificate,
        opened: OpenConnections,
        budget: MemoryBudget,
        account_octets: int,
    ) -> None:
        """:param protocol: its name for the log. :param certificate: for STARTTLS (STLS) and the TLS port.
        :param account_octets: share of an account in ``budget``."""
        self.certificate = certificate
        self.budget = budget
        self._settings = settings
        self._opened = opened
        self._account_octets = account_octets
        self._account_budgets: WeakValueDictionary[int, MemoryBudget] = WeakValueDictionary()  # of open sessions
        self._acceptor = Acceptor(protocol, settings.proxies)

    @abstractmethod
    def _create(self, peer: str, *, tls: bool) -> ServedConnection:
        """Make a connection. :param tls: TLS from the start."""

    async def _listen(self, clear: tuple[str, int], tls: tuple[str, int]) -> None:
        """Listen on two ports, each with its setting's name. :raises SettingsError: a port cannot be used."""
        for_clear, for_tls = listening.listen_all(self._settings, [clear, tls])
        await self._acceptor.serve(for_clear, partial(self._create, tls=False))
        self._acceptor.serve_tls(
            for_tls,
            partial(self._create, tls=True),
            lambda: self.certificate.context,
            handshake_seconds=TLS_SECONDS,
            closing_seconds=CLOSING_SECONDS,
        )

    def admit(self, connection: ServedConnection) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""
        return self._opened.admit(connection)

    def account_budget(self, local_id: int) -> MemoryBudget:
        """The share of an account in the memory, for all of its sessions."""
        return self._account_budgets.setdefault(local_id, MemoryBudget(self._account_octets, self.budget))

    def check_deadlines(self) -> None:
        """Close the connections whose deadlines have passed."""
        now = time.monotonic()
        for connection in list(self._opened.connections):
            connection.check_deadlines(now)

    async def check_deadlines_periodically(self) -> None:
        """Close connections whose deadlines have passed. Never returns."""
        while True:
            await asyncio.sleep(CHECK_DEADLINES_SECONDS)
            self.check_deadlines()

    async def stop(self, last_reply: bytes) -> None:
        """Stop accepting, let running commands end, and close all connections within STOP_BUSY_SECONDS."""
        await self._acceptor.close()
        opened = self._opened
        for connection in list(opened.connections):
            connection.stop()
        started = time.monotonic()
        while opened.connections and (passed := time.monotonic() - started) < STOP_BUSY_SECONDS:
            for connection in list(opened.connections):
                if passed >= STOP_IDLE_SECONDS and not connection.busy:
                    connection.end_session(last_reply)
            await asyncio.sleep(0.05)
        for connection in list(opened.connections):
            connection.abort()
        await asyncio.sleep(0)
