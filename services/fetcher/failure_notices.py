"""Builds the notice to the recipients of a mail that could not be fetched, from that mail's header. Pure."""

from __future__ import annotations

import datetime
import email.utils
import quopri
from collections.abc import Sequence

from shared.languages import stored_texts
from shared.languages.translation import SOURCE, codes, gettext, in_language
from shared.languages.values import format_moment
from shared.mime import encoded_words
from shared.mime.headers import field_text, fields, format_mailbox, values

COPIED_OCTETS = 32 * 1024
"""Limit of all address fields copied from the original: octets."""
SHOWN_CHARACTERS = 300
"""Limit of a field value shown in the text: characters."""
_ROUTING = ("to", "cc", "in-reply-to", "references")
_CRLF = b"\r\n"


def compose_notice(
    account: str,
    header: bytes | None,
    octets: int | None,
    reason: str,
    now: datetime.datetime,
    languages: Sequence[str] = (SOURCE,),
) -> tuple[bytes, str]:
    """Return the notice and its Message-ID without angle brackets.

    The notice copies the original's To, Cc, In-Reply-To and References, so the router finds the same recipients. Its
    sender is the account's own address, so a reply reaches only colleagues.

    :param header: of the original, if the provider sent it. :param octets: size of the original, if known.
    :param languages: of the possible readers: the notice has a text in each of them, in this order.
    """
    message_id = email.utils.make_msgid("skipped", account.rpartition("@")[2] or "mailgroup")
    original = _kept_fields(header or b"")
    used = list(dict.fromkeys(code if code in codes() else SOURCE for code in languages))
    with in_language(used[0]):
        about = _shown(header, "subject")[:80]
    subjects, texts = [], []
    for code in used:
        with in_language(code):
            subjects.append(gettext("Mail not fetched"))
            texts.append(_text(account, header, octets, reason))
    lines = [
        b"From: " + format_mailbox("mailgroup", account),
        *([] if any(line[:3].lower() == b"to:" for line in original) else [b"To: " + format_mailbox(None, account)]),
        *original,
        b"Subject: " + _subject(f"{' / '.join(subjects)}: {about}"),
        b"Date: " + email.utils.format_datetime(now).encode(),
        b"Message-ID: " + message_id.encode("utf-8", "replace"),
        b"Auto-Submitted: auto-generated",
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Language: " + ", ".join(used).encode(),  # RFC 3282
        b"Content-Transfer-Encoding: quoted-printable",
        b"",
    ]
    text = "\n-- -- --\n\n".join(texts)
    body = quopri.encodestring(text.encode("utf-8", "replace")).replace(b"\n", _CRLF)
    return _CRLF.join(lines) + _CRLF + body, message_id.strip("<>")


def _text(account: str, header: bytes | None, octets: int | None, reason: str) -> str:
    """Return the text in the language that applies."""
    lines = [
        gettext("A mail in the mailbox of %(address)s could not be fetched:", address=account),
        f"{stored_texts.shown(reason)}.",
        "",
    ]
    if header:
        lines += [
            gettext("From: %(sender)s", sender=_shown(header, "from")),
            gettext("Subject: %(subject)s", subject=_shown(header, "subject")),
            gettext("Date: %(date)s", date=_date(header)),
        ]
    else:
        lines.append(gettext("Its header could not be read either."))
    if octets is not None:
        lines.append(gettext("Size: %(octets)s octets", octets=octets))
    stays = gettext("It stays at the provider; read it there, for instance by the provider's web mail.")
    return "\n".join([*lines, "", stays, ""])


def _date(header: bytes) -> str:
    """Return the date of the mail in its own zone, or as it is written if it has another form."""
    written = _shown(header, "date")
    try:
        date = email.utils.parsedate_to_datetime(written)
        return format_moment(date, date.tzinfo or datetime.UTC)
    except Exception:  # the parser raises many exception types for malformed dates
        return written


def _kept_fields(header: bytes) -> list[bytes]:
    """Return the raw fields that decide the routing, each without its last line end."""
    kept = []
    remaining = COPIED_OCTETS
    for field in fields(header):
        raw = header[field.start : field.end].rstrip(b"\r\n")
        if field.key in _ROUTING and len(raw) <= remaining:
            kept.append(raw)
            remaining -= len(raw)
    return kept


def _shown(header: bytes | None, name: str) -> str:
    """Return the value of a field as one line."""
    all_values = values(header or b"", name)
    text = field_text(all_values[0]) if all_values else ""
    return "".join(c if c.isprintable() else " " for c in text)[:SHOWN_CHARACTERS] or gettext("(none)")


def _subject(text: str) -> bytes:
    if text.isascii() and "=?" not in text:
        return text.encode()
    return "\r\n ".join(encoded_words.encode(text, 60)).encode()


def first_received_date(header: bytes) -> datetime.datetime | None:
    """Return when the provider received the mail: the date of the first Received field (RFC 5321 section 4.4)."""
    received = values(header, "received")
    if not received:
        return None
    text = received[0][-200:].rpartition(b";")[2].decode("latin-1")
    try:
        date = email.utils.parsedate_to_datetime(" ".join(text.split()))
    except Exception:  # the parser raises many exception types for malformed dates
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)
