"""What the people are told about a mail that could not be fetched: a short mail made of its header. Pure."""

from __future__ import annotations

import datetime
import email.utils
import quopri

from shared.mime import encoded_words
from shared.mime.headers import field_text, fields, format_mailbox, values

FIELDS_OCTETS = 32 * 1024
"""Address fields of the original are taken over up to this length together."""
SHOWN = 300
_ROUTING = ("to", "cc", "in-reply-to", "references")
_CRLF = b"\r\n"


def compose_notice(
    account: str, header: bytes | None, octets: int | None, reason: str, now: datetime.datetime
) -> tuple[bytes, str]:
    """The notice, and its Message-ID without angle brackets.

    It carries the original's To, Cc, In-Reply-To and References, so the router finds the same people. It comes from the
    account's own address: an answer to it reaches colleagues and no stranger.

    :param header: of the original, if the provider showed it. :param octets: its size, if known.
    """
    message_id = email.utils.make_msgid("skipped", account.rpartition("@")[2] or "mailgroup")
    original = _kept_fields(header or b"")
    subject = _shown(header, "subject")
    lines = [
        b"From: " + format_mailbox("mailgroup", account),
        *([] if any(line[:3].lower() == b"to:" for line in original) else [b"To: " + format_mailbox(None, account)]),
        *original,
        b"Subject: " + _subject(subject),
        b"Date: " + email.utils.format_datetime(now).encode(),
        b"Message-ID: " + message_id.encode("utf-8", "replace"),
        b"Auto-Submitted: auto-generated",
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Transfer-Encoding: quoted-printable",
        b"",
    ]
    text = "\n".join(
        [
            f"A mail in the mailbox of {account} could not be fetched:",
            f"{reason}.",
            "",
            *(
                [f"From: {_shown(header, 'from')}", f"Subject: {subject}", f"Date: {_shown(header, 'date')}"]
                if header
                else ["Its header could not be read either."]
            ),
            *([f"Size: {octets} octets"] if octets is not None else []),
            "",
            "It stays at the provider; read it there, for instance by the provider's web mail.",
            "",
        ]
    )
    body = quopri.encodestring(text.encode("utf-8", "replace")).replace(b"\n", _CRLF)
    return _CRLF.join(lines) + _CRLF + body, message_id.strip("<>")


def _kept_fields(header: bytes) -> list[bytes]:
    """The raw fields that decide who gets a mail, each without its last line end."""
    kept = []
    room = FIELDS_OCTETS
    for field in fields(header):
        raw = header[field.start : field.end].rstrip(b"\r\n")
        if field.key in _ROUTING and len(raw) <= room:
            kept.append(raw)
            room -= len(raw)
    return kept


def _shown(header: bytes | None, name: str) -> str:
    found = values(header or b"", name)
    text = field_text(found[0]) if found else ""
    return "".join(c if c.isprintable() else " " for c in text)[:SHOWN] or "(none)"


def _subject(original: str) -> bytes:
    text = f"Mail not fetched: {original[:80]}"
    if text.isascii() and "=?" not in text:
        return text.encode()
    return "\r\n ".join(encoded_words.encode(text, 60)).encode()


def first_received_date(header: bytes) -> datetime.datetime | None:
    """When the provider took the mail: the date of the first Received field (RFC 5321 section 4.4)."""
    found = values(header, "received")
    if not found:
        return None
    text = found[0][-200:].rpartition(b";")[2].decode("latin-1")
    try:
        date = email.utils.parsedate_to_datetime(" ".join(text.split()))
    except Exception:  # the parser raises whatever a strange date makes it stumble over
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)
