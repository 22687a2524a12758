"""Formats ENVELOPE (RFC 3501 section 7.4.2). Encoded-words are not decoded; 8-bit text is a literal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from services.imap_out.responses.strings import nstring
from services.imap_out.structure.addresses import EnvelopeAddress, parse_addresses
from services.imap_out.structure.content_fields import collapsed
from services.imap_out.structure.mime_parser import MimePart

OFTEN_OCTETS = 200
"""Longest address field that is remembered: octets."""


def format_envelope(mail: MimePart) -> bytes:
    """Format the envelope of a mail. Sender and Reply-To are From where they are missing or empty."""
    author = _addresses(mail, "from")
    senders = [_addresses(mail, name) or author for name in ("sender", "reply-to")]
    others = [_addresses(mail, name) for name in ("to", "cc", "bcc")]
    parts = [
        _text(mail, "date"),
        _text(mail, "subject"),
        *(_address_list(one) for one in (author, *senders, *others)),
        _text(mail, "in-reply-to"),
        _text(mail, "message-id"),
    ]
    return b"(" + b" ".join(parts) + b")"


def _text(mail: MimePart, name: str) -> bytes:
    """Format a text. Of two fields the last one counts, as other servers have it."""
    found = mail.fields.get(name)
    return nstring(collapsed(found[-1]) if found else None)


def _addresses(mail: MimePart, name: str) -> list[EnvelopeAddress]:
    return [
        address
        for raw in mail.fields.get(name, ())
        for address in (_parse_often(raw) if len(raw) <= OFTEN_OCTETS else parse_addresses(raw))
    ]


@lru_cache(2_000)
def _parse_often(raw: bytes) -> Sequence[EnvelopeAddress]:
    """Parse addresses that other mails have, too: the time of a structure is mostly theirs."""
    return tuple(parse_addresses(raw))


def _address_list(addresses: Sequence[EnvelopeAddress]) -> bytes:
    if not addresses:
        return b"NIL"
    return b"(" + b"".join(b"(" + b" ".join(map(nstring, address)) + b")" for address in addresses) + b")"
