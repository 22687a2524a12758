"""The two ports of the service, its connections and their limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

import structlog
from prometheus_client import Gauge

from services.imap_out.connection import ImapConnection
from services.imap_out.context import ImapContext
from services.imap_out.folder_store import FolderStore
from services.imap_out.folder_watch import FolderWatch
from services.imap_out.interfaces import ImapClientInfo, LoginVerifier
from services.imap_out.session import STOPPING, ImapSession
from shared.amqp import publications
from shared.amqp.payloads import ChangedItem, read_payload
from shared.amqp.topology import CHANGED
from shared.auth.authenticator import Authenticator, plaintext_allowed
from shared.auth.session_registry import SessionRegistry
from shared.errors import Permanent
from shared.model import Local
from shared.net import listening, server_tls
from shared.net.listening import Acceptor
from shared.runtime.memory_budget import MemoryBudget
from shared.runtime.process import Service
from shared.runtime.served_connection import CLOSING_SECONDS, TLS_SECONDS
from shared.runtime.tasks import cancel_tasks
from shared.settings import Settings

SESSIONS = Gauge("mailgroup_imap_sessions", "Open IMAP connections.")

MAX_CONNECTIONS = 4_000
"""Open connections in all, if the process may open as many files."""
PROCESS_OCTETS = 32 * 1024 * 1024
"""Memory of all sessions of the process together for mails on their way: octets, without a check for the smallest
pieces and for unsent replies."""
ACCOUNT_OCTETS = 8 * 1024 * 1024
"""Share of an account in this memory: octets; four accounts whose clients read slowly use up the memory, one does not.
Then sessions are served more slowly, with the smallest pieces."""
CHECK_LOGINS_SECONDS = 1.0
"""Interval of the check whether the accounts of open sessions have changed: seconds."""
CHECK_DEADLINES_SECONDS = 1.0
STOP_IDLE_SECONDS = 1.0
"""Time for the next command of a client, when the server stops: seconds; then the client gets BYE before it."""
STOP_BUSY_SECONDS = 5.0
"""Time for running commands to end when the server stops: seconds."""

log = structlog.get_logger()


class ImapListener:
    """Accepts connections, and closes them when the service stops.

    :ivar registry: the open connections.
    :ivar budget: memory for mails on the way to and from clients.
    """

    def __init__(
        self,
        settings: Settings,
        store: FolderStore,
        logins: LoginVerifier,
        watch: FolderWatch,
        announce_change: Callable[[Local], None],
        certificate: server_tls.Certificate,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """:param announce_change: tells other processes that a mailbox has changed.
        :param certificate: for STARTTLS and the TLS port. :param max_connections: open connections in all."""
        self.certificate = certificate
        self.registry: SessionRegistry[ImapConnection] = SessionRegistry("imap", SESSIONS, settings, max_connections)
        self.budget = MemoryBudget(PROCESS_OCTETS)
        self._account_budgets: WeakValueDictionary[int, MemoryBudget] = WeakValueDictionary()  # of open sessions
        self._settings = settings
        self._store = store
        self._logins = logins
        self._watch = watch
        self._announce_change = announce_change
        self._acceptor = Acceptor("imap", settings.proxies)

    async def open(self) -> None:
        """Listen on both ports. :raises SettingsError: a port cannot be used."""
        settings = self._settings
        clear, tls = listening.listen_all(
            settings, [("IMAP_PORT", settings.imap_port), ("IMAPS_PORT", settings.imaps_port)]
        )
        await self._acceptor.serve(clear, partial(self._create, tls=False))
        self._acceptor.serve_tls(
            tls,
            partial(self._create, tls=True),
            lambda: self.certificate.context,
            handshake_seconds=TLS_SECONDS,
            closing_seconds=CLOSING_SECONDS,
        )

    def _create(self, peer: str, *, tls: bool) -> ImapConnection:
        return ImapConnection(self, self._open_session, tls=tls, peer=peer)

    def _open_session(self, connection: ImapConnection, tls: bool) -> ImapSession:
        client = ImapClientInfo(connection.peer, plaintext_allowed(self._settings, connection.peer))
        return ImapSession(
            ImapContext(
                connection,
                self._store,
                self._logins,
                self._watch,
                client,
                tls,
                self._settings.max_message_bytes,
                self._announce_change,
            )
        )

    def admit(self, connection: ImapConnection) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""
        return self.registry.admit(connection)

    def on_closed(self, connection: ImapConnection) -> None:
        """Count the connection no longer, and log what its session did."""
        self.registry.remove(connection)
        session = connection.session
        if session is not None and session.local is not None:
            stats = session.context.stats
            log.info(
                "session closed",
                local=session.local.address,
                peer=connection.peer,
                commands=stats.commands,
                fetched=stats.fetched,
                octets=stats.octets,
                appended=stats.appended,
                expunged=stats.expunged,
            )

    def register_session(self, connection: ImapConnection, local: Local) -> str | None:
        """Count a session of this account. Returns None, or the reason of a refusal."""
        if not self.registry.register_session(connection, local):
            return "too many sessions of this account"
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


async def check_deadlines_periodically(listener: ImapListener) -> None:
    """Close connections whose deadlines have passed. Never returns."""
    while True:
        await asyncio.sleep(CHECK_DEADLINES_SECONDS)
        listener.check_deadlines()


async def serve(service: Service) -> None:
    """Serve until the service stops. :raises SettingsError: a port or the certificate cannot be used."""
    settings, database, broker = service.settings, service.database, service.broker
    logins = Authenticator(database, settings, service.name)
    certificate = server_tls.Certificate(settings)
    max_connections = listening.limit_by_open_files(MAX_CONNECTIONS)
    store = FolderStore(database)
    watch = FolderWatch(store, lambda: broker.ready)

    def take_hint(body: bytes) -> None:
        try:
            watch.hint(read_payload(ChangedItem, body).ids)
        except Permanent as error:
            log.warning("hint ignored", error=str(error))

    def announce_change(local: Local) -> None:
        watch.hint([local.id])
        broker.publish_behind(publications.changed([(local.id, local.address)]))

    broker.listen(f"{CHANGED}.#", take_hint)
    listener = ImapListener(settings, store, logins, watch, announce_change, certificate, max_connections)
    await listener.open()
    log.info("listening", bind=settings.bind, imap_port=settings.imap_port, imaps_port=settings.imaps_port)
    background = [
        asyncio.create_task(work)
        for work in (
            check_deadlines_periodically(listener),
            listener.registry.end_invalid_sessions(database, CHECK_LOGINS_SECONDS),
            certificate.reload_periodically(),
            watch.run(),
        )
    ]
    try:
        await service.stopping.wait()
    finally:
        await listener.close()
        await cancel_tasks(background)
        logins.close()
