"""Transmits one mail on one connection, step by step (RFC 5321 section 3.3). The lane calls and records the steps.

::

    prepared ─ announce ─▶ announced ─ send_content ─▶ content sent ─ confirm_mark ─▶ marked
                                                                                        │ send_final_dot
    answered ◀──────────────────────────── read_answer ──────────────────── final dot sent ◀┘

Each step may end in *answered* at once: then the server has refused the mail. From the final dot on the provider may
have the mail, so the mark is committed before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from types import TracebackType
from typing import Self

from services.sender.smtp_transaction import (
    DeliveryResult,
    OutgoingMessage,
    Replies,
    SmtpEnvelope,
    classify,
    classify_interrupted,
)
from shared.provider.smtp_client import (
    ANSWER_SECONDS,
    AUTH_REQUIRED,
    DATA_SECONDS,
    SERVER_FULL,
    START_DATA,
    Commands,
    OpenMessage,
    Reply,
    SmtpClient,
    SmtpConnectionLost,
)
from shared.provider.smtp_login import AuthFailed
from shared.store.relay_queue import QueuedRecipient


class TransmissionState(Enum):
    """How far a mail has come on its connection."""

    PREPARED = auto()
    ANNOUNCED = auto()  # the server accepts a recipient and waits for the content
    CONTENT_SENT = auto()  # all but the octets that leave together with the final dot
    MARKED = auto()  # the state sent_unanswered is committed
    FINAL_DOT_SENT = auto()  # the provider may have the mail
    ANSWERED = auto()  # the replies decide about each recipient


class Transmission:
    """A context manager: it closes the connection unless the server has answered, as the server is within a mail.

    Each step raises SmtpConnectionLost if the connection ends; ``interrupted`` then returns the result.
    """

    def __init__(self, client: SmtpClient, message: OutgoingMessage, envelope: SmtpEnvelope | None = None) -> None:
        """:param envelope: of this message, if it was sent already, behind the final dot of the mail before."""
        self.state = TransmissionState.PREPARED
        self._client = client
        self._message = message
        self._envelope = envelope
        self._replies = Replies() if envelope is None else envelope.replies
        self._open: OpenMessage | None = None
        self._followed = False  # the next envelope was sent behind the final dot
        self._dismissal: Reply | None = None  # the 421 with which the server has ended the connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.state is not TransmissionState.ANSWERED:
            self._client.close()

    async def announce(self) -> bool:
        """Send the envelope and read the replies. Return False if the server has refused the mail or all recipients.

        If the server allows PIPELINING, the envelope goes out in one write, or was sent already.

        :raises AuthFailed: the server requires a login.
        :raises SmtpConnectionLost: also for a command that would be two.
        """
        envelope = self._envelope or SmtpEnvelope(self._client, self._message)
        self._envelope, self._replies, commands = envelope, envelope.replies, envelope.commands
        if commands is None:  # this server can accept none of the recipients
            self.state = TransmissionState.ANSWERED
            return False
        if self._client.pipelining:
            if not envelope.pipelined:
                self._client.send(commands)
            await self._read_replies(envelope.recipients, commands)
        else:
            await self._send_one_by_one(envelope.recipients, commands)
        if self._replies.final is not None or not any(reply.accepted for reply in self._replies.recipients.values()):
            await self._end()
            return False
        self.state = TransmissionState.ANNOUNCED
        return True

    async def send_content(self) -> bool:
        """Send the content, but for its last octets. Return False if the server has refused the mail meanwhile."""
        self._open = await self._client.send_content(self._message.pieces())
        if self._open.answered:
            self._read_early_reply(self._open)
            return False
        self.state = TransmissionState.CONTENT_SENT
        return True

    def confirm_mark(self) -> None:
        """Note that the state ``sent_unanswered`` is committed, so the final dot may follow."""
        self.state = TransmissionState.MARKED

    def send_final_dot(self, following: SmtpEnvelope | None) -> bool:
        """Send the final dot. Return False if the server has refused the mail meanwhile: no dot is sent.

        :param following: the envelope of the next mail, which goes out in the same write (RFC 2920 3.1).
        """
        if self.state is not TransmissionState.MARKED or self._open is None:
            raise RuntimeError(f"no final dot without a committed mark: {self.state.name}")
        if self._open.answered:
            self._read_early_reply(self._open)
            return False
        self.state = TransmissionState.FINAL_DOT_SENT
        self._followed = following is not None
        self._client.send_final_dot(self._open, None if following is None else following.commands)
        return True

    async def read_answer(self) -> None:
        """Wait for the reply to the final dot. :raises OutcomeUnknown: there is none."""
        assert self._open is not None
        self._replies.final = await self._client.final_reply(self._open)
        await self._end()

    def result(self) -> DeliveryResult:
        """Return what the replies say about each recipient."""
        return classify(self._message.recipients, self._replies)

    @property
    def may_be_repeated(self) -> bool:
        """Whether the mail may need another transaction, with another sender: no other mail may follow it."""
        return self._message.other_sender is not None

    def message_with_sender(self) -> OutgoingMessage | None:
        """Return the message with its other sender, if the server has refused it, None in any other case."""
        if self._message.other_sender is None or any(outcome.state != "failed" for outcome in self.result().outcomes):
            return None
        return replace(self._message, mail_from=self._message.other_sender, other_sender=None)

    def message_for_accepted(self) -> OutgoingMessage | None:
        """Return the message for the recipients that were accepted before the server ended the connection with 421.

        None unless the server has done so. The message has fewer recipients than this one.
        """
        replies = self._replies.recipients
        accepted = {position for position, reply in replies.items() if reply.accepted}
        full = next((reply for reply in replies.values() if reply.code == SERVER_FULL), None)
        if full is None or not accepted:
            return None
        answered = {
            waiting.position: replies.get(waiting.position, full)
            for waiting in self._message.recipients
            if waiting.position not in accepted
        }
        return replace(self._message, answered=answered) if answered != self._message.answered else None

    @property
    def is_dismissed(self) -> bool:
        """Whether the server has ended the connection with 421 before the final dot."""
        return self._dismissal is not None

    def interrupted(self, reason: str) -> DeliveryResult:
        """Return the result after the connection has ended. :param reason: for the recipients that still wait."""
        unanswered = self.state is TransmissionState.FINAL_DOT_SENT
        return classify_interrupted(self._message.recipients, self._replies, reason, unanswered, self._dismissal)

    # ------------------------------------------------------------------------------------------ replies

    async def _end(self) -> None:
        """End the transaction: after a refusal the server still knows sender and recipients (RSET)."""
        self.state = TransmissionState.ANSWERED
        final = self._replies.final
        if (final is not None and final.accepted) or self._followed or not self._client.alive:
            return  # RSET would also end the next transaction
        try:
            await self._client.reset()
        except SmtpConnectionLost:
            self._client.close()  # all replies are known; the next mail uses a new connection

    def _read_early_reply(self, message: OpenMessage) -> None:
        self._replies.final = self._client.early_reply(message)
        self.state = TransmissionState.ANSWERED

    async def _send_one_by_one(self, waiting_recipients: Sequence[QueuedRecipient], commands: Commands) -> None:
        """Send the commands one by one. ``final`` is set if the message must not follow."""
        mail, *recipients, data = commands.lines
        reply = self._check(await self._client.command(mail))
        if not reply.accepted:
            self._replies.final = reply
            return
        for waiting, line in zip(waiting_recipients, recipients, strict=True):
            reply = self._check_recipient(reply if reply.code == SERVER_FULL else await self._client.command(line))
            self._replies.recipients[waiting.position] = reply
        if any(reply.accepted for reply in self._replies.recipients.values()):
            self._check_data(self._check(await self._client.command(data, DATA_SECONDS)))

    async def _read_replies(self, waiting_recipients: Sequence[QueuedRecipient], commands: Commands) -> None:
        """Read the replies to pipelined commands, all of them before the next command.

        After a refused MAIL the replies to RCPT and DATA follow from that (503) and concern no recipient.
        """
        mail, *recipients, data = commands.replies
        first = self._check(await self._client.reply(mail))
        if not first.accepted:
            self._replies.final = first
        for waiting, pending in zip(waiting_recipients, recipients, strict=True):
            reply = self._check_recipient(await self._client.reply(pending))
            if first.accepted:
                self._replies.recipients[waiting.position] = reply
        reply = await self._client.reply(data, DATA_SECONDS)
        if any(reply.accepted for reply in self._replies.recipients.values()):
            self._check_data(self._check(reply))
        elif reply.code == START_DATA:  # the server expects a mail without recipients: a lone dot ends it (2920 3.1)
            if not first.accepted:
                self._client.close()  # a server that refused MAIL and accepts DATA is out of step
            else:
                await self._client.command(b".", ANSWER_SECONDS)

    def _check_data(self, reply: Reply) -> None:
        if reply.accepted:  # no valid reply to DATA: the server would read the message as commands
            self._client.close()
            raise SmtpConnectionLost(f"the server answered DATA with {reply}")
        if reply.code != START_DATA:
            self._replies.final = reply

    def _check_recipient(self, reply: Reply) -> Reply:
        """Check a reply to RCPT. A 421 after others were accepted may mean too many recipients: DATA may still work."""
        if reply.code == SERVER_FULL and any(earlier.accepted for earlier in self._replies.recipients.values()):
            return reply
        return self._check(reply)

    def _check(self, reply: Reply) -> Reply:
        if reply.code == SERVER_FULL:  # the server closes the connection (RFC 5321 3.8)
            self._dismissal = reply
            self._client.close()
            raise SmtpConnectionLost(f"the server ended the connection: {reply}")
        if reply.code == AUTH_REQUIRED:
            self._client.close()
            raise AuthFailed(f"the server wants a login ({reply}); check auth, login and password")
        return reply
