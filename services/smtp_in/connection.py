"""The mail transactions of a session: MAIL, RCPT, DATA (RFC 5321, 6409, 1870, 6152, 6531, 2034, 2920, 3461).

``command_loop.py`` reads the commands and limits the time between them, ``login.py`` logs the client in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, cast

import structlog
from aiosmtpd import smtp
from prometheus_client import Counter

from services.smtp_in.commit_queue import CommitQueue, PendingSubmission, build_submission
from services.smtp_in.data_reader import DataReader, SmtpRefusal
from services.smtp_in.envelope_policy import LOGIN_ENDED, Envelope, check_mail, check_recipient, check_sender
from services.smtp_in.login import TRY_LATER, LoginConnection, SmtpRegistry
from services.smtp_in.parameters import PathParameters, parse_mail, parse_rcpt
from services.smtp_in.receive_memory import MailMemory
from services.smtp_in.recipient_policy import Directory, check_syntax
from services.smtp_in.sender_policy import NO_REDIRECT
from shared.auth.authenticator import Authenticator
from shared.db.group_commit import CommitOutcomeUnknown
from shared.errors import Temporary
from shared.metrics import STAGE_SECONDS
from shared.model import EnvelopeRecipient, Local
from shared.net.least_rate import LeastRate
from shared.net.server_tls import Certificate

MAX_RECIPIENTS = 1000
DRAIN_OCTETS = 64 * 1024 * 1024
"""Octets of a refused mail that are read and dropped beyond the size limit, so that the client gets the reply; then the
connection is closed."""
DATA_SECONDS = 3600.0
"""Time for the content: seconds; a mail of 50 MiB takes so long at 15 KB a second."""
LEAST_OCTETS_A_SECOND = 1024
"""Least rate of the content: octets a second; GPRS at the edge of a cell still has twice of it."""
PAUSE_SECONDS = 300.0
"""Longest pause within the content, as long as the content before was fast enough: seconds (RFC 5321 4.5.3.2)."""
COMMIT_SECONDS = 600.0
MEMORY_WAIT_SECONDS = 60.0
"""Wait for memory in the middle of the content: seconds; the client waits for three minutes (RFC 5321 4.5.3.2.5)."""
COMMIT_PAUSES = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""Pauses between the tries of a commit while accounts of the envelope are being changed: seconds; then the client has
to try again. A change takes milliseconds, and a few seconds where many accounts change together."""

_NO_MEMORY = SmtpRefusal(452, "4.3.1", "Too many large mails at once, try again later")

REFUSED = Counter(
    "mailgroup_submissions_refused_total", "Mails and recipients of mail clients that were refused.", ["kind"]
)
for _kind in ("temporary", "permanent"):
    REFUSED.labels(_kind)

LOCAL_ORGANIZERS = Counter(
    "mailgroup_local_organizers_total", "Submitted invitations that name a local address as their organizer."
)

log = structlog.get_logger()


Checked = TypeVar("Checked")


class Transaction(smtp.Envelope):
    """The envelope of a mail."""

    def __init__(self) -> None:
        super().__init__()
        self.sender: str | None = None  # None before MAIL, '' for <>
        self.smtputf8 = False
        self.dsn_params: str | None = None  # RET and ENVID of MAIL
        self.size = 0  # octets that the client announced with MAIL
        self.recipients: list[EnvelopeRecipient] = []  # accepted, with NOTIFY and ORCPT
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
        """RFC 5321 section 4.1.1.2."""
        if await self.check_helo_needed() or await self.check_auth_needed("MAIL"):
            return
        if self.in_transaction:
            await self.push("503 5.5.1 There is a mail under way")
            return
        path = parse_mail(arg or "", self._max_octets)
        if isinstance(path, SmtpRefusal):
            await self.push(str(path))
            return
        if path.address and (refusal := check_syntax(path.address, path.smtputf8)):
            await self._refuse(refusal)
            return
        self._queue.refresh_in_background()
        login = cast(Local, self.session.author)
        author = await self._check(lambda directory: check_sender(directory, login, path.address))
        if author is LOGIN_ENDED:
            self.on_account_changed()
            return
        if isinstance(author, SmtpRefusal):
            await self._refuse(author)
            return
        envelope = self.envelope
        envelope.sender, envelope.smtputf8 = path.address, path.smtputf8
        envelope.dsn_params, envelope.size = path.dsn_params, path.size
        await self.push("250 2.1.0 Sender ok")

    async def smtp_RCPT(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.3."""
        if await self.check_helo_needed() or await self.check_auth_needed("RCPT"):
            return
        envelope = self.envelope
        if not self.in_transaction:
            await self.push("503 5.5.1 MAIL first")
            return
        envelope.rcpt_seen = True
        path = parse_rcpt(arg or "")
        refusal = path if isinstance(path, SmtpRefusal) else check_syntax(path.address, envelope.smtputf8)
        if refusal is None and len(envelope.recipients) >= MAX_RECIPIENTS:
            refusal = SmtpRefusal(452, "4.5.3", "Too many recipients, send to the rest in another mail")
        if refusal is None:
            address, author = cast(PathParameters, path).address, cast(Local, self.session.author)
            recipient = await self._check(lambda directory: check_recipient(directory, author, address, envelope.size))
            if isinstance(recipient, EnvelopeRecipient):
                dsn_params = cast(PathParameters, path).dsn_params
                envelope.recipients.append(replace(recipient, dsn_params=dsn_params) if dsn_params else recipient)
                await self.push("250 2.1.5 Recipient ok")
                return
            refusal = recipient
        await self._refuse(refusal)

    async def _check(self, check: Callable[[Directory], Checked | SmtpRefusal]) -> Checked | SmtpRefusal:
        """Check a command with the cached accounts, and if they refuse it, with the accounts as they are now."""
        checked = check(self._queue.cached_directory)
        if not isinstance(checked, SmtpRefusal):
            return checked
        try:
            return check(await self._queue.refresh_directory())
        except Temporary as failure:
            log.warning("account check failed", peer=self.peer, error=str(failure))
            return TRY_LATER

    # ------------------------------------------------------------------------------------------ content

    async def smtp_DATA(self, arg: str | None) -> None:
        """RFC 5321 section 4.1.1.4: read, check, commit, reply, in this order."""
        if await self.check_helo_needed() or await self.check_auth_needed("DATA"):
            return
        if arg:
            await self.push("501 5.5.4 DATA takes no parameter")
        elif not self.envelope.recipients:
            await self.push("554 5.5.1 No valid recipients" if self.envelope.rcpt_seen else "503 5.5.1 RCPT first")
        else:
            self._receiving = True
            try:
                await self._receive_data()
            finally:
                self._receiving = self._committing = False
                self.reset_transaction()
                self.restart_timer()
            self.end_if_due()

    async def _receive_data(self) -> None:
        """Read the content, in memory that is reserved as it arrives, and commit the mail."""
        mail, memory = DataReader(self._max_octets), self._queue.memory.open(cast(Local, self.session.author).id)
        started_at = self.loop.time()
        rate = LeastRate(LEAST_OCTETS_A_SECOND, PAUSE_SECONDS, started_at)
        deadline = started_at + DATA_SECONDS
        try:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            while not mail.ended:
                now = self.loop.time()
                self.restart_timer(max(0.001, min(self.idle_seconds, rate.seconds_left(now), deadline - now)))
                chunk = await self.read_available()
                rate.record(len(chunk), self.loop.time())
                rest = mail.feed(chunk)
                if rest:  # pipelined commands after the mail (RFC 2920)
                    self.push_back(rest)
                if not memory.try_grow(mail.octets_in_memory):
                    waited = await self._wait_for_memory(mail, memory)
                    rate.extend(waited)
                    deadline += waited
                if mail.refusal is not None:
                    memory.close()
                if not mail.ended and mail.octets > self._max_octets + DRAIN_OCTETS:
                    self.end_session("421 4.4.2 The mail does not end")
                    return
            self._committing = True
            self.restart_timer(COMMIT_SECONDS)
            await self._commit(mail)
        finally:
            memory.close()

    async def _wait_for_memory(self, mail: DataReader, memory: MailMemory) -> float:
        """Wait for memory, and refuse the mail if there is none. Returns the seconds of the wait."""
        began_at = self.loop.time()
        self.restart_timer(2 * MEMORY_WAIT_SECONDS)
        if not await memory.grow(mail.octets_in_memory, MEMORY_WAIT_SECONDS):
            mail.refuse(_NO_MEMORY)
        return self.loop.time() - began_at

    async def _commit(self, mail: DataReader) -> None:
        """Check the mail, commit it, and reply.

        Nothing is stored if the accounts have changed since the check: then the mail is checked by the accounts as they
        are now. Only these refuse a mail.
        """
        if mail.refusal is not None:
            await self._refuse(mail.refusal)
            return
        directory, current = self._queue.cached_directory, False
        try:
            for pause in COMMIT_PAUSES:
                checked = self._check_mail(directory, mail)
                if isinstance(checked, Envelope) and not await self._queue.may_redirect(checked):
                    await self._refuse(NO_REDIRECT)
                    return
                if isinstance(checked, Envelope):
                    with STAGE_SECONDS.labels("submission").time():
                        submission = self._submission(checked, mail)
                        committed = await self._queue.commit(submission)
                    if committed.id is not None:
                        if submission.organizer is not None:
                            LOCAL_ORGANIZERS.inc()
                        await self.push(f"250 2.0.0 Queued as {committed.id}")
                        return
                elif current:
                    await self._refuse(checked)
                    return
                await asyncio.sleep(pause)
                directory, current = await self._queue.refresh_directory(), True
            raise Temporary("the accounts of the envelope are being changed")
        except CommitOutcomeUnknown as failure:  # neither reply would be true: without a reply the client tries again
            log.warning("commit outcome unknown", peer=self.peer, author=self._author_address, error=str(failure))
            self.abort()
        except Temporary as failure:
            log.warning(
                "commit failed, client tries again", peer=self.peer, author=self._author_address, error=str(failure)
            )
            await self.push(str(TRY_LATER))

    def _check_mail(self, directory: Directory, mail: DataReader) -> Envelope | SmtpRefusal:
        envelope, login = self.envelope, cast(Local, self.session.author)
        return check_mail(directory, login, cast(str, envelope.sender), envelope.recipients, mail.values, mail.octets)

    def _submission(self, checked: Envelope, mail: DataReader) -> PendingSubmission:
        envelope = self.envelope
        return build_submission(
            checked, cast(str, envelope.sender), mail, smtputf8=envelope.smtputf8, dsn_params=envelope.dsn_params
        )

    @property
    def _author_address(self) -> str | None:
        return self.session.author.address if self.session.author else None

    async def _refuse(self, refusal: SmtpRefusal) -> None:
        """Send the refusal; the session ends if the account was changed."""
        REFUSED.labels("temporary" if refusal.code < 500 else "permanent").inc()
        log.info("mail refused", peer=self.peer, author=self._author_address, reply=str(refusal))
        if refusal is LOGIN_ENDED:
            self.end_session(str(refusal))
        else:
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
