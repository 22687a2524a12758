"""The two ports of the service, its connections and their limits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import structlog
from prometheus_client import Gauge

from services.imap_out.connection import ImapConnection
from services.imap_out.context import ImapContext
from services.imap_out.folder_changes import FolderChanges
from services.imap_out.folder_store import FolderStore
from services.imap_out.folder_watch import FolderWatch
from services.imap_out.interfaces import ImapClientInfo, LoginVerifier
from services.imap_out.session import STOPPING, ImapSession
from services.imap_out.structures_ahead import StructuresAhead
from shared.amqp import publications
from shared.amqp.payloads import ChangedItem, read_payload
from shared.amqp.topology import CHANGED
from shared.auth.authenticator import Authenticator, plaintext_allowed
from shared.auth.session_registry import SessionRegistry
from shared.errors import Permanent
from shared.model import Local
from shared.net import listening, server_tls
from shared.runtime.memory_budget import MemoryBudget
from shared.runtime.process import Service
from shared.runtime.served_listener import CHECK_LOGINS_SECONDS, MAX_CONNECTIONS, ServedListener
from shared.runtime.tasks import cancel_tasks
from shared.settings import Settings
from shared.store.last_logins import LAST_SECONDS, LastLogins

SESSIONS = Gauge("mailgroup_imap_sessions", "Open IMAP connections.")

PROCESS_OCTETS = 32 * 1024 * 1024
"""Memory of all sessions of the process together for mails on their way: octets, without a check for the smallest
pieces and for unsent replies."""
ACCOUNT_OCTETS = 8 * 1024 * 1024
"""Share of an account in this memory: octets; four accounts whose clients read slowly use up the memory, one does not.
Then sessions are served more slowly, with the smallest pieces."""

ANNOUNCE_SECONDS = 0.02
"""Least interval of two hints ``changed``: seconds. A busy process names all people of the interval in one message."""

log = structlog.get_logger()


class ImapListener(ServedListener):
    """Accepts connections, and closes them when the service stops.

    :ivar registry: the open connections.
    """

    def __init__(
        self,
        settings: Settings,
        store: FolderStore,
        changes: FolderChanges,
        logins: LoginVerifier,
        watch: FolderWatch,
        announce_change: Callable[[Local], None],
        certificate: server_tls.Certificate,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """:param announce_change: tells other processes that a mailbox has changed.
        :param certificate: for STARTTLS and the TLS port. :param max_connections: open connections in all."""
        self.registry: SessionRegistry[ImapConnection] = SessionRegistry("imap", SESSIONS, settings, max_connections)
        super().__init__("imap", settings, certificate, self.registry, MemoryBudget(PROCESS_OCTETS), ACCOUNT_OCTETS)
        self._store = store
        self._changes = changes
        self._logins = logins
        self._watch = watch
        self._announce_change = announce_change

    async def open(self) -> None:
        """Listen on both ports. :raises SettingsError: a port cannot be used."""
        settings = self._settings
        await self._listen(("IMAP_PORT", settings.imap_port), ("IMAPS_PORT", settings.imaps_port))

    def _create(self, peer: str, *, tls: bool) -> ImapConnection:
        return ImapConnection(self, self._open_session, tls=tls, peer=peer)

    def _open_session(self, connection: ImapConnection, tls: bool) -> ImapSession:
        client = ImapClientInfo(connection.peer, plaintext_allowed(self._settings, connection.peer))
        return ImapSession(
            ImapContext(
                connection,
                self._store,
                self._changes,
                self._logins,
                self._watch,
                client,
                tls,
                self._settings.max_message_bytes,
                self._announce_change,
            )
        )

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

    async def close(self) -> None:
        """Stop (``ServedListener.stop``)."""
        await self.stop(STOPPING)


async def serve(service: Service) -> None:
    """Serve until the service stops. :raises SettingsError: a port or the certificate cannot be used."""
    settings, database, broker = service.settings, service.database, service.broker
    last = LastLogins(database, "imap")
    logins = Authenticator(database, settings, service.name, last=last)
    certificate = server_tls.Certificate(settings)
    max_connections = listening.limit_by_open_files(MAX_CONNECTIONS)
    store = FolderStore(database)
    watch = FolderWatch(store, lambda: broker.ready)
    changes = FolderChanges(database)
    origin = secrets.token_hex(8)

    def take_hint(body: bytes) -> None:
        try:
            item = read_payload(ChangedItem, body)
        except Permanent as error:
            log.warning("hint ignored", error=str(error))
            return
        if item.origin != origin:
            watch.hint(item.ids)

    unannounced: dict[int, str] = {}
    loop = asyncio.get_running_loop()
    announced_at = 0.0

    def announce_change(local: Local) -> None:
        if not unannounced:  # at once, but after the sessions whose changes were committed together
            loop.call_at(announced_at + ANNOUNCE_SECONDS, publish_changes)
        unannounced[local.id] = local.address

    def publish_changes() -> None:
        nonlocal announced_at
        announced_at = loop.time()
        broker.publish_behind(publications.changed(unannounced.items(), origin))
        unannounced.clear()

    broker.listen(f"{CHANGED}.#", take_hint)
    listener = ImapListener(settings, store, changes, logins, watch, announce_change, certificate, max_connections)
    await listener.open()
    log.info("listening", bind=settings.bind, imap_port=settings.imap_port, imaps_port=settings.imaps_port)
    background = [
        asyncio.create_task(work)
        for work in (
            listener.check_deadlines_periodically(),
            listener.registry.end_invalid_sessions(database, CHECK_LOGINS_SECONDS),
            certificate.reload_periodically(),
            watch.run(),
            changes.run(),
            store.structures.run(),
            StructuresAhead(database, store.structures, listener.budget).run(),
            last.run(service.wait_for_stop),
        )
    ]
    try:
        await service.stopping.wait()
    finally:
        await listener.close()
        await changes.drain()
        await cancel_tasks(background)
        await last.write(LAST_SECONDS)
        logins.close()
