"""The three ports of the service, its connections and their limits."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from functools import partial

import structlog
from prometheus_client import Gauge

from services.smtp_in.command_loop import CLOSING_SECONDS
from services.smtp_in.commit_queue import CommitQueue
from services.smtp_in.connection import SmtpConnection
from services.smtp_in.login import TLS_SECONDS, LoginConnection
from shared.auth.authenticator import Authenticator, plaintext_allowed
from shared.auth.session_registry import SessionRegistry
from shared.model import Local
from shared.net import listening, server_tls
from shared.net.listening import Acceptor
from shared.runtime.process import Service
from shared.runtime.tasks import cancel_tasks
from shared.settings import Settings
from shared.store.last_logins import LAST_SECONDS, LastLogins

SESSIONS = Gauge("mailgroup_smtp_sessions", "Open SMTP connections of mail clients.")

MAX_CONNECTIONS = 2_000
"""Open connections in all, if the process may open as many files."""
CHECK_LOGINS_SECONDS = 2.0
"""Interval of the check whether the accounts of open sessions have changed: seconds."""
STOP_SECONDS = 10.0
"""Time to receive and commit the mails that clients are sending when the service stops: seconds."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Port:
    """A listening port."""

    setting: str  # name of the setting with the number
    number: int
    implicit_tls: bool
    clear_auth: bool  # passwords without TLS, if the settings allow that


def ports(settings: Settings) -> tuple[Port, ...]:
    """The ports. SUBMISSION_PORT accepts no password before TLS, whatever the settings allow."""
    return (
        Port("SMTP_PORT", settings.smtp_port, implicit_tls=False, clear_auth=True),
        Port("SUBMISSION_PORT", settings.submission_port, implicit_tls=False, clear_auth=False),
        Port("SMTPS_PORT", settings.smtps_port, implicit_tls=True, clear_auth=False),
    )


class SmtpListener:
    """Accepts connections, and closes them when the service stops.

    :ivar registry: the open connections.
    """

    def __init__(
        self,
        settings: Settings,
        queue: CommitQueue,
        logins: Authenticator,
        certificate: server_tls.Certificate,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """:param certificate: for STARTTLS and the TLS port. :param max_connections: open connections in all."""
        self.registry: SessionRegistry[LoginConnection] = SessionRegistry("smtp", SESSIONS, settings, max_connections)
        self._settings = settings
        self._queue = queue
        self._logins = logins
        self._certificate = certificate
        self._acceptor = Acceptor("smtp", settings.proxies)
        self._host_name = socket.gethostname()

    async def open(self) -> None:
        """Listen on all ports. :raises SettingsError: a port cannot be used."""
        # aiosmtpd logs unknown commands, and a client that is out of step may send its password as one.
        logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)
        chosen = ports(self._settings)
        sockets = listening.listen_all(self._settings, [(port.setting, port.number) for port in chosen])
        for port, listening_socket in zip(chosen, sockets, strict=True):
            create = partial(self._create, port=port)
            if port.implicit_tls:
                self._acceptor.serve_tls(
                    listening_socket,
                    create,
                    lambda: self._certificate.context,
                    handshake_seconds=TLS_SECONDS,
                    closing_seconds=CLOSING_SECONDS,
                )
            else:
                await self._acceptor.serve(listening_socket, create)

    def _create(self, peer: str, *, port: Port) -> SmtpConnection:
        return SmtpConnection(
            self,
            self._queue,
            self._logins,
            self._certificate,
            implicit_tls=port.implicit_tls,
            clear_auth=port.clear_auth,
            host_name=self._host_name,
            max_octets=self._settings.max_message_bytes,
            peer=peer,
        )

    def admit(self, connection: LoginConnection) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""
        return self.registry.admit(connection)

    def on_closed(self, connection: LoginConnection) -> None:
        """Count the connection no longer."""
        self.registry.remove(connection)

    def register_session(self, connection: LoginConnection, author: Local) -> bool:
        """Count a session of this account if the limit allows one more. Returns whether it is counted."""
        return self.registry.register_session(connection, author)

    def clear_auth_from(self, peer: str) -> bool:
        """Whether the settings allow passwords without TLS from this IP address."""
        return plaintext_allowed(self._settings, peer)

    async def close(self, seconds: float = STOP_SECONDS) -> None:
        """Stop accepting, and end every session after its mail. After ``seconds`` abort the others."""
        await self._acceptor.close()
        for connection in list(self.registry.connections):
            connection.stop()
        try:
            async with asyncio.timeout(seconds):
                await self.registry.closed.wait()
        except TimeoutError:
            for connection in list(self.registry.connections):
                connection.abort()


async def serve(service: Service) -> None:
    """Serve until the service stops. :raises SettingsError: a port or the certificate cannot be used."""
    settings, database = service.settings, service.database
    last = LastLogins(database, "smtp")
    logins = Authenticator(database, settings, service.name, last=last)
    queue = CommitQueue(database, service.broker, settings.max_message_bytes)
    certificate = server_tls.Certificate(settings)
    max_connections = listening.limit_by_open_files(MAX_CONNECTIONS)
    listener = SmtpListener(settings, queue, logins, certificate, max_connections)
    await listener.open()
    queue.start()
    log.info("listening", bind=settings.bind, **{port.setting.lower(): port.number for port in ports(settings)})
    background = [
        asyncio.create_task(work)
        for work in (
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
        await queue.stop()
        await last.write(LAST_SECONDS)
        logins.close()
