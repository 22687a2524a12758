"""Rewrites the header of outgoing mail: local addresses become ``"user_name" <external address>``. Pure, over bytes.

The manual says in chapter 3 that the "To" line of outgoing mail is replaced; its own sample (4.3) works only if this
means the sender's line. Here every mailbox that is a local address is replaced, in the fields of the sender and in
those of the recipients, so that a reply to all reaches colleagues too. Every other octet stays unchanged.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from email.utils import format_datetime

from shared.mime import headers
from shared.mime.addresses import ascii_address, fold_address
from shared.mime.headers import Field, Mailbox

AUTHOR_FIELDS = frozenset({"from", "sender", "x-sender"})
"""Fields that name the author: the external address itself also gets the author's name there."""
OTHER_ADDRESS_FIELDS = frozenset({"reply-to", "to", "cc", "disposition-notification-to", "return-receipt-to"})
REMOVED_FIELDS = frozenset({"bcc", "return-path"})
_ADDRESS_FIELDS = AUTHOR_FIELDS | OTHER_ADDRESS_FIELDS

_MAX_LINE_OCTETS = 998
"""Limits a line of a header: octets (RFC 5322 section 2.1.1)."""
_Person = tuple[str, str]  # user name, external address


@dataclass(frozen=True, slots=True)
class Author:
    """The author of a mail."""

    user_name: str
    external_address: str  # of the external account that relays the mail
    external_addresses: frozenset[str]  # this one and the account's aliases, folded


@dataclass(frozen=True, slots=True)
class ParsedHeader:
    """A parsed header."""

    header: bytes  # with its blank line, if it has one
    fields: Sequence[tuple[Field, str, Sequence[Mailbox]]]  # with lower-case name; mailboxes of the rewritten fields


def parse_header(header: bytes) -> ParsedHeader:
    """Parse a header once, for both functions below."""
    return ParsedHeader(
        header,
        [
            (field, key, headers.mailboxes(field.value) if key in _ADDRESS_FIELDS else ())
            for field in headers.fields(header)
            for key in [field.key]
        ],
    )


def mailbox_addresses(parsed: ParsedHeader) -> set[str]:
    """Return the addresses that ``rewrite_header`` looks up in its directory, folded (``fold_address``)."""
    return {fold_address(mailbox.address) for _, _, mailboxes in parsed.fields for mailbox in mailboxes}


def rewrite_header(
    parsed: ParsedHeader, directory: Mapping[str, _Person], author: Author, message_id: str, date: datetime.datetime
) -> bytes:
    """Return the rewritten header.

    :param directory: folded local address to (user name, external address); the author's own addresses too.
    :param message_id: added as a Message-ID unless the mail has this one. :param date: added as Date if it has none.
    """
    sender = [
        _rewrite_mailbox(mailbox, directory, author, key)
        for _, key, mailboxes in parsed.fields
        if key == "from"
        for mailbox in mailboxes
    ]
    edits: list[tuple[int, int, bytes]] = []
    seen: set[str] = set()
    for field, key, mailboxes in parsed.fields:
        keep = key not in REMOVED_FIELDS
        if key == "from":
            keep = bool(sender)
        elif key in AUTHOR_FIELDS:
            rewritten = [_rewrite_mailbox(mailbox, directory, author, key) for mailbox in mailboxes]
            keep = _names_and_addresses(rewritten) != _names_and_addresses(sender)
        elif key == "message-id":
            keep = "message-id" in seen or message_id in headers.message_ids(field.value)
        if not keep:
            edits.append((field.start, field.end, b""))
            continue
        seen.add(key)
        if mailboxes:
            edits += _field_edits(field, mailboxes, directory, author)
    edits.append((0, 0, _missing_fields(seen, author, message_id, date)))
    return headers.splice(parsed.header, edits)


def _missing_fields(seen: Collection[str], author: Author, message_id: str, date: datetime.datetime) -> bytes:
    """Return the fields that a mail must have and this one lacks; for the top, valid even without a blank line."""
    lines = b""
    if "date" not in seen:
        lines += b"Date: " + format_datetime(date).encode() + b"\r\n"
    if "from" not in seen:
        lines += b"From: " + headers.format_mailbox(author.user_name, ascii_address(author.external_address)) + b"\r\n"
    if "message-id" not in seen:
        lines += b"Message-ID: <" + message_id.encode("utf-8", "replace") + b">\r\n"
    return lines


def _rewrite_mailbox(mailbox: Mailbox, directory: Mapping[str, _Person], author: Author, key: str) -> Mailbox:
    """Return a local mailbox with its person's name and external address, and any other one unchanged.

    The domain becomes ASCII where that is possible, as few servers accept more in a header (RFC 6532).
    """
    address = fold_address(mailbox.address)
    person = directory.get(address)
    if person is None and key in AUTHOR_FIELDS and address in author.external_addresses:
        person = author.user_name, mailbox.address.rstrip(".")
    elif person is None and key == "from":  # it was the author's at the submission: smtp_in rejects any other
        person = author.user_name, author.external_address
    return mailbox if person is None else mailbox._replace(name=person[0], address=ascii_address(person[1]))


def _names_and_addresses(mailboxes: Collection[Mailbox]) -> list[tuple[str | None, str]]:
    return [(mailbox.name, fold_address(mailbox.address)) for mailbox in mailboxes]


def _field_edits(
    field: Field, mailboxes: Sequence[Mailbox], directory: Mapping[str, _Person], author: Author
) -> list[tuple[int, int, bytes]]:
    edits = []
    for mailbox in mailboxes:
        new = _rewrite_mailbox(mailbox, directory, author, field.key)
        if new is not mailbox:
            edits.append((mailbox.start, mailbox.end, headers.format_mailbox(new.name, new.address)))
    if not edits:
        return []
    rewritten = headers.splice(field.value, edits)
    if max(map(len, rewritten.split(b"\n"))) > _MAX_LINE_OCTETS - len(field.name) - 2:
        # The names made a line too long: each one begins a new line.
        edits = [(start, end, new if start == 0 else b"\r\n " + new) for start, end, new in edits]
    return [(field.value_start + start, field.value_start + end, new) for start, end, new in edits]
