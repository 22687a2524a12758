"""One client's session (RFC 5321, RFC 6409, RFC 4954, RFC 3207, RFC 1870, RFC 6152, RFC 6531, RFC 2034, RFC 2920,
RFC 3461).

``engine.py`` reads the commands and keeps the time between them. Here is what they do: AUTH, MAIL, RCPT, DATA, TLS.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import replace
from typing import Protocol, cast

import structlog
from aiosmtpd import smtp
from prometheus_client import Counter

from services.smtp_in.command_loop import CLOSING_SECONDS, CommandLoop, LineTooLong
from services.smtp_in.commit_queue import CommitQueue, build_submission
from services.smtp_in.data_reader import DataReader, SmtpRefusal
from services.smtp_in.parameters import PathParameters, parse_mail, parse_rcpt
from services.smtp_in.recipient_policy import Directory, check_size, check_syntax, delivery_key, resolve
from services.smtp_in.sender_policy import check_envelope, check_header
from shared.auth.authenticator import Authenticator, Throttled
from shared.db.group_commit import CommitOutcomeUnknown
from shared.errors import Temporary
from shared.metrics import STAGE_SECONDS
from shared.model import EnvelopeRecipient, Local
from shared.net.server_tls import Certificate

MAX_RECIPIENTS = 1000
MAX_REFUSED_LOGINS = 3
"""Logins refused before the connection ends."""
DRAIN_OCTETS = 64 * 1024 * 1024
"""Of a mail that is refused already: so much more is read before the connection is cut."""

IDLE_SECONDS = 300.0  # RFC 5321 section 4.5.3.2.7
LOGIN_SECONDS = 180.0
TLS_SECONDS = 20.0
DATA_SECONDS = 3600.0
COMMIT_SECONDS = 600.0
MEMORY_WAIT_SECONDS = 60.0
"""So long a client waits for its 354 while many large mails come in; it has two minutes (RFC 5321 4.5.3.2.5)."""
SESSION_SECONDS = 6 * 3600.0

_NO_MEMORY = SmtpRefusal(452, "4.3.1", "Too many large mails at once, try again later")
_ACCOUNT_CHANGED = SmtpRefusal(421, "4.7.0", "The account was changed, log in again")
_TRY_LATER = "451 4.3.0 The server cannot take it now, try again later"

REFUSED = Counter(
    "mailgroup_submissions_refused_total", "Mails and recipients of mail clients that were refused.", ["kind"]
)  # temporary, permanent

log = structlog.get_logger()


class ConnectionRegistry(Protocol):
    """Who keeps the open connections: the listener."""

    def admit(self, connection: SmtpConnection) -> bool:
        """Whether there is room for one more; it is counted then."""

    def on_closed(self, connection: SmtpConnection) -> None:
        """It is closed."""

    def register_session(self, connection: SmtpConnection, author: Local) -> bool:
        """Whether the account may have one more session; it is counted then."""

    def clear_auth_from(self, peer: str) -> bool:
        """Whether the settings allow passwords without TLS from this address."""


class SmtpSession(smtp.Session):
    """What is known of the client; made anew by STARTTLS (RFC 3207 section 4.2). author: who logged in."""

    author: Local | None = None


class Transaction(smtp.Envelope):
    """The envelope so far. sender: None before MAIL, '' for ``<>``. recipients: one for each place they go to.

    addresses: as they were asked for and taken, each with what is to be told about it. directory: by which the envelope
    was judged. coming: the accounts as they are since MAIL.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sender: str | None = None
        self.smtputf8 = False
        self.dsn_params: str | None = None
        self.size = 0
        self.directory: Directory | None = None
        self.fresh_directory: asyncio.Future[Directory] | None = None
        self.addresses: list[tuple[str, str | None]] = []
        self.recipients: dict[tuple[str, object], EnvelopeRecipient] = {}
        self.rcpt_seen = False


class SmtpConnection(CommandLoop):
    """A client's connection, from accept to close."""

    session_type = SmtpSession
    envelope_type = Transaction
    session: SmtpSession
    envelope: Transaction

    def __init__(
        self,
        keeper: ConnectionRegistry,
        intake: CommitQueue,
        logins: Authenticator,
        certificate: Certificate,
        *,
        implicit_tls: bool,
        clear_auth: bool,
        host_name: str,
        octets: int,
    ) -> None:
        """:param implicit_tls: TLS from the start. :param clear_auth: passwords without TLS, from where the settings
        allow that. :param octets: the most that a mail may have."""
        super().__init__(host_name, IDLE_SECONDS)
        self._registry = keeper
        self._queue = intake
        self._logins = logins
        self._certificate = certificate
        self._clear_auth = clear_auth
        self._max_octets = octets
        self._deadline: asyncio.TimerHandle | None = None
        self._under_tls = implicit_tls
        self._receiving = False
        self._stopping = False
        self._admitted = False
        self._refused_logins = 0
        self.peer = ""
        self.registration: int | None = None  # id of the account as whose session the keeper counts it

    # ------------------------------------------------------------------------------------------ connection

    def enter(self, peer: str) -> bool:
        """Let the client in if there is room; under implicit TLS that is before the handshake."""
        self.peer = peer
        self._clear_auth = self._clear_auth and self._registry.clear_auth_from(peer)
        self._admitted = self._registry.admit(self)
        if self._admitted:
            self._deadline = self.loop.call_later(LOGIN_SECONDS, self.end_session, "421 4.4.2 No login in time")
        return self._admitted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet it."""
        self._raw_transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        if self._under_tls or self.enter(self.peer or (str(name[0]) if name else "")):
            super().connection_made(transport)
        else:
            self.ended = True
            self._raw_transport.write(b"421 4.7.0 Too many connections, try again later\r\n")
            self._raw_transport.close()

    async def _handshake(self, raw: asyncio.Transport) -> asyncio.Transport | None:
        """The transport under TLS; None: the client failed."""
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
            log.info("smtp handshake failed", peer=self.peer, reason=str(error) or type(error).__name__)
            return None
        self._under_tls = transport is not None
        return transport

    def connection_lost(self, error: Exception | None) -> None:
        """Discharge it, once."""
        if self._admitted:
            self._admitted = False
            self.ended = True
            if self._deadline is not None:
                self._deadline.cancel()
            self._registry.on_closed(self)
            if self.session_task is not None:
                super().connection_lost(error)

    def close_if_unused(self) -> None:
        """After a handshake: one that failed tells the protocol nothing."""
        if self.session_task is None:
            self.connection_lost(None)

    def stop(self) -> None:
        """End the session politely: at once, or when the mail in hand is answered."""
        self._stopping = True
        if not self._receiving:
            self.end_session("421 4.3.2 The server is shutting down")

    async def handle_exception(self, error: Exception) -> str:
        """What nobody expected: temporary for the client, in full for the log."""
        log.error("smtp session failed", peer=self.peer, exc_info=error)
        self.reset_transaction()
        return _TRY_LATER

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
        """RFC 5321 section 4.1.1.1: what we can do, as far as the client may use it now."""
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
        """RFC 3207: what the client sent in clear behind the command is thrown away, and what it told us forgotten."""
        if arg:
            await self.push("501 5.5.4 STARTTLS takes no parameter")
            return
        if self._under_tls:
            await self.push("503 5.5.1 TLS is on already")
            return
        raw = cast(asyncio.Transport, self.transport)
        raw.pause_reading()  # before the answer: what comes next is the handshake
        await self.push("220 2.0.0 Go ahead")
        self.drop_clear_text()
        transport = await self._handshake(raw)
        if transport is None:
            self.abort()
            return
        self.use_transport(transport)

    # ------------------------------------------------------------------------------------------ login

    @property
    def _may_log_in(self) -> bool:
        return self._under_tls or self._clear_auth

    @property
    def author(self) -> Local | None:
        """Who is logged in."""
        return self.session.author if self.session_task is not None else None

    async def check_auth_needed(self, caller_method: str) -> bool:
        """Refuse a command before the login."""
        if self.session.author is not None:
            return False
        await self.push(
            "530 5.7.0 Authentication required" if self._may_log_in else "530 5.7.0 Must issue a STARTTLS command first"
        )
        return True

    async def smtp_AUTH(self, arg: str | None) -> None:
        """RFC 4954, with PLAIN (RFC 4616) and LOGIN, in any case of letters."""
        if await self.check_helo_needed("EHLO"):
            return
        words = (arg or "").split()
        if not self._may_log_in:
            await self.push("538 5.7.11 Encryption required for requested authentication mechanism")
        elif self.session.author is not None or self.envelope.sender is not None:
            await self.push("503 5.5.1 Not now: logged in already, or a mail is under way")
        elif not 1 <= len(words) <= 2:  # the mechanism and an initial response
            await self.push("501 5.5.4 Syntax: AUTH mechanism [initial-response]")
        elif words[0].upper() == "PLAIN":
            await self._auth_plain(words[1:])
        elif words[0].upper() == "LOGIN":
            await self._auth_login(words[1:])
        else:
            await self.push("504 5.5.4 Unrecognized authentication mechanism")

    async def _auth_plain(self, initial: list[str]) -> None:
        octets = await self._decode(initial[0]) if initial else await self._challenge("")
        if octets is None:
            return
        parts = octets.split(b"\0")
        if len(parts) != 3:  # authorization identity, name, password
            await self.push("501 5.5.2 Not a PLAIN response")
            return
        acting_as, name, password = map(_text, parts)
        await self._log_in(name, password, allowed=not acting_as or acting_as.casefold() == name.casefold())

    async def _auth_login(self, initial: list[str]) -> None:
        name = await self._decode(initial[0]) if initial else await self._challenge("Username:")
        password = None if name is None else await self._challenge("Password:")
        if name is not None and password is not None:
            await self._log_in(_text(name), _text(password), allowed=True)

    async def _challenge(self, text: str) -> bytes | None:
        """Ask, and return the answer; None if there is none and that is said."""
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
        self.restart_timer()
        try:
            author = await self._logins.verify(name, password, self.peer)
        except Temporary as failure:
            log.warning("login not possible", peer=self.peer, reason=str(failure))
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

    def _set_author(self, author: Local) -> None:
        self.session.author = author
        self.session.authenticated = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(SESSION_SECONDS, self.stop)

    # ------------------------------------------------------------------------------------------ mail

    async def smtp_MAIL(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.2. From here on the accounts are asked for, once for each mail."""
        if await self.check_helo_needed() or await self.check_auth_needed("MAIL"):
            return
        if self.envelope.sender is not None:
            await self.push("503 5.5.1 There is a mail under way")
            return
        path = parse_mail(arg or "", self._max_octets)
        if isinstance(path, SmtpRefusal):
            await self.push(str(path))
            return
        draft = self.envelope
        draft.sender, draft.smtputf8 = path.address, path.smtputf8
        draft.dsn_params, draft.size = path.dsn_params, path.size
        draft.fresh_directory = self._queue.refresh_directory()
        if self._check_sender(self._queue.cached_directory) is None or await self._revalidate():
            await self.push("250 2.1.0 Sender ok")

    def _check_sender(self, directory: Directory) -> SmtpRefusal | None:
        """Take who logged in, and what MAIL said, by these accounts. Or say what is against it."""
        draft, before = self.envelope, cast(Local, self.session.author)
        author = directory.local_ids.get(before.id)
        if author is None or not author.enabled or author.password_hash != before.password_hash:
            return _ACCOUNT_CHANGED
        address = cast(str, draft.sender)
        refusal = check_syntax(address, draft.smtputf8) if address else None
        refusal = refusal or check_envelope(directory, author, address)
        if refusal is None:
            self.session.author, draft.directory = author, directory
        return refusal

    async def _revalidate(self) -> bool:
        """Wait for the accounts as they are since MAIL. If they are not those by which the envelope was judged, it is
        judged anew. False: it is not taken, and that is said.

        What is accepted by accounts that are known already costs no time, and is looked at again before the mail is
        taken; what is refused is refused by the accounts as they are.
        """
        draft = self.envelope
        try:
            directory = await cast(asyncio.Future[Directory], draft.fresh_directory)
        except Temporary as failure:
            log.warning("accounts not readable", peer=self.peer, reason=str(failure))
            self.reset_transaction()
            await self.push(_TRY_LATER)
            return False
        if directory is draft.directory:
            return True
        refusal = self._check_sender(directory)
        addresses, draft.addresses, draft.recipients = draft.addresses, [], {}
        for address, dsn_params in addresses:
            refusal = refusal or self._add_recipient(address, dsn_params)
        if refusal is None:
            return True
        author = self.session.author
        self.reset_transaction()
        if refusal is _ACCOUNT_CHANGED:
            self.end_session(str(refusal))
        else:
            await self._refuse(refusal, author)
        return False

    async def smtp_RCPT(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.3."""
        if await self.check_helo_needed() or await self.check_auth_needed("RCPT"):
            return
        draft = self.envelope
        if draft.directory is None:
            await self.push("503 5.5.1 MAIL first")
            return
        draft.rcpt_seen = True
        path = parse_rcpt(arg or "")
        refusal = path if isinstance(path, SmtpRefusal) else check_syntax(path.address, draft.smtputf8)
        if refusal is None and len(draft.addresses) >= MAX_RECIPIENTS:
            refusal = SmtpRefusal(452, "4.5.3", "Too many recipients, send to the rest in another mail")
        if refusal is None:
            address, dsn_params = cast(PathParameters, path).address, cast(PathParameters, path).dsn_params
            refusal = self._add_recipient(address, dsn_params)
            if refusal is not None:
                if not await self._revalidate():
                    return
                refusal = self._add_recipient(address, dsn_params)
        if refusal is not None:
            await self._refuse(refusal, self.session.author)
            return
        await self.push("250 2.1.5 Recipient ok")

    def _add_recipient(self, address: str, dsn_params: str | None) -> SmtpRefusal | None:
        """Take a recipient by the accounts of the draft, or say what is against it."""
        draft, author = self.envelope, cast(Local, self.session.author)
        directory = cast(Directory, draft.directory)
        recipient = resolve(directory, address)
        if isinstance(recipient, EnvelopeRecipient):
            external = directory.external_ids.get(author.external_id)
            recipient = check_size(external, [recipient], draft.size) or recipient
        if isinstance(recipient, SmtpRefusal):
            return recipient
        draft.addresses.append((address, dsn_params))
        draft.recipients.setdefault(
            delivery_key(recipient), replace(recipient, dsn_params=dsn_params) if dsn_params else recipient
        )
        return None

    async def smtp_DATA(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.4: read, check, commit, answer, in this order."""
        if await self.check_helo_needed() or await self.check_auth_needed("DATA"):
            return
        if arg:
            await self.push("501 5.5.4 DATA takes no parameter")
        elif not self.envelope.recipients:
            await self.push("554 5.5.1 No valid recipients" if self.envelope.rcpt_seen else "503 5.5.1 RCPT first")
        elif await self._revalidate():
            self._receiving = True
            try:
                await self._receive_data()
            finally:
                self._receiving = False
                self.reset_transaction()
                self.restart_timer()
            if self._stopping:
                self.stop()

    async def _receive_data(self) -> None:
        held = self.envelope.size
        if not await self._queue.reserve_memory(held, MEMORY_WAIT_SECONDS):
            await self.push(str(_NO_MEMORY))
            return
        mail = DataReader(self._max_octets)
        deadline = self.loop.time() + DATA_SECONDS
        try:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            while not mail.ended:
                rest = mail.feed(await self.read_available())
                if rest:  # commands behind the mail (RFC 2920)
                    self.push_back(rest)
                self.restart_timer()
                if mail.octets_in_memory > held and not self._queue.try_reserve(mail.octets_in_memory - held):
                    mail.refuse(_NO_MEMORY)
                elif mail.octets_in_memory > held:
                    held = mail.octets_in_memory
                if mail.refusal is not None:
                    self._queue.release_memory(held)
                    held = 0
                if not mail.ended and (self.loop.time() > deadline or mail.octets > self._max_octets + DRAIN_OCTETS):
                    self.end_session("421 4.4.2 The mail takes too long, or does not end")
                    return
            self.restart_timer(COMMIT_SECONDS)
            await self._commit(mail)
        finally:
            self._queue.release_memory(held)

    async def _commit(self, mail: DataReader) -> None:
        draft, author = self.envelope, self.session.author
        assert draft.directory is not None and author is not None and draft.sender is not None
        refusal = mail.refusal or check_header(draft.directory, author, mail.values)
        external = draft.directory.external_ids.get(author.external_id)
        refusal = refusal or check_size(external, draft.recipients.values(), mail.octets)
        if refusal or external is None:
            await self._refuse(refusal or SmtpRefusal(451, "4.3.5", "The account has no external account"), author)
            return
        handed = build_submission(
            author,
            external,
            draft.sender,
            list(draft.recipients.values()),
            mail,
            smtputf8=draft.smtputf8,
            dsn_params=draft.dsn_params,
        )
        try:
            with STAGE_SECONDS.labels("submission").time():
                taken = await self._queue.commit(handed)
        except (
            CommitOutcomeUnknown
        ) as failure:  # neither yes nor no would be true: the client gets no answer, and tries again
            log.warning("mail perhaps committed", peer=self.peer, author=author.address, reason=str(failure))
            self.abort()
            return
        except Temporary as failure:
            log.warning("mail not committed", peer=self.peer, author=author.address, reason=str(failure))
            await self.push(_TRY_LATER)
            return
        if taken.id is None:
            self.end_session(str(_ACCOUNT_CHANGED))
        else:
            await self.push(f"250 2.0.0 Queued as {taken.id}")

    async def _refuse(self, refusal: SmtpRefusal, author: Local | None) -> None:
        REFUSED.labels("temporary" if refusal.code < 500 else "permanent").inc()
        log.info("mail refused", peer=self.peer, author=author.address if author else None, reply=str(refusal))
        await self.push(str(refusal))

    # ------------------------------------------------------------------------------------------ the rest

    async def smtp_QUIT(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.10."""
        if arg:
            await self.push("501 5.5.4 QUIT takes no parameter")
        else:
            self.end_session("221 2.0.0 Bye")

    async def smtp_VRFY(self, arg: str | None) -> None:
        """RFC 5321 section 3.5.3: nobody learns here who exists."""
        if not await self.check_auth_needed("VRFY"):
            await self.push("252 2.5.2 Send some mail, and see")

    async def smtp_EXPN(self, arg: str | None) -> None:
        """RFC 5321 section 3.5."""
        await self.push("502 5.5.1 EXPN is not implemented")

    async def smtp_HELP(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.8."""
        await self.push("214 2.0.0 AUTH DATA EHLO HELO HELP MAIL NOOP QUIT RCPT RSET STARTTLS VRFY")


def _text(octets: bytes) -> str:
    """Names and passwords are UTF-8 (RFC 4616), from old clients Latin-1."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")
