"""The two ports, the open connections and their limits, and the watch over them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from functools import partial

import structlog
from prometheus_client import Gauge

from services.pop3_out.connection import CLOSING_SECONDS, TLS_SECONDS, Pop3Connection
from services.pop3_out.mailbox_store import DatabaseStore
from services.pop3_out.readahead import PrefetchBudget
from services.pop3_out.session import ClientInfo, MailboxStore, Pop3Session, Verifier
from shared.auth.authenticator import Authenticator, plaintext_allowed
from shared.auth.throttle import network_of
from shared.db.database import Database
from shared.errors import Temporary
from shared.model import Local
from shared.net import listening, server_tls
from shared.net.listening import Acceptor
from shared.runtime.process import Service
from shared.settings import Settings, SettingsError
from shared.store import accounts
from shared.store.last_logins import LAST_SECONDS, LastLogins

SESSIONS = Gauge("mailgroup_pop3_sessions", "Open POP3 connections.")

MAX_CONNECTIONS = 4_000
"""Open at once in all, if the process may open as many files."""
WATCH_SECONDS = 1.0
STOP_IDLE_SECONDS = 1.0
"""A client between two commands gets so long to hear that the server goes down."""
STOP_BUSY_SECONDS = 5.0

log = structlog.get_logger()


class Pop3Listener:
    """Accepts connections and keeps the open ones."""

    def __init__(
        self,
        settings: Settings,
        store: MailboxStore,
        logins: Verifier,
        certificate: server_tls.Certificate,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        """:param certificate: for STLS and the port for TLS. :param connections: open at once at most."""
        self.certificate = certificate
        self._settings = settings
        self._store = store
        self._logins = logins
        self._most = connections
        self._doorkeeper = Acceptor("pop3", settings.proxies)
        self.budget = PrefetchBudget()
        self._admitted = 0
        self._open: set[Pop3Connection] = set()
        self._by_address: dict[str, int] = {}
        self._by_account: Counter[int] = Counter()
        self._logged_in_at: dict[int, float] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen on both ports. :raises SettingsError: one cannot be had."""
        clear = listening.listen(self._settings, "POP3_PORT", self._settings.pop3_port)
        try:
            under_tls = listening.listen(self._settings, "POP3S_PORT", self._settings.pop3s_port)
        except SettingsError:
            clear.close()
            raise
        if self._settings.proxies:
            self._doorkeeper.open(clear, partial(self._welcome, under_tls=False))
        else:  # the loop's own way is faster
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Pop3Connection(self, self._session, tls=False), sock=clear, backlog=listening.BACKLOG
            )
        self._doorkeeper.open(under_tls, partial(self._welcome, under_tls=True))

    async def _welcome(self, client: socket.socket, peer: str, *, under_tls: bool) -> None:
        connection = Pop3Connection(self, self._session, tls=under_tls, peer=peer)
        if not under_tls:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client)
        elif self.admit(peer):
            try:
                await self._doorkeeper.start_tls_server(
                    client,
                    peer,
                    connection,
                    self.certificate.context,
                    seconds=TLS_SECONDS,
                    closing_seconds=CLOSING_SECONDS,
                )
            finally:
                if not connection.entered:
                    self._dismiss(peer)
        else:
            client.close()

    def _session(self, connection: Pop3Connection, under_tls: bool) -> Pop3Session:
        clear = plaintext_allowed(self._settings, connection.peer)
        terms = ClientInfo(connection.peer, under_tls, clear, self._settings.pop3_login_delay)
        return Pop3Session(connection, self._store, self._logins, self.budget, terms)

    def admit(self, peer: str) -> bool:
        """Whether there is room for one more from there; it is counted then."""
        address = network_of(peer)
        from_there = self._by_address.get(address, 0)
        if self._admitted >= self._most or from_there >= self._settings.max_connections_per_address:
            log.warning("pop3 connection refused", peer=peer, open=self._admitted, open_from_there=from_there)
            return False
        self._admitted += 1
        self._by_address[address] = from_there + 1
        return True

    def _dismiss(self, peer: str) -> None:
        self._admitted -= 1
        address = network_of(peer)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def enter(self, connection: Pop3Connection) -> None:
        """It is open, and was admitted."""
        self._open.add(connection)
        SESSIONS.inc()

    def leave(self, connection: Pop3Connection) -> None:
        """It is closed: count it no longer, and tell what it did."""
        self._open.discard(connection)
        self._dismiss(connection.peer)
        SESSIONS.dec()
        session = connection.session
        if session is not None and session.local is not None:
            self._by_account[session.local.id] -= 1
            if not self._by_account[session.local.id]:
                del self._by_account[session.local.id]
            log.info(
                "pop3 session",
                local=session.local.address,
                peer=connection.peer,
                retrieved=session.stats.retrieved,
                octets=session.stats.octets,
                deleted=session.stats.deleted,
            )

    def register_session(self, local: Local) -> str | None:
        """Whether one more session of this account may begin: None, and it counts; or why not, with the code."""
        delay, now = self._settings.pop3_login_delay, time.monotonic()
        if delay:
            if now - self._logged_in_at.get(local.id, -delay) < delay:
                return f"[LOGIN-DELAY] there was a login less than {delay} seconds ago"
            self._logged_in_at[local.id] = now
        if self._by_account[local.id] >= self._settings.max_connections_per_account:
            log.warning("pop3 session refused", local=local.address, open=self._by_account[local.id])
            return "[IN-USE] too many sessions of this account"
        self._by_account[local.id] += 1
        return None

    def check(self) -> None:
        """End what takes too long."""
        now = time.monotonic()
        for connection in list(self._open):
            connection.check_deadlines(now)

    def logins(self) -> set[tuple[int, str]]:
        """The logins (account id, password hash) of all open sessions."""
        return {(local.id, local.password_hash) for _, local in self._logged_in()}

    def end(self, logins: set[tuple[int, str]]) -> None:
        """End the sessions of these logins."""
        for connection, local in self._logged_in():
            if (local.id, local.password_hash) in logins:
                log.info("pop3 session ended: the account changed", local=local.address, peer=connection.peer)
                connection.end_session()

    def _logged_in(self) -> list[tuple[Pop3Connection, Local]]:
        return [
            (connection, connection.session.local)
            for connection in self._open
            if connection.session is not None and connection.session.local is not None
        ]

    async def close(self) -> None:
        """Stop accepting, let commands in hand come to their end, and close within STOP_BUSY_SECONDS."""
        if self._server is not None:
            self._server.close()
        await self._doorkeeper.close()
        for connection in list(self._open):
            connection.stop()
        started = time.monotonic()
        while self._open and (passed := time.monotonic() - started) < STOP_BUSY_SECONDS:
            for connection in list(self._open):
                if passed >= STOP_IDLE_SECONDS and not connection.busy:
                    connection.end_session()
            await asyncio.sleep(0.05)
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)


async def end_invalid_sessions(listener: Pop3Listener, database: Database) -> None:
    """End sessions whose account was disabled, removed or given another password. Never returns."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        logins = listener.logins()
        if not logins:
            continue
        try:
            async with database.transaction(10.0) as connection:
                valid = await accounts.valid_logins(connection, logins)
        except Temporary as failure:
            log.warning("pop3 sessions could not be checked", error=str(failure))
        else:
            listener.end(logins - valid)


async def run_background(listener: Pop3Listener) -> None:
    """End what takes too long. Never returns."""
    while True:
        await asyncio.sleep(1.0)
        listener.check()


async def serve(service: Service) -> None:
    """Serve until the service is to stop. :raises SettingsError: a port or the certificate cannot be used."""
    last = LastLogins(service.database, "pop3")
    logins = Authenticator(service.database, service.settings, service.name, last=last)
    certificate = server_tls.Certificate(service.settings)
    listener = Pop3Listener(
        service.settings,
        DatabaseStore(service.database),
        logins,
        certificate,
        listening.limit_by_open_files(MAX_CONNECTIONS),
    )
    await listener.open()
    log.info(
        "listening",
        bind=service.settings.bind,
        pop3_port=service.settings.pop3_port,
        pop3s_port=service.settings.pop3s_port,
    )
    background = [
        asyncio.create_task(work)
        for work in (
            run_background(listener),
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
        await last.write(LAST_SECONDS)
        logins.close()
