"""Formats ENVELOPE (RFC 3501 section 7.4.2). Encoded-words are not decoded; 8-bit text is a literal."""

from __future__ import annotations

from functools import lru_cache

from services.imap_out.responses.strings import nstring
from services.imap_out.structure.addresses import parse_addresses
from services.imap_out.structure.content_fields import collapsed
from services.imap_out.structure.mime_parser import MimePart

OFTEN_OCTETS = 200
"""Longest address field that is remembered: octets."""


def format_envelope(mail: MimePart) -> bytes:
    """Format the envelope of a mail. Sender and Reply-To are From where they are missing or empty."""
    author = _addresses(mail, "from")
    sender, reply_to = (_addresses(mail, name) or author for name in ("sender", "reply-to"))
    parts = [
        _text(mail, "date"),
        _text(mail, "subject"),
        *(b"(%b)" % one if one else b"NIL" for one in (author, sender, reply_to)),
        *(b"(%b)" % one if (one := _addresses(mail, name)) else b"NIL" for name in ("to", "cc", "bcc")),
        _text(mail, "in-reply-to"),
        _text(mail, "message-id"),
    ]
    return b"(" + b" ".join(parts) + b")"


def _text(mail: MimePart, name: str) -> bytes:
    """Format a text. Of two fields the last one counts, as other servers have it."""
    found = mail.fields.get(name)
    return nstring(collapsed(found[-1]) if found else None)


def _addresses(mail: MimePart, name: str) -> bytes:
    """Format the addresses of all fields of this name, one after the other."""
    found = mail.fields.get(name)
    if not found:
        return b""
    return b"".join([_format_often(raw) if len(raw) <= OFTEN_OCTETS else _format(raw) for raw in found])


@lru_cache(2_000)
def _format_often(raw: bytes) -> bytes:
    """Format addresses that other mails have, too: the time of a structure is mostly theirs."""
    return _format(raw)


def _format(raw: bytes) -> bytes:
    return b"".join([b"(" + b" ".join(map(nstring, address)) + b")" for address in parse_addresses(raw)])
