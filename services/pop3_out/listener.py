"""The two ports of the service, its connections and their limits."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from weakref import WeakValueDictionary

import structlog
from prometheus_client import Gauge

from services.pop3_out.connection import Pop3Connection
from services.pop3_out.interfaces import ClientInfo, MailboxStore, Verifier
from services.pop3_out.mailbox_store import DatabaseStore
from services.pop3_out.readahead import ACCOUNT_OCTETS, PROCESS_OCTETS
from services.pop3_out.replies import STOPPING
from services.pop3_out.session import Pop3Session
from shared.auth.authenticator import Authenticator, plaintext_allowed
from shared.auth.session_registry import SessionRegistry
from shared.model import Local
from shared.net import listening, server_tls
from shared.net.listening import Acceptor
from shared.runtime.memory_budget import MemoryBudget
from shared.runtime.process import Service
from shared.runtime.served_connection import CLOSING_SECONDS, TLS_SECONDS
from shared.runtime.tasks import cancel_tasks
from shared.settings import Settings
from shared.store.last_logins import LAST_SECONDS, LastLogins

SESSIONS = Gauge("mailgroup_pop3_sessions", "Open POP3 connections.")

MAX_CONNECTIONS = 4_000
"""Open connections in all, if the process may open as many files."""
CHECK_LOGINS_SECONDS = 1.0
"""Interval of the check whether the accounts of open sessions have changed: seconds."""
CHECK_DEADLINES_SECONDS = 1.0
STOP_IDLE_SECONDS = 1.0
"""Time for the next command of a client, when the server stops: seconds; then the client gets the reply before it."""
STOP_BUSY_SECONDS = 5.0
"""Time for running commands to end when the server stops: seconds."""

log = structlog.get_logger()


class Pop3Listener:
    """Accepts connections, and closes them when the service stops.

    :ivar registry: the open connections.
    :ivar budget: memory for mails on the way to clients.
    """

    def __init__(
        self,
        settings: Settings,
        store: MailboxStore,
        logins: Verifier,
        certificate: server_tls.Certificate,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """:param certificate: for STLS and the TLS port. :param max_connections: open connections in all."""
        self.certificate = certificate
        self.registry: SessionRegistry[Pop3Connection] = SessionRegistry("pop3", SESSIONS, settings, max_connections)
        self.budget = MemoryBudget(PROCESS_OCTETS)
        self._account_budgets: WeakValueDictionary[int, MemoryBudget] = WeakValueDictionary()  # of open sessions
        self._settings = settings
        self._store = store
        self._logins = logins
        self._acceptor = Acceptor("pop3", settings.proxies)
        self._logged_in_at: dict[int, float] = {}  # by account id, monotonic seconds

    async def open(self) -> None:
        """Listen on both ports. :raises SettingsError: a port cannot be used."""
        settings = self._settings
        clear, tls = listening.listen_all(
            settings, [("POP3_PORT", settings.pop3_port), ("POP3S_PORT", settings.pop3s_port)]
        )
        await self._acceptor.serve(clear, partial(self._create, tls=False))
        self._acceptor.serve_tls(
            tls,
            partial(self._create, tls=True),
            lambda: self.certificate.context,
            handshake_seconds=TLS_SECONDS,
            closing_seconds=CLOSING_SECONDS,
        )

    def _create(self, peer: str, *, tls: bool) -> Pop3Connection:
        return Pop3Connection(self, self._open_session, tls=tls, peer=peer)

    def _open_session(self, connection: Pop3Connection, tls: bool) -> Pop3Session:
        clear_allowed = plaintext_allowed(self._settings, connection.peer)
        client = ClientInfo(connection.peer, tls, clear_allowed, self._settings.pop3_login_delay)
        return Pop3Session(connection, self._store, self._logins, self.budget, client)

    def admit(self, connection: Pop3Connection) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""
        return self.registry.admit(connection)

    def on_closed(self, connection: Pop3Connection) -> None:
        """Count the connection no longer, and log what its session did."""
        self.registry.remove(connection)
        session = connection.session
        if session is not None and session.local is not None:
            log.info(
                "session closed",
                local=session.local.address,
                peer=connection.peer,
                retrieved=session.stats.retrieved,
                octets=session.stats.octets,
                deleted=session.stats.deleted,
            )

    def register_session(self, connection: Pop3Connection, local: Local) -> str | None:
        """Count a session of this account. Returns None, or the reason of a refusal with its response code."""
        delay, now = self._settings.pop3_login_delay, time.monotonic()
        if delay:
            if now - self._logged_in_at.get(local.id, -delay) < delay:
                return f"[LOGIN-DELAY] there was a login less than {delay} seconds ago"
            self._logged_in_at[local.id] = now
        if not self.registry.register_session(connection, local):
            return "[IN-USE] too many sessions of this account"
        return None

    def account_budget(self, local_id: int) -> MemoryBudget:
        """The share of an account in the memory, for all of its sessions."""
        return self._account_budgets.setdefault(local_id, MemoryBudget(ACCOUNT_OCTETS, self.budget))

    def check_deadlines(self) -> None:
        """Close the connections whose deadlines have passed."""
        now = time.monotonic()
        for connection in list(self.registry.connections):
            connection.check_deadlines(now)

    async def close(self) -> None:
        """Stop accepting, let running commands end, and close all connections within STOP_BUSY_SECONDS."""
        await self._acceptor.close()
        connections = self.registry.connections
        for connection in list(connections):
            connection.stop()
        started = time.monotonic()
        while connections and (passed := time.monotonic() - started) < STOP_BUSY_SECONDS:
            for connection in list(connections):
                if passed >= STOP_IDLE_SECONDS and not connection.busy:
                    connection.end_session(STOPPING)
            await asyncio.sleep(0.05)
        for connection in list(connections):
            connection.abort()
        await asyncio.sleep(0)


async def check_deadlines_periodically(listener: Pop3Listener) -> None:
    """Close connections whose deadlines have passed. Never returns."""
    while True:
        await asyncio.sleep(CHECK_DEADLINES_SECONDS)
        listener.check_deadlines()


async def serve(service: Service) -> None:
    """Serve until the service stops. :raises SettingsError: a port or the certificate cannot be used."""
    settings, database = service.settings, service.database
    last = LastLogins(database, "pop3")
    logins = Authenticator(database, settings, service.name, last=last)
    certificate = server_tls.Certificate(settings)
    max_connections = listening.limit_by_open_files(MAX_CONNECTIONS)
    listener = Pop3Listener(settings, DatabaseStore(database), logins, certificate, max_connections)
    await listener.open()
    log.info("listening", bind=settings.bind, pop3_port=settings.pop3_port, pop3s_port=settings.pop3s_port)
    background = [
        asyncio.create_task(work)
        for work in (
            check_deadlines_periodically(listener),
            listener.registry.end_invalid_sessions(database, CHECK_LOGINS_SECONDS),
            certificate.reload_periodically(),
            last.run(service.wait_for_stop),
        )
    ]
    try:
        await service.stopping.wait()
    finally:
        await listener.close()
        await cancel_tasks(background)
        await last.write(LAST_SECONDS)
        logins.close()
