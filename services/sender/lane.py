"""A lane: one SMTP connection to a relay of an account, which sends mail after mail.

Where the server supports PIPELINING (RFC 2920), the envelope of the next mail goes out behind the final dot: a mail
then takes one round trip.
"""

from __future__ import annotations

import asyncio

import structlog

from services.sender import outgoing_message
from services.sender.account_queue import AccountQueue, ClaimedMail
from services.sender.account_status import AccountStatus
from services.sender.claims import Claims
from services.sender.connection_pool import ConnectionPool, same_server
from services.sender.smtp_transaction import DeliveryResult, OutgoingMessage, SmtpEnvelope
from services.sender.transmission import Transmission, TransmissionState
from shared.db.database import Database
from shared.provider.smtp_client import SERVER_FULL, OutcomeUnknown, SmtpClient, SmtpConnectionLost
from shared.provider.smtp_login import ServerUnavailable

PIPELINED_SECONDS = 2.0
"""Limits how long a pipelined mail waits for the reply to the mail before: seconds; then another lane sends it."""
PROMPT_SECONDS = 0.5
"""A mail is pipelined if the last reply came within this time: seconds; behind a slow one it would wait."""

log = structlog.get_logger()


class Lane:
    """Sends one mail at a time; ``pipelined`` is the mail that it has taken to follow the current one."""

    def __init__(
        self,
        queue: AccountQueue,
        first: ClaimedMail,
        database: Database,
        claims: Claims,
        connections: ConnectionPool,
        status: AccountStatus,
    ) -> None:
        """Take an idle connection if there is one. :param first: the mail to send first."""
        self.external = first.external  # as it was when the connection was opened
        self.client: SmtpClient | None = connections.take_idle(first.external)
        self.pipelined: ClaimedMail | None = None
        self._queue = queue
        self._database = database
        self._claims = claims
        self._connections = connections
        self._status = status
        self._envelope: SmtpEnvelope | None = None  # of the pipelined mail, if it was sent behind the final dot
        self._must_close = False  # close after the current mail: another lane has taken the pipelined mail
        self._answers_quickly = False  # the last reply to a final dot came soon
        self._transmission: Transmission | None = None  # of the current mail

    @property
    def awaits_answer(self) -> bool:
        """Whether the final dot is sent and the reply to it is not here."""
        return self._transmission is not None and self._transmission.state is TransmissionState.FINAL_DOT_SENT

    @property
    def is_connected(self) -> bool:
        """Whether its connection is open, as far as this side knows."""
        return self.client is not None and self.client.alive

    def take_pipelined(self) -> ClaimedMail | None:
        """Take the pipelined mail, which the lane then sends next."""
        claimed, self.pipelined = self.pipelined, None
        return claimed

    def give_back_pipelined(self) -> None:
        """Let another lane send the pipelined mail; this server has its envelope at most, not its content."""
        if self._envelope is not None:
            self._envelope, self._must_close = None, True
        if (claimed := self.take_pipelined()) is not None:
            self._queue.give_back(claimed)

    def close_connection(self) -> None:
        """Close the connection: the next mail needs a new login."""
        if self.client is not None:
            self.client.close()

    def end(self) -> None:
        """Give back what the lane has: the pipelined mail to its queue, the connection to the pool."""
        self.give_back_pipelined()
        if self.client is not None:
            if self._must_close:
                self.client.close()
            self._connections.keep(self.client, self.external)

    async def send(self, claimed: ClaimedMail) -> DeliveryResult:
        """Send a mail over the connection, once more over a new one if the server had ended the old one.

        :raises AccountFailure: nothing can be sent through the account now. :raises ClaimLost: another sender has the
        mail. :raises AccountChanged: the account was changed since the claim. :raises Temporary: the database is
        unavailable. After each of these no final dot was sent.
        """
        message = self._build_message(claimed)
        if self.client is not None and not same_server(claimed.external, self.external):
            self.client.close()
        self.external = claimed.external
        while True:
            client, envelope = self.client, self._envelope
            self._envelope = None
            reused = client is not None and client.alive
            if client is None or not reused:
                client, envelope = await self._connect(), None
            try:
                with Transmission(client, message, envelope) as transmission:
                    self._transmission = transmission
                    result = await self._take_steps(transmission, claimed)
                    if (with_sender := transmission.message_with_sender()) is None:
                        return result
                    message = with_sender
            except SmtpConnectionLost as error:
                if (for_accepted := transmission.message_for_accepted()) is not None:
                    message = for_accepted  # too many recipients: those that the server accepts are sent first
                elif not reused and transmission.is_dismissed and len(self.external.relays) > 1:
                    raise ServerUnavailable(str(error), SERVER_FULL) from error  # the next relay may take the mail
                elif not reused:
                    return transmission.interrupted(str(error))
                # Servers end idle connections: the mail is not the cause.
            except OutcomeUnknown as error:
                return transmission.interrupted(str(error))
            finally:
                self._transmission = None
                if self._must_close:
                    client.close()
                    self._must_close = False

    async def _take_steps(self, transmission: Transmission, claimed: ClaimedMail) -> DeliveryResult:
        if await transmission.announce() and await transmission.send_content():
            following = None if transmission.may_be_repeated else self._pipeline_next()
            await self._claims.mark_sending(claimed.mail, claimed.account_version)
            transmission.confirm_mark()
            if transmission.send_final_dot(following):
                await self._read_answer(transmission, following)
        return transmission.result()

    async def _read_answer(self, transmission: Transmission, following: SmtpEnvelope | None) -> None:
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        timer: asyncio.TimerHandle | None = None
        if following is not None:
            self._envelope = following
            timer = loop.call_later(PIPELINED_SECONDS, self.give_back_pipelined)
        try:
            await transmission.read_answer()
        finally:
            if timer is not None:
                timer.cancel()
            self._answers_quickly = loop.time() - sent_at < PROMPT_SECONDS

    def _pipeline_next(self) -> SmtpEnvelope | None:
        """Take the mail to follow the current one, and return its envelope, to be sent behind the final dot.

        None while a lane is free, which would send the mail sooner, and None where the last reply came late: a
        pipelined mail waits for the reply to the mail before.
        """
        client, queue = self.client, self._queue
        if client is None or not client.pipelining or not self._answers_quickly or self.pipelined is not None:
            return None
        if queue.stopping or not queue.prefetched or not queue.is_every_lane_busy or self._claims.is_recording_blocked:
            return None
        claimed = queue.prefetched[0]
        if not same_server(claimed.external, self.external):
            return None
        self.pipelined = queue.prefetched.popleft()
        try:
            envelope = SmtpEnvelope(client, self._build_message(claimed))
        except Exception as error:  # the lane builds it again when its turn comes, and counts the failure
            log.warning("mail not pipelined", submission_id=claimed.mail.id, error=repr(error))
            return None
        return envelope if envelope.commands else None

    def _build_message(self, claimed: ClaimedMail) -> OutgoingMessage:
        if claimed.message is None:
            claimed.message = outgoing_message.build_message(
                self._database, claimed.mail, claimed.external, claimed.source
            )
        return claimed.message

    async def _connect(self) -> SmtpClient:
        self.client = await self._connections.connect(self.external)
        self._queue.login_failures = 0
        if await self._status.record_login(self.external, self.client):
            self._queue.request_claim()  # after failures one lane tried alone; now more may start
        return self.client
