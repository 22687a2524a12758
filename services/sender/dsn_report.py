"""Notices of failure, delay and delivery for the author of a mail (RFC 3464). Pure, over bytes.

They come from MAILER-DAEMON, go into a local mailbox and nowhere else, and say ``Auto-Submitted`` (RFC 3834), so no
well-behaved program answers them.
"""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import format_datetime

from shared.mime import dsn_options, headers

_MAX_HEADER_OCTETS = 64 * 1024
"""So much of a returned header is shown."""
_MAX_LINE_OCTETS = 900


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """A recipient that a notice reports on. status: enhanced status code (RFC 3463), 5.1.1 or 4.4.7.

    reply: the provider's last one, or the reason in words. remote: the provider's host. dsn_params: what its author
    asked to be told about it (shared/mime/dsn_options.py).
    """

    address: str
    status: str
    reply: str
    remote: str | None = None
    dsn_params: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice: its bytes (CRLF line ends) and its Message-ID without angle brackets."""

    body: bytes
    message_id: str


@dataclass(frozen=True, slots=True)
class Original:
    """The mail that a notice reports on. author: local address that the notice goes to. header: as submitted.

    whole: the mail, where it is to be returned as a whole. envelope_id: the one that the author's program gave it.
    """

    author: str
    header: bytes
    submitted_at: datetime.datetime
    full_message: bytes | None = None
    envelope_id: str | None = None


_TEXTS: dict[dsn_options.Action, tuple[str, tuple[str, ...]]] = {
    "failed": (
        "Mail not delivered",
        (
            "Your mail could not be delivered to the recipients below. It will not be tried again.",
            "What the mail server of the provider said, or the reason:",
        ),
    ),
    "delayed": (
        "Mail delayed",
        (
            "Your mail has not been delivered to the recipients below yet. Nothing needs to be done: it is",
            "tried again until five days after you sent it, and longer where the provider refuses our login.",
            "The last reply of the provider, or the reason:",
        ),
    ),
    "delivered": ("Mail delivered", ("Your mail was delivered to the recipients below.",)),
    "relayed": (
        "Mail handed on",
        (
            "Your mail was handed on for the recipients below. The mail server that took it does not tell when it is",
            "delivered, so this is the last notice about it, unless it fails. What the server said:",
        ),
    ),
}


def build_report(
    action: dsn_options.Action, original: Original, statuses: Sequence[RecipientStatus], now: datetime.datetime
) -> Notice:
    """A mail did not reach these recipients (at least one) and will not, has not yet, or has (RFC 3464)."""
    subject, words = _TEXTS[action]
    boundary = f"report-{secrets.token_hex(16)}".encode()
    more = f" and {len(statuses) - 1} more" if len(statuses) > 1 else ""
    message_id, head = _head(original.author, f"{subject}: {statuses[0].address[:200]}{more}", now)
    for found in _first_id(original.header):
        head += [b"In-Reply-To: <" + _one_line(found) + b">", b"References: <" + _one_line(found) + b">"]
    explained = [*words, ""]
    for about in statuses:
        explained += [f"  {about.address}", f"    {about.reply}"]
    explained += [
        "",
        *(
            f"Subject of your mail: {headers.field_text(value)}"
            for value in headers.values(original.header, "subject")[:1]
        ),
    ]
    status = [
        b"Reporting-MTA: dns; " + _domain(original.author).encode(),
        b"Arrival-Date: " + format_datetime(original.submitted_at).encode(),
    ]
    if original.envelope_id is not None:
        status.insert(0, b"Original-Envelope-Id: " + _one_line(original.envelope_id))
    for about in statuses:
        status += [b"", *_status_fields(about, action)]
    return Notice(
        b"\r\n".join(
            [
                *head,
                b'Content-Type: multipart/report; report-type=delivery-status; boundary="' + boundary + b'"',
                b"",
                b"This is a report in MIME format.",
                b"--" + boundary,
                b"Content-Type: text/plain; charset=utf-8",
                b"Content-Transfer-Encoding: 8bit",
                b"",
                *(_one_line(line) for line in explained),
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
        b"Subject: " + _one_line(subject),
        b"Date: " + format_datetime(now).encode(),
        f"Message-ID: <{message_id}>".encode(),
        b"Auto-Submitted: auto-replied",
        b"MIME-Version: 1.0",
    ]


def _first_id(header: bytes) -> list[str]:
    return [found for value in headers.values(header, "message-id") for found in headers.message_ids(value)][:1]


def _status_fields(about: RecipientStatus, action: str) -> Iterable[bytes]:
    """The fields about one recipient (RFC 3464 section 2.3); an address beyond ASCII as in RFC 6533 section 4."""
    kind = b"rfc822; " if about.address.isascii() else b"utf-8; "
    named = dsn_options.original_recipient(about.dsn_params)
    if named is not None:
        yield b"Original-Recipient: " + _one_line(named)
    yield b"Final-Recipient: " + kind + _one_line(about.address)
    yield b"Action: " + action.encode()
    yield b"Status: " + about.status.encode()
    if about.remote:
        yield b"Remote-MTA: dns; " + _one_line(about.remote)
    said = b"smtp; " if re.match(r"[2-5]\d\d(\s|$)", about.reply) else b"x-mailgroup; "
    yield b"Diagnostic-Code: " + said + _one_line(about.reply).decode().encode("ascii", "replace")


def _header_lines(header: bytes) -> list[bytes]:
    """The fields of a header, without its blank line, whole lines up to a limit."""
    shown = header[:_MAX_HEADER_OCTETS]
    if len(header) > _MAX_HEADER_OCTETS:
        shown = shown[: shown.rfind(b"\n") + 1]
    return shown.replace(b"\r\n", b"\n").strip(b"\r\n").replace(b"\r", b"").split(b"\n")


def _one_line(text: str) -> bytes:
    """One line: control characters become blanks, so nothing can begin another one; cut to what a line holds."""
    line = "".join(character if character.isprintable() else " " for character in text.rstrip())
    return line.encode("utf-8", "replace")[:_MAX_LINE_OCTETS].decode("utf-8", "ignore").encode()


def _domain(address: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "", address.rpartition("@")[2]) or "localhost"
