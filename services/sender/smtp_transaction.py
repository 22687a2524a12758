"""One group through one SMTP connection: the envelope, the mail, and what each reply means for each recipient."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.sender import retry_policy
from shared.mime import dsn_options
from shared.provider.smtp_client import (
    ANSWER_SECONDS,
    AUTH_REQUIRED,
    DATA_SECONDS,
    SERVER_FULL,
    START_DATA,
    Commands,
    Reply,
    SmtpClient,
    SmtpConnectionLost,
)
from shared.provider.smtp_connect import AuthFailed
from shared.store.relay_queue import QueuedRecipient, RecipientResult

THROTTLED = 432
TOO_LARGE = 552
_NO_SMTPUTF8 = Reply(553, "5.6.7 the provider's mail server does not take internationalised addresses (SMTPUTF8)")


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A mail as it leaves. octets: of header and body. header_8bit: the header is not ASCII (RFC 6532).

    dsn_params: what is to be told about its delivery (shared/mime/dsn_options.py).
    """

    mail_from: str
    recipients: tuple[QueuedRecipient, ...]
    octets: int
    body_8bit: bool
    header_8bit: bool
    smtputf8: bool
    pieces: Callable[[], AsyncIterator[bytes]]
    dsn_params: str | None = None


@dataclass(slots=True)
class Replies:
    """What the server said. recipients: by position. final: about the mail as a whole, None if it was never asked.

    reporting: it was passed on what is to be told about the delivery, and tells that itself (RFC 3461 section 5.2.2).
    """

    recipients: dict[int, Reply] = field(default_factory=dict)
    final: Reply | None = None
    server_sends_notices: bool = False


@dataclass(frozen=True, slots=True)
class AccountRejection:
    """What a provider has against an account whose mail it refuses. pause: a person has to mend it; or else it passes.

    kind: label of relay_errors_total. seconds: no mail of the account is tried for so long.
    """

    kind: Literal["sender", "throttled"]
    text: str
    pause: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """outcomes: one for each recipient. at_once: some follow in another transaction, no try counted.

    count_try: somebody was refused for now. unanswered: the mail was sent, and the connection ended before the reply.
    broken_off: it ended before the mail was sent. reporting: the server tells itself what became of what it took.
    too_large: it takes no mail of this size. objection: to the account, and not to this mail.
    """

    outcomes: tuple[RecipientResult, ...]
    retry_now: bool
    count_try: bool
    unanswered: bool = False
    interrupted: bool = False
    server_sends_notices: bool = False
    too_large: bool = False
    rejection: AccountRejection | None = None


class SmtpEnvelope:
    """What announces a letter to one server: its commands, whom they name, and what was said.

    replies: filled in as they come, so what was said before a failure is known. Without commands there is nobody whom
    this server can be asked about, and ``replies`` says why.
    """

    def __init__(self, client: SmtpClient, message: OutgoingMessage) -> None:
        self.message = message
        self.replies = Replies()
        self.recipients: list[QueuedRecipient] = []
        self.commands: Commands | None = None
        utf8_server = "smtputf8" in client.extensions
        if message.smtputf8 and message.header_8bit and not utf8_server:
            self.replies.final = _NO_SMTPUTF8
            return
        beyond = {waiting.position for waiting in message.recipients if not waiting.address.isascii()}
        if not utf8_server:
            self.replies.recipients |= dict.fromkeys(beyond, _NO_SMTPUTF8)
        self.recipients = [waiting for waiting in message.recipients if waiting.position not in self.replies.recipients]
        if not self.recipients:
            return
        mail = b"MAIL FROM:<" + message.mail_from.encode() + b">"
        if "size" in client.extensions:
            mail += b" SIZE=%d" % message.octets
        if "8bitmime" in client.extensions and (message.body_8bit or message.header_8bit):
            mail += b" BODY=8BITMIME"
        if utf8_server and (beyond or message.smtputf8 or not message.mail_from.isascii()):
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
        """Whether it went out behind the mail before."""
        return self.commands is not None and bool(self.commands.replies)


async def send_message(
    client: SmtpClient,
    envelope: SmtpEnvelope,
    before_final_dot: Callable[[], Awaitable[None]],
    pipeline_next: Callable[[], Commands | None],
) -> None:
    """Send a letter; its envelope goes out in one write where the server allows it, unless that has happened already.

    :param behind: the commands of the next envelope, to go out with the final dot (RFC 2920 3.1).
    :raises Lost: the connection ended, or the server ended it (421), before the final dot.
    :raises Unanswered: … after it. :raises LoginRefused: the server wants a login that it did not get.
    """
    if envelope.commands is None:
        return
    if client.pipelining:
        if not envelope.pipelined:
            client.send(envelope.commands)
        await _read_envelope_replies(client, envelope, envelope.commands)
    else:
        await _send_envelope(client, envelope, envelope.commands)
    replies = envelope.replies
    more: Commands | None = None

    def following() -> Commands | None:
        nonlocal more
        more = pipeline_next()
        return more

    if replies.final is None and any(reply.accepted for reply in replies.recipients.values()):
        replies.final = await client.send_data(envelope.message.pieces(), before_final_dot, following)
        if replies.final.accepted or more is not None:  # the next mail has begun
            return
    if client.alive:
        await _reset(client)


async def _send_envelope(client: SmtpClient, envelope: SmtpEnvelope, commands: Commands) -> None:
    """Command by command: ``replies.final`` is set if the mail itself is not to follow."""
    mail, *recipients, data = commands.lines
    replies = envelope.replies
    reply = _check_reply(client, await client.command(mail))
    if not reply.accepted:
        replies.final = reply
        return
    for waiting, line in zip(envelope.recipients, recipients, strict=True):
        replies.recipients[waiting.position] = _check_reply(client, await client.command(line))
    if any(reply.accepted for reply in replies.recipients.values()):
        _check_data_reply(client, replies, _check_reply(client, await client.command(data, DATA_SECONDS)))


async def _read_envelope_replies(client: SmtpClient, envelope: SmtpEnvelope, commands: Commands) -> None:
    """The same for commands that are out already: every reply is read and judged before anything else is said.

    What is said about recipients and DATA behind a refused MAIL means only that (503), and concerns no recipient.
    """
    mail, *recipients, data = commands.replies
    replies = envelope.replies
    first = _check_reply(client, await client.reply(mail))
    if not first.accepted:
        replies.final = first
    for waiting, coming in zip(envelope.recipients, recipients, strict=True):
        reply = _check_reply(client, await client.reply(coming))
        if first.accepted:
            replies.recipients[waiting.position] = reply
    reply = await client.reply(data, DATA_SECONDS)
    if any(reply.accepted for reply in replies.recipients.values()):
        _check_data_reply(client, replies, _check_reply(client, reply))
    elif reply.code == START_DATA:  # it waits for a mail to nobody: a lone dot ends it (RFC 2920 3.1)
        if not first.accepted:
            client.close()  # nor does it know what it has refused
        else:
            await client.command(b".", ANSWER_SECONDS)


def _check_data_reply(client: SmtpClient, replies: Replies, reply: Reply) -> None:
    if reply.accepted:  # no answer to DATA: what follows would be taken for commands
        client.close()
        raise SmtpConnectionLost(f"the server answered DATA with {reply}")
    if reply.code != START_DATA:
        replies.final = reply


def _check_reply(client: SmtpClient, reply: Reply) -> Reply:
    if reply.code == SERVER_FULL:  # it closes the connection (RFC 5321 3.8)
        client.close()
        raise SmtpConnectionLost(f"the server ended the connection: {reply}")
    if reply.code == AUTH_REQUIRED:
        client.close()
        raise AuthFailed(f"the server wants a login ({reply}); check auth, login and password")
    return reply


async def _reset(client: SmtpClient) -> None:
    try:
        await client.reset()
    except SmtpConnectionLost:
        client.close()  # everything is settled; the next mail takes a new connection


def classify(recipients: Sequence[QueuedRecipient], replies: Replies) -> DeliveryResult:
    """What the replies mean. A recipient that was not answered, or not finally, waits for another try."""
    final = replies.final
    sent = final is not None and final.accepted
    outcomes = []
    objection = None if final is None else rejection_of(final)
    crowded = refused = False
    some = any(reply.accepted for reply in replies.recipients.values())
    for waiting in recipients:
        reply = replies.recipients.get(waiting.position, final or Reply(451, "4.3.0 the mail was not tried"))
        if reply.accepted and final is not None:
            reply = final
        if reply.accepted and sent:
            outcomes.append(RecipientResult(waiting.position, "relayed", str(reply)))
        elif some and _is_too_many_recipients(reply):
            crowded, refused = crowded or sent, refused or not sent
            outcomes.append(RecipientResult(waiting.position, "waiting", str(reply)))
        elif reply.refused and (objection is None or reply is not final):
            outcomes.append(RecipientResult(waiting.position, "failed", str(reply)))
        else:
            refused = True
            outcomes.append(RecipientResult(waiting.position, "waiting", str(reply)))
    return DeliveryResult(
        tuple(outcomes),
        crowded,
        refused and not crowded,
        server_sends_notices=replies.server_sends_notices,
        too_large=final is not None and _is_too_large(final),
        rejection=objection,
    )


_NOT_THIS_SENDER = {"5.2.252", "5.7.60"}
_QUOTA = {"5.4.5", "5.1.90"}
_QUOTA_IN_WORDS = re.compile(r"SubmissionQuotaExceeded|daily (user )?(sending|message) (limit|quota)", re.IGNORECASE)
_TOO_LARGE = {"5.3.4", "5.2.3"}


def rejection_of(reply: Reply) -> AccountRejection | None:
    """What a reply about a mail as a whole says against the account that it came through.

    Microsoft's SendAsDenied: whatever is sent as this address is refused, so nobody's mail is at fault. The daily
    limits of Google and Microsoft are told as permanent errors (550 5.4.5, 5.1.90) and pass; so does 432 4.3.2
    ("concurrent connections", "sender thread limit") and 4.7.x ("server busy").
    """
    if reply.refused and (reply.status in _NOT_THIS_SENDER or "SendAsDenied" in reply.text):
        text = f"the provider does not let this login send as the account's address; correct one of them ({reply})"
        return AccountRejection("sender", text, True, retry_policy.LOGIN_PAUSE)
    if reply.refused and (reply.status in _QUOTA or _QUOTA_IN_WORDS.search(reply.text)):
        return AccountRejection(
            "throttled", f"the provider's limit for sending is reached ({reply})", False, retry_policy.QUOTA_PAUSE
        )
    if reply.code == THROTTLED or (reply.temporary and (reply.status == "4.3.2" or reply.status.startswith("4.7."))):
        return AccountRejection(
            "throttled", f"the provider slows us down ({reply})", False, retry_policy.THROTTLE_PAUSE
        )
    return None


def _is_too_large(reply: Reply) -> bool:
    return reply.refused and (reply.status in _TOO_LARGE or (reply.code == TOO_LARGE and reply.status == "5.0.0"))


def _is_too_many_recipients(reply: Reply) -> bool:
    """Too many recipients in one transaction, says a server that took some (RFC 5321 4.5.3.1.10: 552 counts as 452)."""
    if reply.code == 452:
        return reply.status in ("4.5.3", "4.0.0")
    return reply.code == 552 and reply.status == "5.5.3"


def classify_interrupted(
    recipients: Sequence[QueuedRecipient], replies: Replies, reason: str, unanswered: bool
) -> DeliveryResult:
    """What is known when the connection ended: who was refused for good is settled, the others wait.

    unanswered: it ended after the final dot.
    """
    outcomes = []
    for waiting in recipients:
        reply = replies.recipients.get(waiting.position)
        if reply is not None and reply.refused and not _is_too_many_recipients(reply):
            outcomes.append(RecipientResult(waiting.position, "failed", str(reply)))
        else:
            outcomes.append(RecipientResult(waiting.position, "waiting", reason))
    return DeliveryResult(tuple(outcomes), False, True, unanswered, not unanswered)


_ID = re.compile(r"<([^<>\s@]{1,500}@[^<>\s@]{1,400})>")


def provider_message_ids(reply: str, other_addresses: Collection[str]) -> list[str]:
    """Message-IDs that the provider gave the mail, told in its final 250. known: lower-case addresses that are none."""
    return [found for found in _ID.findall(reply) if found.lower() not in other_addresses]
