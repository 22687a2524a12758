"""A client's connection up to its login: admission, greeting, STARTTLS and AUTH (RFC 5321, 3207, 4954)."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Protocol, cast

import structlog
from aiosmtpd import smtp

from services.smtp_in.command_loop import CLOSING_SECONDS, CommandLoop, LineTooLong
from services.smtp_in.data_reader import SmtpRefusal
from shared.auth.authenticator import Authenticator, Throttled
from shared.errors import Temporary
from shared.model import Local
from shared.net.listening import AdmittedConnection, log_handshake_failure
from shared.net.server_tls import Certificate

MAX_REFUSED_LOGINS = 3
"""Refused logins before the connection is closed."""
IDLE_SECONDS = 300.0  # RFC 5321 section 4.5.3.2.7
LOGIN_SECONDS = 180.0
LOGIN_INPUT_OCTETS = 32 * 1024
"""Input that waits while a password is checked: octets; with more the session ends. No account's share limits it, and
of all connections together it would be hundreds of megabytes."""
TLS_SECONDS = 20.0
SESSION_SECONDS = 6 * 3600.0

TRY_LATER = SmtpRefusal(451, "4.3.0", "The server cannot take it now, try again later")

log = structlog.get_logger()


class SmtpRegistry(Protocol):
    """Keeps the open connections: the listener."""

    def admit(self, connection: LoginConnection) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""

    def on_closed(self, connection: LoginConnection) -> None:
        """Count the connection no longer."""

    def register_session(self, connection: LoginConnection, author: Local) -> bool:
        """Count a session of this account if the limit allows one more. Returns whether it is counted."""

    def clear_auth_from(self, peer: str) -> bool:
        """Whether the settings allow passwords without TLS from this IP address."""


class SmtpSession(smtp.Session):
    """The state of a client; STARTTLS starts another one (RFC 3207 section 4.2).

    :ivar author: the account that is logged in; None before the login.
    """

    author: Local | None = None


class LoginConnection(CommandLoop, AdmittedConnection):
    """A connection that is admitted, encrypted and logged in."""

    session_type = SmtpSession
    session: SmtpSession

    def __init__(
        self,
        registry: SmtpRegistry,
        logins: Authenticator,
        certificate: Certificate,
        *,
        implicit_tls: bool,
        clear_auth: bool,
        host_name: str,
        max_octets: int,
        peer: str,
    ) -> None:
        """:param implicit_tls: TLS from the start; ``admit`` is called before the handshake.
        :param clear_auth: the port accepts passwords without TLS, if the settings allow that.
        :param max_octets: largest mail. :param peer: the client's IP address; "": the address of the transport."""
        super().__init__(host_name, IDLE_SECONDS)
        self._registry = registry
        self._logins = logins
        self._certificate = certificate
        self._clear_auth = clear_auth
        self._max_octets = max_octets
        self._deadline: asyncio.TimerHandle | None = None  # of the login, then of the session
        self._under_tls = implicit_tls
        self._receiving = False  # a mail is being received or committed
        self._committing = False
        self._logging_in = False
        self._last_reply: str | None = None  # ends the session after the mail that is being received or committed
        self._admitted = False
        self._refused_logins = 0
        self.peer = peer

    # ------------------------------------------------------------------------------------------ connection

    def admit(self) -> bool:
        """Count the connection if the limits allow one more. Returns whether it is counted."""
        self._clear_auth = self._clear_auth and self._registry.clear_auth_from(self.peer)
        self._admitted = self._registry.admit(self)
        if self._admitted:
            self._deadline = self.loop.call_later(LOGIN_SECONDS, self._end_without_login)
        return self._admitted

    def _end_without_login(self) -> None:
        if self.session_task is None:  # in the handshake, which is ended by its own deadline; the connection counts
            self.ended = True
        else:
            self.end_session("421 4.4.2 No login in time")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the session, or refuse the connection."""
        self._raw_transport = cast(asyncio.Transport, transport)
        if not self.peer:
            peer = transport.get_extra_info("peername")
            self.peer = str(peer[0]) if peer else ""
        if self.ended:  # the login deadline passed during the handshake
            self._raw_transport.abort()
        elif self._admitted or self.admit():
            super().connection_made(transport)
        else:
            self.ended = True
            self._raw_transport.write(b"421 4.7.0 Too many connections, try again later\r\n")
            self._raw_transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Count the connection no longer, and release its memory; the second call does nothing."""
        if self._admitted:
            self._admitted = False
            self.ended = True
            if self._deadline is not None:
                self._deadline.cancel()
            self._registry.on_closed(self)
            if self.session_task is not None:
                super().connection_lost(error)

    def close_if_unused(self) -> None:
        """After a TLS handshake: count the connection no longer if it failed."""
        if self.session_task is None:
            self.connection_lost(None)

    def stop(self) -> None:
        """End the session with a reply: at once, or after the mail that is being received."""
        self._end_between_mails("421 4.3.2 The server is shutting down", busy=self._receiving)

    def on_account_changed(self) -> None:
        """End the session: the account was disabled, removed or given another password.

        A mail that is being received is dropped. One that is being committed gets its reply.
        """
        self._end_between_mails("421 4.7.0 The account was changed, log in again", busy=self._committing)

    def end_if_due(self) -> None:
        """After a mail: end the session if that was delayed for the mail."""
        if self._last_reply is not None:
            self.end_session(self._last_reply)

    def _end_between_mails(self, reply: str, *, busy: bool) -> None:
        self._last_reply = reply
        if not busy:
            self.end_session(reply)

    async def handle_exception(self, error: Exception) -> str:
        """Log an unexpected exception of a command, and answer with a temporary failure."""
        log.error("smtp session failed", peer=self.peer, exc_info=error)
        self.reset_transaction()
        return str(TRY_LATER)

    def data_received(self, data: bytes) -> None:
        """Store the input; too much during a login ends the session."""
        super().data_received(data)
        if self._logging_in:
            self._limit_login_input()

    def _limit_login_input(self) -> None:
        if self.unread_octets > LOGIN_INPUT_OCTETS:
            self.end_session("421 4.7.0 Too much input before the login")

    # ------------------------------------------------------------------------------------------ greeting and TLS

    async def smtp_HELO(self, hostname: str | None) -> None:
        """RFC 5321 section 4.1.1.1."""
        if not hostname:
            await self.push("501 5.5.4 Syntax: HELO name")
            return
        self.reset_transaction()
        self.session.extended_smtp = False
        self.session.host_name = hostname
        self.write(f"250 {self.hostname}")

    async def smtp_EHLO(self, hostname: str | None) -> None:
        """RFC 5321 section 4.1.1.1: list the extensions that the client may use now."""
        if not hostname:
            await self.push("501 5.5.4 Syntax: EHLO name")
            return
        self.reset_transaction()
        self.session.extended_smtp = True
        self.session.host_name = hostname
        lines = [
            self.hostname,
            f"SIZE {self._max_octets}",
            "8BITMIME",
            "SMTPUTF8",
            "PIPELINING",
            "ENHANCEDSTATUSCODES",
            "DSN",
        ]
        if not self._under_tls:
            lines.append("STARTTLS")
        if self._may_log_in:
            lines.append("AUTH PLAIN LOGIN")
        lines.append("HELP")
        self.write("\r\n".join([*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"]))

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """RFC 3207: drop pipelined input and all state of the session, then start TLS."""
        if arg:
            await self.push("501 5.5.4 STARTTLS takes no parameter")
            return
        if self._under_tls:
            await self.push("503 5.5.1 TLS is on already")
            return
        raw = cast(asyncio.Transport, self.transport)
        raw.pause_reading()  # before the reply: what the client sends next is the handshake
        await self.push("220 2.0.0 Go ahead")
        self.drop_clear_text()
        transport = await self._start_tls(raw)
        if transport is None:
            self.abort()
        else:
            self.use_transport(transport)

    async def _start_tls(self, raw: asyncio.Transport) -> asyncio.Transport | None:
        """Run the handshake. Returns the TLS transport, None if the handshake failed."""
        try:
            transport = await self.loop.start_tls(
                raw,
                self,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=TLS_SECONDS,
                ssl_shutdown_timeout=CLOSING_SECONDS,
            )
        except OSError as error:
            log_handshake_failure("smtp", self.peer, error)
            return None
        self._under_tls = transport is not None
        return transport

    # ------------------------------------------------------------------------------------------ login

    @property
    def _may_log_in(self) -> bool:
        return self._under_tls or self._clear_auth

    @property
    def account(self) -> Local | None:
        """The account that is logged in, None before the login."""
        return self.session.author if self.session_task is not None else None

    async def check_auth_needed(self, caller_method: str) -> bool:
        """Refuse a command before the login. Returns whether it was refused."""
        if self.session.author is not None:
            return False
        await self.push(
            "530 5.7.0 Authentication required" if self._may_log_in else "530 5.7.0 Must issue a STARTTLS command first"
        )
        return True

    async def smtp_AUTH(self, arg: str | None) -> None:
        """RFC 4954, with PLAIN (RFC 4616) and LOGIN, in upper or lower case."""
        if await self.check_helo_needed("EHLO"):
            return
        words = (arg or "").split()
        if not self._may_log_in:
            await self.push("538 5.7.11 Encryption required for requested authentication mechanism")
        elif self.session.author is not None or self.in_transaction:
            await self.push("503 5.5.1 Not now: logged in already, or a mail is under way")
        elif not 1 <= len(words) <= 2:  # the mechanism and an initial response
            await self.push("501 5.5.4 Syntax: AUTH mechanism [initial-response]")
        elif words[0].upper() == "PLAIN":
            await self._auth_plain(words[1:])
        elif words[0].upper() == "LOGIN":
            await self._auth_login(words[1:])
        else:
            await self.push("504 5.5.4 Unrecognized authentication mechanism")

    @property
    def in_transaction(self) -> bool:
        """Whether MAIL was accepted."""
        raise NotImplementedError

    async def _auth_plain(self, initial: list[str]) -> None:
        octets = await self._decode(initial[0]) if initial else await self._challenge("")
        if octets is None:
            return
        parts = octets.split(b"\0")
        if len(parts) != 3:  # authorization identity, name, password
            await self.push("501 5.5.2 Not a PLAIN response")
            return
        acting_as, name, password = map(_decode_text, parts)
        await self._log_in(name, password, allowed=not acting_as or acting_as.casefold() == name.casefold())

    async def _auth_login(self, initial: list[str]) -> None:
        name = await self._decode(initial[0]) if initial else await self._challenge("Username:")
        password = None if name is None else await self._challenge("Password:")
        if name is not None and password is not None:
            await self._log_in(_decode_text(name), _decode_text(password), allowed=True)

    async def _challenge(self, text: str) -> bytes | None:
        """Send a challenge and return the decoded response; None after a reply that refuses the response."""
        await self.push(b"334 " + base64.b64encode(text.encode()))
        try:
            line = await self.read_line()
        except LineTooLong:
            await self.push("500 5.5.6 The line is too long")
            return None
        if line.strip() == b"*":
            await self.push("501 5.7.0 Authentication cancelled")
            return None
        return await self._decode(line.strip())

    async def _decode(self, word: str | bytes) -> bytes | None:
        try:
            return b"" if word in ("=", b"=") else base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            await self.push("501 5.5.2 Not base64")
            return None

    async def _log_in(self, name: str, password: str, *, allowed: bool) -> None:
        """Check the password and reply. :param allowed: False: refuse the login, whatever the password."""
        self.restart_timer()
        self._limit_login_input()
        if self.ended:
            return
        self._logging_in = True
        try:
            author = await self._logins.verify(name, password, self.peer)
        except Temporary as failure:
            log.warning("login failed, try again later", peer=self.peer, error=str(failure))
            await self.push("454 4.7.0 Temporary authentication failure")
        except Throttled:
            self.end_session("421 4.7.0 Too many failed logins, try again later")
        else:
            if author is not None and allowed:
                if not self._registry.register_session(self, author):
                    self.end_session("421 4.7.0 Too many sessions of this account, try again later")
                    return
                self._set_author(author)
                await self.push("235 2.7.0 Authentication successful")
                return
            self._refused_logins += 1
            await self.push("535 5.7.8 Authentication credentials invalid")
            if self._refused_logins >= MAX_REFUSED_LOGINS:
                self.end_session("421 4.7.0 Too many failed logins")
        finally:
            self._logging_in = False

    def _set_author(self, author: Local) -> None:
        self.session.author = author
        self.session.authenticated = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(SESSION_SECONDS, self._end_long_session)

    def _end_long_session(self) -> None:
        self._end_between_mails("421 4.4.2 The session has lasted too long", busy=self._receiving)


def _decode_text(octets: bytes) -> str:
    """A name or password as text: UTF-8 (RFC 4616), or Latin-1 from old clients."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")
