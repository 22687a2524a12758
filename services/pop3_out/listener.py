"""The two ports of the service, its connections and their limits."""

from __future__ import annotations

import asyncio
import time

import structlog
from prometheus_client import Gauge

from services.pop3_out.connection import Pop3Connection
from services.pop3_out.interfaces import ClientInfo, MailboxStore, Verifier
from services.pop3_out.mailbox_store import DatabaseStore
from services.pop3_out.readahead import ACCOUNT_OCTETS, PROCESS_OCTETS
from services.pop3_out.replies import STOPPING
from services.pop3_out.session import Pop3Session
from shared.amqp import publications
from shared.auth.authenticator import Authenticator, plaintext_allowed
from shared.auth.session_registry import SessionRegistry
from shared.model import Local
from shared.net import listening, server_tls
from shared.runtime.memory_budget import MemoryBudget
from shared.runtime.process import Service
from shared.runtime.served_listener import CHECK_LOGINS_SECONDS, MAX_CONNECTIONS, ServedListener
from shared.runtime.tasks import cancel_tasks
from shared.settings import Settings
from shared.store.last_logins import LAST_SECONDS, LastLogins

SESSIONS = Gauge("mailgroup_pop3_sessions", "Open POP3 connections.")

log = structlog.get_logger()


class Pop3Listener(ServedListener):
    """Accepts connections, and closes them when the service stops.

    :ivar registry: the open connections.
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
        self.registry: SessionRegistry[Pop3Connection] = SessionRegistry("pop3", SESSIONS, settings, max_connections)
        super().__init__("pop3", settings, certificate, self.registry, MemoryBudget(PROCESS_OCTETS), ACCOUNT_OCTETS)
        self._store = store
        self._logins = logins
        self._logged_in_at: dict[int, float] = {}  # by account id, monotonic seconds

    async def open(self) -> None:
        """Listen on both ports. :raises SettingsError: a port cannot be used."""
        settings = self._settings
        await self._listen(("POP3_PORT", settings.pop3_port), ("POP3S_PORT", settings.pop3s_port))

    def _create(self, peer: str, *, tls: bool) -> Pop3Connection:
        return Pop3Connection(self, self._open_session, tls=tls, peer=peer)

    def _open_session(self, connection: Pop3Connection, tls: bool) -> Pop3Session:
        clear_allowed = plaintext_allowed(self._settings, connection.peer)
        client = ClientInfo(connection.peer, tls, clear_allowed, self._settings.pop3_login_delay)
        return Pop3Session(connection, self._store, self._logins, self.budget, client)

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

    async def close(self) -> None:
        """Stop (``ServedListener.stop``)."""
        await self.stop(STOPPING)


async def serve(service: Service) -> None:
    """Serve until the service stops. :raises SettingsError: a port or the certificate cannot be used."""
    settings, database, broker = service.settings, service.database, service.broker
    last = LastLogins(database, "pop3")
    logins = Authenticator(database, settings, service.name, last=last)
    certificate = server_tls.Certificate(settings)
    max_connections = listening.limit_by_open_files(MAX_CONNECTIONS)

    def announce_change(local: Local) -> None:
        broker.publish_behind(publications.changed([(local.id, local.address)]))

    store = DatabaseStore(database, announce_change=announce_change)
    listener = Pop3Listener(settings, store, logins, certificate, max_connections)
    await listener.open()
    log.info("listening", bind=settings.bind, pop3_port=settings.pop3_port, pop3s_port=settings.pop3s_port)
    background = [
        asyncio.create_task(work)
        for work in (
            listener.check_deadlines_periodically(),
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
