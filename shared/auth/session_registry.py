"""The open connections of one service that mail clients connect to (pop3_out, smtp_in), and their limits.

The registry counts connections in all and per network, and sessions per account. A connection counts from its admission
on, which for implicit TLS is before the handshake.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Generic, Protocol, TypeVar

import structlog
from prometheus_client import Gauge

from shared.auth.throttle import network_of
from shared.db.database import Database
from shared.errors import Temporary
from shared.model import Local
from shared.settings import Settings
from shared.store import accounts

CHECK_SECONDS = 10.0
"""Timeout of one check of the logins: seconds; the next check repeats what failed."""

log = structlog.get_logger()


class ClientConnection(Protocol):
    """A connection as the registry uses it."""

    peer: str
    """IP address of the client."""

    @property
    def account(self) -> Local | None:
        """The account that the session is logged in to, None before the login."""

    def on_account_changed(self) -> None:
        """End the session: the account was disabled, removed or given another password."""


C = TypeVar("C", bound=ClientConnection)
K = TypeVar("K")


class SessionRegistry(Generic[C]):
    """Admits connections and sessions within the limits, and keeps the open ones.

    :ivar connections: open connections, in no order.
    :ivar closed: set while no connection is open.
    """

    def __init__(self, protocol: str, gauge: Gauge, settings: Settings, max_connections: int) -> None:
        """:param protocol: protocol name for the log. :param gauge: shows the number of open connections. :param
        max_connections: open connections in all; the settings limit those per network and per account."""
        self.connections: set[C] = set()
        self.closed = asyncio.Event()
        self.closed.set()
        self._protocol = protocol
        self._gauge = gauge
        self._max_connections = max_connections
        self._max_per_network = settings.max_connections_per_address
        self._max_per_account = settings.max_connections_per_account
        self._by_network: Counter[str] = Counter()
        self._by_account: Counter[int] = Counter()
        self._accounts: dict[C, int] = {}

    def admit(self, connection: C) -> bool:
        """Register a connection if the limits allow one more. Returns whether it is registered."""
        network = network_of(connection.peer)
        open_, from_network = len(self.connections), self._by_network[network]
        if open_ >= self._max_connections or from_network >= self._max_per_network:
            log.warning(
                "connection refused",
                protocol=self._protocol,
                peer=connection.peer,
                open=open_,
                open_from_network=from_network,
            )
            return False
        self.connections.add(connection)
        self._by_network[network] += 1
        self.closed.clear()
        self._gauge.inc()
        return True

    def remove(self, connection: C) -> None:
        """Unregister a connection that was admitted and is closed now."""
        self.connections.discard(connection)
        _decrement(self._by_network, network_of(connection.peer))
        self._end_account_session(connection)
        if not self.connections:
            self.closed.set()
        self._gauge.dec()

    def register_session(self, connection: C, local: Local) -> bool:
        """Count a session of this account if the limit allows one more. Returns whether it is counted.

        A second login on a connection (after STARTTLS) replaces the first one. A login that ends after its connection
        is no session: nothing would end its count.
        """
        if connection not in self.connections:
            return False
        self._end_account_session(connection)
        if self._by_account[local.id] >= self._max_per_account:
            log.warning(
                "session refused",
                protocol=self._protocol,
                peer=connection.peer,
                local=local.address,
                open=self._by_account[local.id],
            )
            return False
        self._by_account[local.id] += 1
        self._accounts[connection] = local.id
        return True

    def logins(self) -> set[tuple[int, str]]:
        """The logins (account id, password hash) of all open sessions."""
        return {(local.id, local.password_hash) for _, local in self._logged_in()}

    def end_sessions(self, logins: set[tuple[int, str]]) -> None:
        """End the sessions of these logins."""
        for connection, local in self._logged_in():
            if (local.id, local.password_hash) in logins:
                connection.on_account_changed()

    async def end_invalid_sessions(self, database: Database, interval_seconds: float) -> None:
        """End sessions whose account was disabled, removed or given another password. Never returns."""
        while True:
            await asyncio.sleep(interval_seconds)
            logins = self.logins()
            if not logins:
                continue
            try:
                async with database.transaction(CHECK_SECONDS) as connection:
                    valid = await accounts.valid_logins(connection, logins)
            except Temporary as failure:
                log.warning("session check failed", protocol=self._protocol, error=str(failure))
            except Exception:  # a defect must not end the checks: sessions would outlive their accounts
                log.exception("session check failed", protocol=self._protocol)
            else:
                self.end_sessions(logins - valid)

    def _logged_in(self) -> list[tuple[C, Local]]:
        return [(each, local) for each in self.connections if (local := each.account) is not None]

    def _end_account_session(self, connection: C) -> None:
        account_id = self._accounts.pop(connection, None)
        if account_id is not None:
            _decrement(self._by_account, account_id)


def _decrement(counts: Counter[K], key: K) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
