"""An SMTP transaction as data: the commands of its envelope, its replies, and what they say about each recipient."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.sender import retry_policy
from shared.mime import dsn_options
from shared.provider.smtp_client import SERVER_FULL, Commands, Reply, SmtpClient
from shared.store.relay_queue import QueuedRecipient, RecipientResult

THROTTLED = 432
"""Reply code of Microsoft for too many concurrent connections or messages."""
TOO_LARGE = 552
"""Reply code for a message over the size limit (RFC 1870)."""
_NO_SMTPUTF8 = Reply(553, "5.6.7 the provider's mail server does not take internationalised addresses (SMTPUTF8)")


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A rewritten mail, ready to send."""

    mail_from: str  # '' for the null sender
    recipients: tuple[QueuedRecipient, ...]
    octets: int  # of header and body
    body_8bit: bool
    header_8bit: bool  # the header is not ASCII (RFC 6532)
    smtputf8: bool
    pieces: Callable[[], AsyncIterator[bytes]]
    dsn_params: str | None = None  # RET and ENVID of the submission (shared/mime/dsn_options.py)
    other_sender: str | None = None  # for one more transaction if the server refuses the null sender
    answered: Mapping[int, Reply] = field(default_factory=dict)  # by position: recipients that are not tried once more


@dataclass(slots=True)
class Replies:
    """The replies of the server in one transaction."""

    recipients: dict[int, Reply] = field(default_factory=dict)  # replies to RCPT, by the recipient's position
    final: Reply | None = None  # the reply about the mail as a whole, None if there was none
    server_sends_notices: bool = False  # the DSN parameters were passed on (RFC 3461 section 5.2.2)


@dataclass(frozen=True, slots=True)
class AccountRejection:
    """A rejection that concerns the account, not the mail."""

    kind: Literal["sender", "throttled"]  # label of relay_errors_total
    text: str
    pause: bool  # an administrator must correct the account; otherwise the cause passes by itself
    seconds: float  # back-off of the account


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The result of one try to relay a mail."""

    outcomes: tuple[RecipientResult, ...]  # one for each recipient
    retry_now: bool  # the server limits recipients: send the others in a new transaction, without counting a try
    count_try: bool  # a recipient was refused temporarily
    unanswered: bool = False  # the connection ended after the final dot, before the reply
    interrupted: bool = False  # the connection ended before the final dot
    server_sends_notices: bool = False  # the server reports the delivery itself
    too_large: bool = False  # the server accepts no mail of this size
    rejection: AccountRejection | None = None

    @property
    def relayed(self) -> bool:
        """Whether the server has accepted the mail for a recipient."""
        return any(outcome.state == "relayed" for outcome in self.outcomes)


class SmtpEnvelope:
    """The commands of a transaction up to DATA, and the replies to them.

    ``replies`` is filled as the replies arrive, so that those before a failure are known. ``commands`` is None if this
    server can accept none of the recipients; ``replies`` then says why.
    """

    def __init__(self, client: SmtpClient, message: OutgoingMessage) -> None:
        self.message = message
        self.replies = Replies(dict(message.answered))
        self.recipients: list[QueuedRecipient] = []
        self.commands: Commands | None = None
        utf8_server = "smtputf8" in client.extensions
        if message.smtputf8 and message.header_8bit and not utf8_server:
            self.replies.final = _NO_SMTPUTF8
            return
        non_ascii = {waiting.position for waiting in message.recipients if not waiting.address.isascii()}
        if not utf8_server:
            self.replies.recipients |= dict.fromkeys(non_ascii, _NO_SMTPUTF8)
        self.recipients = [waiting for waiting in message.recipients if waiting.position not in self.replies.recipients]
        if not self.recipients:
            return
        mail = b"MAIL FROM:<" + message.mail_from.encode() + b">"
        if "size" in client.extensions:
            mail += b" SIZE=%d" % message.octets
        if "8bitmime" in client.extensions and (message.body_8bit or message.header_8bit):
            mail += b" BODY=8BITMIME"
        if utf8_server and (non_ascii or message.smtputf8 or not message.mail_from.isascii()):
            mail += b" SMTPUTF8"
        recipients = [b"RCPT TO:<" + waiting.address.encode() + b">" for waiting in self.recipients]
        if "dsn" in client.extensions:
            self.replies.server_sends_notices = True
            mail += dsn_options.format_for_server(message.dsn_params, utf8_server)
            recipients = [
                line + dsn_options.format_for_server(waiting.dsn_params, utf8_server)
                for line, waiting in zip(recipients, self.recipients, strict=True)
            ]
        self.commands = Commands([mail, *recipients, b"DATA"])

    @property
    def pipelined(self) -> bool:
        """Whether the commands were sent already, behind the final dot of the mail before."""
        return self.commands is not None and bool(self.commands.replies)


def classify(recipients: Sequence[QueuedRecipient], replies: Replies) -> DeliveryResult:
    """Classify the replies. A recipient without a permanent reply waits for another try."""
    final = replies.final
    sent = final is not None and final.accepted
    outcomes = []
    rejection = None if final is None else rejection_of(final)
    limits = {position: found for position, reply in replies.recipients.items() if (found := limit_of(reply))}
    retry_now = refused = False
    crowded = _crowded_out(recipients, replies)
    for waiting in recipients:
        reply = replies.recipients.get(waiting.position, final or Reply(451, "4.3.0 the mail was not tried"))
        if reply.accepted and final is not None:
            reply = final
        if reply.accepted and sent:
            outcomes.append(RecipientResult(waiting.position, "relayed", str(reply)))
        elif waiting.position in crowded:
            retry_now, refused = retry_now or sent, refused or not sent
            outcomes.append(RecipientResult(waiting.position, "waiting", str(reply)))
        elif reply.refused and (rejection is None or reply is not final) and waiting.position not in limits:
            outcomes.append(RecipientResult(waiting.position, "failed", str(reply)))
        else:
            refused = True
            outcomes.append(RecipientResult(waiting.position, "waiting", str(reply)))
    return DeliveryResult(
        tuple(outcomes),
        retry_now,
        refused and not retry_now,
        server_sends_notices=replies.server_sends_notices,
        too_large=final is not None and _is_too_large(final),
        rejection=rejection or next(iter(limits.values()), None),
    )


_NOT_THIS_SENDER = {"5.2.252", "5.7.60"}
_QUOTA = {"5.4.5", "5.1.90"}
_QUOTA_IN_WORDS = re.compile(
    r"SubmissionQuotaExceeded"
    r"|\b(daily|hourly|24[- ]hours?)( user| mail| e?mail| message| recipient| sending)* (limit|quota)"
    r"|\b(mail send|sending|messaging|outgoing( mail| message)?) (limit|quota)s?\b"
    r"|\bmax(imum)? (e?mails|messages|recipients) per (hour|day)",
    re.IGNORECASE,
)
_RATE_IN_WORDS = re.compile(
    r"\brate[- ]?limit|\bsending rate\b|\bthrottl|\btoo much mail from\b|\b(e?mails|messages) per minute\b",
    re.IGNORECASE,
)
_TOO_LARGE = {"5.3.4", "5.2.3"}


def rejection_of(reply: Reply) -> AccountRejection | None:
    """Return the rejection of the account that a reply about a whole mail expresses, None if it concerns the mail.

    Microsoft's SendAsDenied refuses every mail from this address, so the mail is not the cause. Google and Microsoft
    report their daily limits as permanent errors (550 5.4.5, 5.1.90), but these pass; so do 432 4.3.2 ("concurrent
    connections", "sender thread limit") and 4.7.x ("server busy"), and what ``limit_of`` knows.
    """
    if reply.refused and (reply.status in _NOT_THIS_SENDER or "SendAsDenied" in reply.text):
        text = f"the provider does not let this login send as the account's address; correct one of them ({reply})"
        return AccountRejection("sender", text, True, retry_policy.LOGIN_PAUSE)
    if reply.refused and reply.status in _QUOTA:
        return _reached(reply)
    if reply.code == THROTTLED or (reply.temporary and (reply.status == "4.3.2" or reply.status.startswith("4.7."))):
        return limit_of(reply) or _slowed(reply)
    return limit_of(reply)


def limit_of(reply: Reply) -> AccountRejection | None:
    """Return the limit for sending of which a reply speaks, also one to RCPT; None if it speaks of none.

    Providers say it with any code: cPanel "550 Domain ... has exceeded the max emails per hour", Yahoo "24-hour sending
    limit", GMX and IONOS "Mail send limit exceeded", Amazon "454 Throttling failure: Maximum sending rate exceeded",
    Rspamd "Ratelimit ... exceeded". What a recipient's mailbox may receive is another matter.
    """
    if not (reply.refused or reply.temporary or reply.code == SERVER_FULL):
        return None
    if _QUOTA_IN_WORDS.search(reply.text):
        return _reached(reply)
    return _slowed(reply) if _RATE_IN_WORDS.search(reply.text) else None


def _reached(reply: Reply) -> AccountRejection:
    text = f"the provider's limit for sending is reached ({reply})"
    return AccountRejection("throttled", text, False, retry_policy.QUOTA_PAUSE)


def _slowed(reply: Reply) -> AccountRejection:
    return AccountRejection("throttled", f"the provider slows us down ({reply})", False, retry_policy.THROTTLE_PAUSE)


def _is_too_large(reply: Reply) -> bool:
    return reply.refused and (reply.status in _TOO_LARGE or (reply.code == TOO_LARGE and reply.status == "5.0.0"))


def _crowded_out(recipients: Sequence[QueuedRecipient], replies: Replies) -> set[int]:
    """Return the positions of the recipients that were too many for the transaction, after others were accepted."""
    crowded = set()
    any_accepted = False
    for waiting in recipients:
        reply = replies.recipients.get(waiting.position)
        if reply is not None and any_accepted and is_too_many_recipients(reply):
            crowded.add(waiting.position)
        any_accepted = any_accepted or (reply is not None and reply.accepted)
    return crowded


def is_too_many_recipients(reply: Reply) -> bool:
    """Return whether a reply to RCPT may mean that the server limits the recipients of a transaction.

    Besides 452 4.5.3 and any other code with this status, servers say 552 (RFC 5321 section 4.5.3.1.10) and 421. A
    single recipient is never too many: its own transaction shows what else the reply means.
    """
    if reply.status in ("4.5.3", "5.5.3") or reply.code == SERVER_FULL:
        return True
    return (reply.code == 452 and reply.status == "4.0.0") or (reply.code == 552 and reply.status == "5.0.0")


def classify_interrupted(
    recipients: Sequence[QueuedRecipient],
    replies: Replies,
    reason: str,
    unanswered: bool,
    dismissal: Reply | None = None,
) -> DeliveryResult:
    """Classify the replies of a connection that ended: recipients with a permanent refusal fail, the others wait.

    :param unanswered: the connection ended after the final dot. :param dismissal: the 421 that came before it.
    """
    outcomes = []
    crowded = _crowded_out(recipients, replies)
    for waiting in recipients:
        reply = replies.recipients.get(waiting.position)
        if reply is not None and reply.refused and waiting.position not in crowded and limit_of(reply) is None:
            outcomes.append(RecipientResult(waiting.position, "failed", str(reply)))
        else:
            outcomes.append(RecipientResult(waiting.position, "waiting", reason))
    rejection = None if dismissal is None else limit_of(dismissal)
    return DeliveryResult(tuple(outcomes), False, True, unanswered, not unanswered, rejection=rejection)


_ID = re.compile(r"<([^<>\s@]{1,500}@[^<>\s@]{1,400})>")


def provider_message_ids(reply: str, other_addresses: Collection[str]) -> list[str]:
    """Return the Message-IDs that the provider gave the mail, as its final 250 says.

    :param other_addresses: lower-case addresses in angle brackets that are no Message-ID.
    """
    return [message_id for message_id in _ID.findall(reply) if message_id.lower() not in other_addresses]
