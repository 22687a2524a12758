"""One group through one SMTP connection: the envelope, the mail, and what each reply means for each recipient."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from shared.relays import Outcome, Waiting
from shared.smtp_client import CREDENTIALS_WANTED, SERVER_FULL, LoginRefused, Lost, Reply, SmtpClient

_NO_UTF8 = Reply(553, "5.6.7 the provider's mail server does not take internationalised addresses (SMTPUTF8)")


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail as it leaves. octets: of header and body. header_8bit: the header is not ASCII (RFC 6532)."""

    mail_from: str
    recipients: tuple[Waiting, ...]
    octets: int
    body_8bit: bool
    header_8bit: bool
    smtputf8: bool
    pieces: Callable[[], AsyncIterator[bytes]]


@dataclass(slots=True)
class Replies:
    """What the server said. recipients: by position. final: about the mail as a whole, None if it was never asked."""

    recipients: dict[int, Reply] = field(default_factory=dict)
    final: Reply | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """outcomes: one for each recipient. at_once: some follow in another transaction, no try counted.

    count_try: somebody was refused for now. unanswered: the mail was sent, and the connection ended before the reply.
    """

    outcomes: tuple[Outcome, ...]
    at_once: bool
    count_try: bool
    unanswered: bool = False


async def send(client: SmtpClient, letter: Letter, before_dot: Callable[[], Awaitable[None]], replies: Replies) -> None:
    """Send a letter; ``replies`` is filled in as they come, so what was said before a failure is known.

    :raises Lost: the connection ended, or the server ended it (421), before the final dot.
    :raises Unanswered: … after it. :raises LoginRefused: the server wants a login that it did not get.
    """
    utf8_server = "smtputf8" in client.extensions
    if letter.smtputf8 and letter.header_8bit and not utf8_server:
        replies.final = _NO_UTF8
        return
    beyond = {waiting.position for waiting in letter.recipients if not waiting.address.isascii()}
    if not utf8_server:
        replies.recipients |= dict.fromkeys(beyond, _NO_UTF8)
    asked = [waiting for waiting in letter.recipients if waiting.position not in replies.recipients]
    if not asked:
        return
    mail = b"MAIL FROM:<" + letter.mail_from.encode() + b">"
    if "size" in client.extensions:
        mail += b" SIZE=%d" % letter.octets
    if "8bitmime" in client.extensions and (letter.body_8bit or letter.header_8bit):
        mail += b" BODY=8BITMIME"
    if utf8_server and (beyond or letter.smtputf8 or not letter.mail_from.isascii()):
        mail += b" SMTPUTF8"
    reply = await _ask(client, mail)
    if not reply.accepted:
        replies.final = reply
        await _reset(client)
        return
    for waiting in asked:
        replies.recipients[waiting.position] = await _ask(client, b"RCPT TO:<" + waiting.address.encode() + b">")
    if not any(reply.accepted for reply in replies.recipients.values()):
        await _reset(client)
        return
    replies.final = await client.data(letter.pieces(), before_dot)
    if not replies.final.accepted and client.alive:
        await _reset(client)


async def _ask(client: SmtpClient, line: bytes) -> Reply:
    reply = await client.command(line)
    if reply.code == SERVER_FULL:  # it closes the connection (RFC 5321 3.8)
        raise Lost(f"the server ended the connection: {reply}")
    if reply.code == CREDENTIALS_WANTED:
        client.close()
        raise LoginRefused(f"the server wants a login ({reply}); check auth, login and password")
    return reply


async def _reset(client: SmtpClient) -> None:
    try:
        await client.reset()
    except Lost:
        client.close()  # everything is settled; the next mail takes a new connection


def judge(recipients: Sequence[Waiting], replies: Replies) -> Verdict:
    """What the replies mean. A recipient that was not answered, or not finally, waits for another try."""
    final = replies.final
    sent = final is not None and final.accepted
    outcomes = []
    crowded = refused = False
    some = any(reply.accepted for reply in replies.recipients.values())
    for waiting in recipients:
        reply = replies.recipients.get(waiting.position, final or Reply(451, "4.3.0 the mail was not tried"))
        if reply.accepted and final is not None:
            reply = final
        if reply.accepted and sent:
            outcomes.append(Outcome(waiting.position, "relayed", str(reply)))
        elif some and _too_many(reply):
            crowded, refused = crowded or sent, refused or not sent
            outcomes.append(Outcome(waiting.position, "waiting", str(reply)))
        elif reply.refused:
            outcomes.append(Outcome(waiting.position, "failed", str(reply)))
        else:
            refused = True
            outcomes.append(Outcome(waiting.position, "waiting", str(reply)))
    return Verdict(tuple(outcomes), crowded, refused and not crowded)


def _too_many(reply: Reply) -> bool:
    """Too many recipients in one transaction, says a server that took some (RFC 5321 4.5.3.1.10: 552 counts as 452)."""
    if reply.code == 452:
        return reply.status in ("4.5.3", "4.0.0")
    return reply.code == 552 and reply.status == "5.5.3"


def interrupted(recipients: Sequence[Waiting], replies: Replies, reason: str, unanswered: bool) -> Verdict:
    """What is known when the connection ended: who was refused for good is settled, the others wait.

    unanswered: it ended after the final dot.
    """
    outcomes = []
    for waiting in recipients:
        reply = replies.recipients.get(waiting.position)
        if reply is not None and reply.refused and not _too_many(reply):
            outcomes.append(Outcome(waiting.position, "failed", str(reply)))
        else:
            outcomes.append(Outcome(waiting.position, "waiting", reason))
    return Verdict(tuple(outcomes), False, True, unanswered)


_ID = re.compile(r"<([^<>\s@]{1,500}@[^<>\s@]{1,400})>")


def further_ids(reply: str, known: Collection[str]) -> list[str]:
    """Message-IDs that the provider gave the mail, told in its final 250. known: lower-case addresses that are none."""
    return [found for found in _ID.findall(reply) if found.lower() not in known]
