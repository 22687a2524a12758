"""Lists the header fields that hold addresses, and what becomes of each in a mail that leaves. Pure.

The names come from RFC 5322, the registry of RFC 4021, and what mail clients and servers write. docs/standards.md shows
the same table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, unquote

from shared.mime import charsets
from shared.mime.headers import ADDRESS_OCTETS, Mailbox

Treatment = Literal["mailboxes", "text", "trace", "key", "removed"]
"""The treatment of local addresses in a field.

mailboxes: each mailbox becomes ``"user_name" <external address>``. text: each address becomes the external address.
trace: the same, but a clause ``for <address>`` is cut out. key: the field is dropped if it names a local address.
removed: the field is dropped.
"""

AUTHOR_FIELDS = frozenset({"from", "sender", "author", "x-sender", "x-x-sender", "resent-from", "resent-sender"})
"""Fields that name the author: the external address itself also gets the author's name there."""
COPIES_OF_FROM = frozenset({"sender", "x-sender", "x-x-sender"})
"""Fields that are dropped if they say the same as From."""
_NAMES: Mapping[Treatment, str] = {
    "mailboxes": """from sender author reply-to to cc resent-from resent-sender resent-to resent-cc resent-reply-to
        mail-followup-to mail-reply-to mail-copies-to errors-to disposition-notification-to return-receipt-to
        return-receipt-requested read-receipt-to notice-requested-upon-delivery-to original-from original-sender
        x-sender x-x-sender x-reply-to x-errors-to x-confirm-reading-to x-original-from x-original-sender
        x-google-original-from""",
    "text": """list-help list-unsubscribe list-subscribe list-post list-owner list-archive comments approved
        original-recipient cfbl-address require-recipient-valid-since authentication-results received-spf
        x-sender-id x-authenticated-sender x-authenticated-id x-loop x-beenthere""",
    "trace": "received x-received",
    "key": "autocrypt",
    "removed": """bcc resent-bcc x-bcc downgraded-bcc downgraded-resent-bcc return-path delivered-to envelope-to
        apparently-to x-original-to x-envelope-from x-envelope-to""",
}
FIELDS: Mapping[str, Treatment] = {name: treatment for treatment, names in _NAMES.items() for name in names.split()}
"""The treatment of each field, by its name in lower case."""
_ROLE = re.compile(r".*-(?:from|to|cc|sender|recipients?|author|user|mailbox|address|email)")
"""Matches the name of any other field whose last word says that it holds addresses: treated as text."""
_IDS = frozenset({"in-reply-to"})
"""Fields that ``_ROLE`` matches and that hold Message-IDs."""
CACHED_NAMES = 2000
"""Limits the remembered names of fields: names. Nearly all mail has the same hundred."""


@lru_cache(CACHED_NAMES)
def treatment_of(key: str) -> Treatment | None:
    """Return what becomes of a field, None if it stays byte for byte. :param key: the name in lower case."""
    treatment = FIELDS.get(key)
    if treatment is None and key not in _IDS and _ROLE.fullmatch(key):
        return "text"
    return treatment


# Without ``=`` and ``'`` at the start, as in ``smtp.auth=a@b`` and ``'a@b'``. An @ in an URL may be %40. The search
# never starts within a word, so that its time is proportional to the length.
_WORD = rb"A-Za-z0-9!#$%'*+\-.^_`{|}~\x80-\xff"
_ADDRESS = re.compile(
    rb"(?<![" + _WORD + rb"])'*+((?:(?!%40)[" + _WORD + rb"])+(?:@|%40)[A-Za-z0-9\x80-\xff](?:[A-Za-z0-9.\-\x80-\xff]*"
    rb"[A-Za-z0-9\x80-\xff])?)",
    re.IGNORECASE,
)
_FOR = re.compile(rb"(?<=\S)\s+for\s+<?$", re.IGNORECASE)
_FOR_OCTETS = 100
"""Limits the search for ``for`` before an address: octets; only white space and ``<`` may be between."""


def iterate_addresses(value: bytes) -> Iterator[Mailbox]:
    """Yield the addresses in any text, also those of ``mailto:``, each without a name and with its position."""
    for match in _ADDRESS.finditer(value):
        if len(match[1]) <= ADDRESS_OCTETS:
            written = unquote(charsets.read_text(match[1])) if b"%" in match[1] else charsets.read_text(match[1])
            if "@" in written:
                yield Mailbox(None, written, match.start(1), match.end(1))


def replaced_address(written: bytes, address: str) -> bytes:
    """Return the octets that replace an address in a text. :param written: what they replace."""
    return (quote(address, safe="") if b"%" in written else address).encode("utf-8", "replace")


def for_clause(value: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Return the span of the clause ``for <address>`` of a Received field (RFC 5321 section 4.4), None if it is none.

    :param start: of the address in ``value``. :param end: of the address.
    """
    match = _FOR.search(value[max(0, start - _FOR_OCTETS) : start])
    if match is None:
        return None
    return start - len(match[0]), end + (value[end : end + 1] == b">")
