"""Notices to the other sharers of an external account when one of them has answered a mail that went to everyone.

A notice is a mail that is delivered locally: no provider is involved, and no one outside sees it.
"""

from __future__ import annotations

import datetime
import email.utils
import quopri
from collections.abc import Sequence
from dataclasses import dataclass

from services.admin.mail.header_summary import HeaderSummary
from shared.db.database import Connection
from shared.languages.translation import SOURCE, gettext, in_language, language
from shared.languages.values import format_moment
from shared.mime import encoded_words, headers
from shared.model import Content, Local
from shared.store import blobs, inbound, maillog
from shared.store.inbound import Arrival
from shared.store.maillog import MailEvent

REASON = "a note that somebody answered"
"""The reason of delivery in the trace and in the history of the notice."""
_SUBJECT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Answered:
    """A mail to everyone, and its answer."""

    external: str  # address of the external account
    message_id: str  # of the mail to everyone
    sender: str  # of the mail to everyone
    subject: str  # of the mail to everyone
    at: datetime.datetime  # when it arrived
    author: Local  # of the answer
    answer: HeaderSummary
    answered_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class AnswerNotice:
    """A stored notice, to be announced after the commit."""

    event: MailEvent
    inbound_id: int
    recipients: tuple[str, ...]  # local addresses


async def send_notice(
    connection: Connection, answered: Answered, sharers: Sequence[Local], default: str = SOURCE
) -> list[AnswerNotice]:
    """Store a notice for all enabled sharers except the author of the answer, in the caller's transaction: one mail
    for each language. :param default: the language of people who have chosen none."""
    others: dict[str, list[Local]] = {}
    for person in sharers:
        if person.enabled and person.id != answered.author.id:
            others.setdefault(person.language or default, []).append(person)
    return [await _store(connection, answered, code, people) for code, people in sorted(others.items())]


async def _store(connection: Connection, answered: Answered, code: str, others: Sequence[Local]) -> AnswerNotice:
    """Store the notice in one language for these people."""
    with in_language(code):
        body, message_id = compose(answered)
    [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(body)])
    recipients = tuple((person.id, REASON) for person in others)
    [inbound_id] = await inbound.add_inbound(
        connection, [Arrival("notice", blob_id, message_id=message_id, recipients=recipients)]
    )
    event = MailEvent("noticed", inbound_id=inbound_id, external=answered.external, reply=REASON)
    await maillog.record_events(connection, [event])
    return AnswerNotice(event, inbound_id, tuple(person.address for person in others))


def compose(answered: Answered) -> tuple[bytes, str]:
    """Return the notice in the language that applies, and its Message-ID without angle brackets. It belongs to the
    thread of the answered mail."""
    author = answered.author
    domain = author.address.rpartition("@")[2]
    message_id = email.utils.make_msgid("answered", domain).strip("<>")
    about = answered.answer.subject or answered.subject
    title = gettext("%(user)s answered: %(subject)s", user=author.user_name, subject=about)
    thread = [f"{name}: <{answered.message_id}>".encode() for name in ("In-Reply-To", "References")]
    head = [
        b"From: " + headers.format_mailbox("mailgroup", f"mailer-daemon@{domain}"),
        b"To: undisclosed-recipients:;",
        b"Subject: " + _encoded(_line(title)[:_SUBJECT_CHARACTERS]),
        b"Date: " + email.utils.format_datetime(answered.answered_at).encode(),
        f"Message-ID: <{message_id}>".encode(),
        *(thread if _is_plain(answered.message_id) else []),
        b"Auto-Submitted: auto-generated",
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Language: " + language().encode(),  # RFC 3282
        b"Content-Transfer-Encoding: quoted-printable",
        b"",
    ]
    lines = [
        gettext(
            "%(user)s has answered this mail, which went to everyone who shares %(address)s:",
            user=author.user_name,
            address=answered.external,
        ),
        "",
        gettext("From: %(sender)s", sender=answered.sender),
        gettext("Subject: %(subject)s", subject=answered.subject),
        gettext("Received: %(time)s", time=format_moment(answered.at)),
        gettext("Answered: %(time)s", time=format_moment(answered.answered_at)),
        "",
    ]
    text = "\n".join(_line(line) for line in lines)
    return b"\r\n".join(
        [*head, quopri.encodestring(text.encode("utf-8", "replace")).replace(b"\n", b"\r\n")]
    ), message_id


def _line(text: str) -> str:
    """Return the text as one line: control characters become blanks, so no text can add a header."""
    return "".join(character if character.isprintable() else " " for character in text)


def _encoded(text: str) -> bytes:
    """Encode the text of a header: unchanged if it is short and ASCII, else as encoded words, folded (RFC 2047)."""
    if text.isascii() and len(text) < 70 and "=?" not in text:
        return text.encode()
    return "\r\n ".join(encoded_words.encode(text, first=60)).encode()


def _is_plain(message_id: str) -> bool:
    """Return whether a foreign Message-ID can be written into a header unchanged."""
    return (
        message_id.isascii()
        and message_id.isprintable()
        and len(message_id) <= 900
        and not set(message_id) & set(" <>")
    )
