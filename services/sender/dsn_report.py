"""Builds delivery status notifications for the author of a mail: failure, delay, delivery (RFC 3464). Pure, over bytes.

A notice comes from MAILER-DAEMON, goes into a local mailbox only, and has the field ``Auto-Submitted`` (RFC 3834), so
that no program replies to it automatically.
"""

from __future__ import annotations

import datetime
import re
import secrets
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import format_datetime

from shared.languages import stored_texts
from shared.languages.translation import gettext, in_language, language, marked
from shared.mime import dsn_options, encoded_words, headers

_MAX_HEADER_OCTETS = 64 * 1024
"""Limits the returned header: octets; a notice needs no more of a header that may have 1 MiB."""
_MAX_LINE_OCTETS = 900
"""Limits a line of text: octets, below the 998 of RFC 5322 2.1.1 with the field name before it."""
_TEXT_CHARACTERS = 100
"""Width of our own lines of text: characters."""


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """A recipient that a notice reports on."""

    address: str
    status: str  # enhanced status code (RFC 3463), such as 5.1.1 or 4.4.7
    reply: str  # the provider's last reply, or the reason in words
    remote: str | None = None  # the provider's host
    dsn_params: str | None = None  # the recipient's DSN parameters (shared/mime/dsn_options.py)


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice: its bytes (CRLF line ends) and its Message-ID without angle brackets."""

    body: bytes
    message_id: str


@dataclass(frozen=True, slots=True)
class Original:
    """The mail that a notice reports on."""

    author: str  # local address that gets the notice
    header: bytes  # as submitted
    submitted_at: datetime.datetime
    full_message: bytes | None = None  # the mail, if the notice must return it completely (RET=FULL)
    envelope_id: str | None = None  # ENVID of the submission (RFC 3461 section 4.4)


_TEXTS: dict[dsn_options.Action, tuple[str, tuple[str, ...]]] = {
    "failed": (
        marked("Mail not delivered: %(address)s"),
        (
            marked("Your mail could not be delivered to the recipients below. It will not be tried again."),
            marked("The reply of the provider's mail server, or the reason:"),
        ),
    ),
    "delayed": (
        marked("Mail delayed: %(address)s"),
        (
            marked(
                "Your mail has not been delivered to the recipients below yet. Nothing needs to be done: it is tried "
                "again until five days after you sent it, and longer where the provider refuses our login."
            ),
            marked("The last reply of the provider, or the reason:"),
        ),
    ),
    "delivered": (
        marked("Mail delivered: %(address)s"),
        (marked("Your mail was delivered to the recipients below."),),
    ),
    "relayed": (
        marked("Mail handed on: %(address)s"),
        (
            marked(
                "Your mail was handed on for the recipients below. The mail server that accepted it does not report "
                "when it is delivered, so this is the last notice about it, unless it fails. The reply of the server:"
            ),
        ),
    ),
}


def build_report(
    action: dsn_options.Action,
    original: Original,
    statuses: Sequence[RecipientStatus],
    now: datetime.datetime,
    code: str | None = None,
) -> Notice:
    """Build the notice about these recipients of a mail, at least one (RFC 3464).

    :param code: language of its text for the author; None: the one that applies. The rest is for programs.
    """
    with in_language(code or language()):
        return _build_report(action, original, statuses, now)


def _build_report(
    action: dsn_options.Action, original: Original, statuses: Sequence[RecipientStatus], now: datetime.datetime
) -> Notice:
    subject, words = _TEXTS[action]
    boundary = f"report-{secrets.token_hex(16)}".encode()
    title = gettext(subject, address=statuses[0].address[:200])
    if further := len(statuses) - 1:
        title += " " + gettext("and %(count)s more", count=further)
    message_id, head = _head(original.author, title, now)
    for original_id in _first_id(original.header):
        head += [b"In-Reply-To: <" + _one_line(original_id) + b">", b"References: <" + _one_line(original_id) + b">"]
    text_lines = [line for text in words for line in textwrap.wrap(gettext(text), _TEXT_CHARACTERS)] + [""]
    for recipient in statuses:
        text_lines += [f"  {recipient.address}", f"    {stored_texts.shown(recipient.reply)}"]
    text_lines += [
        "",
        *(
            gettext("Subject of your mail: %(subject)s", subject=headers.field_text(value))
            for value in headers.values(original.header, "subject")[:1]
        ),
    ]
    status = [
        b"Reporting-MTA: dns; " + _domain(original.author).encode(),
        b"Arrival-Date: " + format_datetime(original.submitted_at).encode(),
    ]
    if original.envelope_id is not None:
        status.insert(0, b"Original-Envelope-Id: " + _one_line(original.envelope_id))
    for recipient in statuses:
        status += [b"", *_status_fields(recipient, action)]
    return Notice(
        b"\r\n".join(
            [
                *head,
                b'Content-Type: multipart/report; report-type=delivery-status; boundary="' + boundary + b'"',
                b"",
                b"This is a report in MIME format.",
                b"--" + boundary,
                b"Content-Type: text/plain; charset=utf-8",
                b"Content-Language: " + language().encode(),  # RFC 3282
                b"Content-Transfer-Encoding: 8bit",
                b"",
                *(_one_line(line) for line in text_lines),
                b"--" + boundary,
                b"Content-Type: message/delivery-status",
                b"",
                *status,
                b"",
                b"--" + boundary,
                b"Content-Type: " + (b"text/rfc822-headers" if original.full_message is None else b"message/rfc822"),
                b"Content-Transfer-Encoding: 8bit",
                b"",
                *(_header_lines(original.header) if original.full_message is None else [original.full_message]),
                b"--" + boundary + b"--",
                b"",
            ]
        ),
        message_id,
    )


def _head(to: str, subject: str, now: datetime.datetime) -> tuple[str, list[bytes]]:
    domain = _domain(to)
    message_id = f"notice.{secrets.token_hex(12)}@{domain}"
    return message_id, [
        b"From: " + headers.format_mailbox("Mail Delivery", f"mailer-daemon@{domain}"),
        b"To: " + headers.format_mailbox(None, to),
        b"Subject: " + _encoded(subject),
        b"Date: " + format_datetime(now).encode(),
        f"Message-ID: <{message_id}>".encode(),
        b"Auto-Submitted: auto-replied",
        b"MIME-Version: 1.0",
    ]


def _first_id(header: bytes) -> list[str]:
    return [message_id for value in headers.values(header, "message-id") for message_id in headers.message_ids(value)][
        :1
    ]


def _status_fields(recipient: RecipientStatus, action: str) -> Iterable[bytes]:
    """Yield the fields about one recipient (RFC 3464 section 2.3); a non-ASCII address as in RFC 6533 section 4."""
    kind = b"rfc822; " if recipient.address.isascii() else b"utf-8; "
    original_recipient = dsn_options.original_recipient(recipient.dsn_params)
    if original_recipient is not None:
        yield b"Original-Recipient: " + _one_line(original_recipient)
    yield b"Final-Recipient: " + kind + _one_line(recipient.address)
    yield b"Action: " + action.encode()
    yield b"Status: " + recipient.status.encode()
    if recipient.remote:
        yield b"Remote-MTA: dns; " + _one_line(recipient.remote)
    diagnostic_type = b"smtp; " if re.match(r"[2-5]\d\d(\s|$)", recipient.reply) else b"x-mailgroup; "
    yield b"Diagnostic-Code: " + diagnostic_type + _one_line(recipient.reply).decode().encode("ascii", "replace")


def _header_lines(header: bytes) -> list[bytes]:
    """Return the lines of a header without its blank line, whole lines up to the limit."""
    shown = header[:_MAX_HEADER_OCTETS]
    if len(header) > _MAX_HEADER_OCTETS:
        shown = shown[: shown.rfind(b"\n") + 1]
    return shown.replace(b"\r\n", b"\n").strip(b"\r\n").replace(b"\r", b"").split(b"\n")


def _one_line(text: str) -> bytes:
    """Return the text as one line: control characters become blanks, so no text can begin a field; cut to the limit."""
    line = "".join(character if character.isprintable() else " " for character in text.rstrip())
    return line.encode("utf-8", "replace")[:_MAX_LINE_OCTETS].decode("utf-8", "ignore").encode()


def _encoded(text: str) -> bytes:
    """Encode the text of a header: unchanged if it is ASCII, else as encoded words, folded (RFC 2047)."""
    line = _one_line(text)
    if line.isascii() and b"=?" not in line:
        return line
    return "\r\n ".join(encoded_words.encode(line.decode(), first=60)).encode()


def _domain(address: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "", address.rpartition("@")[2]) or "localhost"
