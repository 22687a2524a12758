"""The three ports, the open connections and their limits, and the watch over logins."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import structlog
from prometheus_client import Gauge

from services.smtp_in.command_loop import CLOSING_SECONDS
from services.smtp_in.commit_queue import CommitQueue
from services.smtp_in.connection import TLS_SECONDS, SmtpConnection
from shared.auth.authenticator import Authenticator, plaintext_allowed
from shared.auth.throttle import network_of
from shared.db.database import Database
from shared.errors import Temporary
from shared.model import Local
from shared.net import listening as doors
from shared.net import server_tls
from shared.net.listening import Acceptor
from shared.runtime.process import Service
from shared.settings import Settings
from shared.store import accounts
from shared.store.last_logins import LAST_SECONDS, LastLogins

SESSIONS = Gauge("mailgroup_smtp_sessions", "Open SMTP connections of mail clients.")

MAX_CONNECTIONS = 2_000
"""Open at once in all, if the process may open as many files."""
WATCH_SECONDS = 2.0
STOP_SECONDS = 10.0
"""For mails in hand, when the service is to stop."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Port:
    """A listening port. setting: its name. clear_auth: passwords without TLS, where the settings allow that."""

    setting: str
    number: int
    implicit_tls: bool
    clear_auth: bool


def ports(settings: Settings) -> tuple[Port, ...]:
    """SUBMISSION_PORT never takes a password before TLS, whatever the settings say."""
    return (
        Port("SMTP_PORT", settings.smtp_port, implicit_tls=False, clear_auth=True),
        Port("SUBMISSION_PORT", settings.submission_port, implicit_tls=False, clear_auth=False),
        Port("SMTPS_PORT", settings.smtps_port, implicit_tls=True, clear_auth=False),
    )


class SmtpListener:
    """Accepts connections and keeps the open ones."""

    def __init__(
        self,
        settings: Settings,
        intake: CommitQueue,
        logins: Authenticator,
        certificate: server_tls.Certificate,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        """:param connections: open at once at most."""
        self._settings = settings
        self._intake = intake
        self._logins = logins
        self._certificate = certificate
        self._most = connections
        self._doorkeeper = Acceptor("smtp", settings.proxies)
        self._host_name = socket.gethostname()
        self._open: set[SmtpConnection] = set()
        self._by_network: Counter[str] = Counter()
        self._by_account: Counter[int] = Counter()
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        self._empty.set()

    async def open(self) -> None:
        """Listen on all ports. :raises SettingsError: one cannot be had."""
        # aiosmtpd logs commands it does not know; out of step, a client's password may be one.
        logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)
        with ExitStack() as undo:
            sockets = [
                (port, undo.enter_context(doors.listen(self._settings, port.setting, port.number)))
                for port in ports(self._settings)
            ]
            undo.pop_all()
        for port, listening in sockets:
            if port.implicit_tls or self._settings.proxies:
                self._doorkeeper.open(listening, partial(self._welcome, port=port))
            else:  # the loop's own way is faster
                self._servers.append(
                    await asyncio.get_running_loop().create_server(
                        partial(self._connection, port), sock=listening, backlog=doors.BACKLOG
                    )
                )

    async def _welcome(self, client: socket.socket, peer: str, *, port: Port) -> None:
        connection = self._connection(port)
        connection.peer = peer
        if not port.implicit_tls:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client)
        elif connection.enter(peer):
            try:
                await self._doorkeeper.start_tls_server(
                    client,
                    peer,
                    connection,
                    self._certificate.context,
                    seconds=TLS_SECONDS,
                    closing_seconds=CLOSING_SECONDS,
                )
            finally:
                connection.close_if_unused()
        else:
            client.close()

    def _connection(self, port: Port) -> SmtpConnection:
        return SmtpConnection(
            self,
            self._intake,
            self._logins,
            self._certificate,
            implicit_tls=port.implicit_tls,
            clear_auth=port.clear_auth,
            host_name=self._host_name,
            octets=self._settings.max_message_bytes,
        )

    def clear_auth_from(self, peer: str) -> bool:
        """Whether the settings allow passwords without TLS from this address."""
        return plaintext_allowed(self._settings, peer)

    def admit(self, connection: SmtpConnection) -> bool:
        """Whether there is room for one more; it is counted then."""
        network = network_of(connection.peer)
        if len(self._open) >= self._most or self._by_network[network] >= self._settings.max_connections_per_address:
            log.warning(
                "smtp connection refused",
                peer=connection.peer,
                open=len(self._open),
                open_from_there=self._by_network[network],
            )
            return False
        self._open.add(connection)
        self._by_network[network] += 1
        self._empty.clear()
        SESSIONS.inc()
        return True

    def on_closed(self, connection: SmtpConnection) -> None:
        """It is closed: count it no longer."""
        network = network_of(connection.peer)
        self._open.discard(connection)
        self._by_network[network] -= 1
        if not self._by_network[network]:
            del self._by_network[network]
        self._unseat(connection)
        if not self._open:
            self._empty.set()
        SESSIONS.dec()

    def register_session(self, connection: SmtpConnection, author: Local) -> bool:
        """Whether the account may have one more session; it is counted then."""
        self._unseat(connection)  # who logs in once more, after STARTTLS, is counted once
        if self._by_account[author.id] >= self._settings.max_connections_per_account:
            log.warning("smtp session refused", peer=connection.peer, author=author.address)
            return False
        self._by_account[author.id] += 1
        connection.registration = author.id
        return True

    def _unseat(self, connection: SmtpConnection) -> None:
        if connection.registration is not None:
            self._by_account[connection.registration] -= 1
            if not self._by_account[connection.registration]:
                del self._by_account[connection.registration]
            connection.registration = None

    def logged_in(self) -> list[tuple[SmtpConnection, Local]]:
        """The open sessions that are logged in."""
        return [(connection, connection.author) for connection in self._open if connection.author is not None]

    async def close(self, seconds: float = STOP_SECONDS) -> None:
        """Stop accepting, end every session, the mails in hand first; after ``seconds`` cut what is left."""
        for server in self._servers:
            server.close()
        await self._doorkeeper.close()
        for connection in list(self._open):
            connection.stop()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._open):
                connection.abort()


async def end_invalid_sessions(listener: SmtpListener, database: Database) -> None:
    """End sessions whose account was disabled, removed or given another password. Never returns."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        sessions = listener.logged_in()
        if not sessions:
            continue
        try:
            async with database.transaction(10.0) as connection:
                valid = await accounts.valid_logins(connection, {(a.id, a.password_hash) for _, a in sessions})
        except Temporary as failure:
            log.warning("smtp sessions could not be checked", reason=str(failure))
            continue
        for session, author in sessions:
            if (author.id, author.password_hash) not in valid:
                session.stop()


async def serve(service: Service) -> None:
    """Serve until the service is to stop. :raises SettingsError: a port or the certificate cannot be used."""
    last = LastLogins(service.database, "smtp")
    logins = Authenticator(service.database, service.settings, service.name, last=last)
    intake = CommitQueue(service.database, service.broker, service.settings.max_message_bytes)
    certificate = server_tls.Certificate(service.settings)
    listener = SmtpListener(service.settings, intake, logins, certificate, doors.limit_by_open_files(MAX_CONNECTIONS))
    await listener.open()
    intake.start()
    log.info("listening", bind=service.settings.bind, **{p.setting.lower(): p.number for p in ports(service.settings)})
    background = [
        asyncio.create_task(work)
        for work in (
            end_invalid_sessions(listener, service.database),
            certificate.reload_periodically(),
            last.run(service.wait_for_stop),
        )
    ]
    try:
        await service.stopping.wait()
    finally:
        await listener.close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await intake.stop()
        await last.write(LAST_SECONDS)
        logins.close()
