"""The mail transactions of a session: MAIL, RCPT, DATA (RFC 5321, 6409, 1870, 6152, 6531, 2034, 2920, 3461).

``command_loop.py`` reads the commands and limits the time between them, ``login.py`` logs the client in.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import structlog
from aiosmtpd import smtp
from prometheus_client import Counter

from services.smtp_in.commit_queue import CommitQueue, build_submission
from services.smtp_in.data_reader import DataReader, SmtpRefusal
from services.smtp_in.login import TRY_LATER, LoginConnection, SmtpRegistry
from services.smtp_in.parameters import PathParameters, parse_mail, parse_rcpt
from services.smtp_in.recipient_policy import Directory, check_size, check_syntax, delivery_key, resolve
from services.smtp_in.sender_policy import check_envelope, check_header
from shared.auth.authenticator import Authenticator
from shared.db.group_commit import CommitOutcomeUnknown
from shared.errors import Temporary
from shared.metrics import STAGE_SECONDS
from shared.model import EnvelopeRecipient, Local
from shared.net.server_tls import Certificate

MAX_RECIPIENTS = 1000
DRAIN_OCTETS = 64 * 1024 * 1024
"""Octets of a refused mail that are read and dropped beyond the size limit, so that the client gets the reply; then the
connection is closed."""
DATA_SECONDS = 3600.0
COMMIT_SECONDS = 600.0
MEMORY_WAIT_SECONDS = 60.0
"""Wait for memory before the reply to DATA: seconds; the client waits for two minutes (RFC 5321 4.5.3.2.5)."""

_NO_MEMORY = SmtpRefusal(452, "4.3.1", "Too many large mails at once, try again later")
_ACCOUNT_CHANGED = SmtpRefusal(421, "4.7.0", "The account was changed, log in again")

REFUSED = Counter(
    "mailgroup_submissions_refused_total", "Mails and recipients of mail clients that were refused.", ["kind"]
)  # temporary, permanent

log = structlog.get_logger()


class Transaction(smtp.Envelope):
    """The envelope of a mail."""

    def __init__(self) -> None:
        super().__init__()
        self.sender: str | None = None  # None before MAIL, '' for <>
        self.smtputf8 = False
        self.dsn_params: str | None = None  # RET and ENVID of MAIL
        self.size = 0  # octets that the client announced with MAIL
        self.directory: Directory | None = None  # accounts by which the envelope was accepted
        self.fresh_directory: asyncio.Future[Directory] | None = None  # accounts as they are after MAIL
        self.addresses: list[tuple[str, str | None]] = []  # accepted RCPT addresses, with NOTIFY and ORCPT
        self.recipients: dict[tuple[str, object], EnvelopeRecipient] = {}  # by delivery_key: one copy for each
        self.rcpt_seen = False


class SmtpConnection(LoginConnection):
    """A client's connection, from accept to close."""

    envelope_type = Transaction
    envelope: Transaction

    def __init__(
        self,
        registry: SmtpRegistry,
        queue: CommitQueue,
        logins: Authenticator,
        certificate: Certificate,
        *,
        implicit_tls: bool,
        clear_auth: bool,
        host_name: str,
        max_octets: int,
        peer: str = "",
    ) -> None:
        """Parameters as in ``LoginConnection``."""
        super().__init__(
            registry,
            logins,
            certificate,
            implicit_tls=implicit_tls,
            clear_auth=clear_auth,
            host_name=host_name,
            max_octets=max_octets,
            peer=peer,
        )
        self._queue = queue

    @property
    def in_transaction(self) -> bool:
        """Whether MAIL was accepted."""
        return self.envelope.sender is not None

    # ------------------------------------------------------------------------------------------ envelope

    async def smtp_MAIL(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.2. MAIL also requests the accounts as they are now, once for each mail."""
        if await self.check_helo_needed() or await self.check_auth_needed("MAIL"):
            return
        if self.in_transaction:
            await self.push("503 5.5.1 There is a mail under way")
            return
        path = parse_mail(arg or "", self._max_octets)
        if isinstance(path, SmtpRefusal):
            await self.push(str(path))
            return
        envelope = self.envelope
        envelope.sender, envelope.smtputf8 = path.address, path.smtputf8
        envelope.dsn_params, envelope.size = path.dsn_params, path.size
        envelope.fresh_directory = self._queue.refresh_directory()
        if self._check_sender(self._queue.cached_directory) is None or await self._revalidate():
            await self.push("250 2.1.0 Sender ok")

    def _check_sender(self, directory: Directory) -> SmtpRefusal | None:
        """Check the author and the envelope sender with these accounts, and store them. Returns a refusal or None."""
        envelope, before = self.envelope, cast(Local, self.session.author)
        author = directory.local_ids.get(before.id)
        if author is None or not author.enabled or author.password_hash != before.password_hash:
            return _ACCOUNT_CHANGED
        address = cast(str, envelope.sender)
        refusal = check_syntax(address, envelope.smtputf8) if address else None
        refusal = refusal or check_envelope(directory, author, address)
        if refusal is None:
            self.session.author, envelope.directory = author, directory
        return refusal

    async def _revalidate(self) -> bool:
        """Wait for the accounts as they are after MAIL, and check the envelope again if they have changed.

        Cached accounts are enough to accept a command without waiting, because DATA checks the envelope again. Only
        current accounts are enough to refuse one.

        Returns whether the envelope is still accepted; otherwise the reply is sent.
        """
        envelope = self.envelope
        try:
            directory = await cast(asyncio.Future[Directory], envelope.fresh_directory)
        except Temporary as failure:
            log.warning("account check failed", peer=self.peer, error=str(failure))
            self.reset_transaction()
            await self.push(TRY_LATER)
            return False
        if directory is envelope.directory:
            return True
        refusal = self._check_sender(directory)
        addresses, envelope.addresses, envelope.recipients = envelope.addresses, [], {}
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
        envelope = self.envelope
        if envelope.directory is None:
            await self.push("503 5.5.1 MAIL first")
            return
        envelope.rcpt_seen = True
        path = parse_rcpt(arg or "")
        refusal = path if isinstance(path, SmtpRefusal) else check_syntax(path.address, envelope.smtputf8)
        if refusal is None and len(envelope.addresses) >= MAX_RECIPIENTS:
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
        """Add a recipient, checked with the accounts of the envelope. Returns a refusal or None."""
        envelope, author = self.envelope, cast(Local, self.session.author)
        directory = cast(Directory, envelope.directory)
        recipient = resolve(directory, address)
        if isinstance(recipient, EnvelopeRecipient):
            external = directory.external_ids.get(author.external_id)
            recipient = check_size(external, [recipient], envelope.size) or recipient
        if isinstance(recipient, SmtpRefusal):
            return recipient
        envelope.addresses.append((address, dsn_params))
        envelope.recipients.setdefault(
            delivery_key(recipient), replace(recipient, dsn_params=dsn_params) if dsn_params else recipient
        )
        return None

    # ------------------------------------------------------------------------------------------ content

    async def smtp_DATA(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.4: read, check, commit, reply, in this order."""
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
        """Read the content, in memory that is reserved before, and commit the mail."""
        memory, reserved = self._queue.memory, self.envelope.size
        if not await memory.reserve(reserved, MEMORY_WAIT_SECONDS):
            await self.push(str(_NO_MEMORY))
            return
        mail = DataReader(self._max_octets)
        deadline = self.loop.time() + DATA_SECONDS
        try:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            while not mail.ended:
                rest = mail.feed(await self.read_available())
                if rest:  # pipelined commands after the mail (RFC 2920)
                    self.push_back(rest)
                self.restart_timer()
                if mail.octets_in_memory > reserved and not memory.try_reserve(mail.octets_in_memory - reserved):
                    mail.refuse(_NO_MEMORY)
                elif mail.octets_in_memory > reserved:
                    reserved = mail.octets_in_memory
                if mail.refusal is not None:
                    memory.release(reserved)
                    reserved = 0
                if not mail.ended and (self.loop.time() > deadline or mail.octets > self._max_octets + DRAIN_OCTETS):
                    self.end_session("421 4.4.2 The mail takes too long, or does not end")
                    return
            self.restart_timer(COMMIT_SECONDS)
            await self._commit(mail)
        finally:
            memory.release(reserved)

    async def _commit(self, mail: DataReader) -> None:
        """Check the header and the size, commit the mail, and reply."""
        envelope, author = self.envelope, self.session.author
        assert envelope.directory is not None and author is not None and envelope.sender is not None
        refusal = mail.refusal or check_header(envelope.directory, author, mail.values)
        external = envelope.directory.external_ids.get(author.external_id)
        refusal = refusal or check_size(external, envelope.recipients.values(), mail.octets)
        if refusal or external is None:
            await self._refuse(refusal or SmtpRefusal(451, "4.3.5", "The account has no external account"), author)
            return
        pending = build_submission(
            author,
            external,
            envelope.sender,
            list(envelope.recipients.values()),
            mail,
            smtputf8=envelope.smtputf8,
            dsn_params=envelope.dsn_params,
        )
        try:
            with STAGE_SECONDS.labels("submission").time():
                committed = await self._queue.commit(pending)
        except CommitOutcomeUnknown as failure:  # neither reply would be true: without a reply the client tries again
            log.warning("commit outcome unknown", peer=self.peer, author=author.address, error=str(failure))
            self.abort()
            return
        except Temporary as failure:
            log.warning("commit failed, client tries again", peer=self.peer, author=author.address, error=str(failure))
            await self.push(TRY_LATER)
            return
        if committed.id is None:
            self.end_session(str(_ACCOUNT_CHANGED))
        else:
            await self.push(f"250 2.0.0 Queued as {committed.id}")

    async def _refuse(self, refusal: SmtpRefusal, author: Local | None) -> None:
        REFUSED.labels("temporary" if refusal.code < 500 else "permanent").inc()
        log.info("mail refused", peer=self.peer, author=author.address if author else None, reply=str(refusal))
        await self.push(str(refusal))

    # ------------------------------------------------------------------------------------------ other commands

    async def smtp_QUIT(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.10."""
        if arg:
            await self.push("501 5.5.4 QUIT takes no parameter")
        else:
            self.end_session("221 2.0.0 Bye")

    async def smtp_VRFY(self, arg: str | None) -> None:
        """RFC 5321 section 3.5.3: the reply does not depend on whether the address exists."""
        if not await self.check_auth_needed("VRFY"):
            await self.push("252 2.5.2 Send some mail, and see")

    async def smtp_EXPN(self, arg: str | None) -> None:
        """RFC 5321 section 3.5."""
        await self.push("502 5.5.1 EXPN is not implemented")

    async def smtp_HELP(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.8."""
        await self.push("214 2.0.0 AUTH DATA EHLO HELO HELP MAIL NOOP QUIT RCPT RSET STARTTLS VRFY")
