"""The header of a mail that leaves: whoever is local appears as ``"user_name" <external address>``. Pure, over bytes.

The manual says in chapter 3 that the "To" line of outgoing mail is replaced; its own sample (4.3) works only if it is
the sender's. Here every mailbox that is a local address is replaced, in the sender's fields and in the recipients', so
that an answer to all reaches a colleague too. Every other octet stays as it is.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from email.utils import format_datetime

from shared import headers
from shared.headers import Field, Mailbox

SENDERS = frozenset({"from", "sender", "x-sender"})
"""Fields that name the author: the external address itself gets the author's name here."""
OTHERS = frozenset({"reply-to", "to", "cc", "disposition-notification-to", "return-receipt-to"})
REMOVED = frozenset({"bcc", "return-path"})

_LONGEST_LINE = 998
"""RFC 5322 section 2.1.1."""
_Person = tuple[str, str]  # user name, external address


@dataclass(frozen=True, slots=True)
class Author:
    """Who sends. external_address: of the account it leaves by. external_addresses: with its aliases, lower-case."""

    user_name: str
    external_address: str
    external_addresses: frozenset[str]


def addresses(header: bytes) -> set[str]:
    """The lower-case addresses that ``rewrite`` looks up in its directory."""
    return {
        mailbox.address.lower()
        for field in headers.fields(header)
        if field.key in SENDERS | OTHERS
        for mailbox in headers.mailboxes(field.value)
    }


def rewrite(
    header: bytes, directory: Mapping[str, _Person], author: Author, header_id: str, date: datetime.datetime
) -> bytes:
    """The header as it leaves.

    :param header: with its blank line, if it has one.
    :param directory: lower-case local address to (user name, external address); the author's own addresses too.
    :param header_id: goes into a Message-ID if the mail has none of that id. :param date: goes into a missing Date.
    """
    fields = headers.fields(header)
    sender = [
        _replaced(mailbox, directory, author)
        for field in fields
        if field.key == "from"
        for mailbox in headers.mailboxes(field.value)
    ]
    edits: list[tuple[int, int, bytes]] = []
    seen: set[str] = set()
    for field in fields:
        keep = field.key not in REMOVED
        if field.key == "from":
            keep = bool(sender)
        elif field.key in SENDERS:
            named = [_replaced(mailbox, directory, author) for mailbox in headers.mailboxes(field.value)]
            keep = _who(named) != _who(sender)
        elif field.key == "message-id":
            keep = "message-id" in seen or header_id in headers.message_ids(field.value)
        if not keep:
            edits.append((field.start, field.end, b""))
            continue
        seen.add(field.key)
        if field.key in SENDERS | OTHERS:
            edits += _edits(field, directory, author if field.key in SENDERS else None)
    edits.append((0, 0, _missing(seen, author, header_id, date)))
    return headers.splice(header, edits)


def _missing(seen: Collection[str], author: Author, header_id: str, date: datetime.datetime) -> bytes:
    """Fields that a mail must have. They go to the top: right even where no blank line ends the header."""
    lines = b""
    if "date" not in seen:
        lines += b"Date: " + format_datetime(date).encode() + b"\r\n"
    if "from" not in seen:
        lines += b"From: " + headers.format_mailbox(author.user_name, author.external_address) + b"\r\n"
    if "message-id" not in seen:
        lines += b"Message-ID: <" + header_id.encode("utf-8", "replace") + b">\r\n"
    return lines


def _replaced(mailbox: Mailbox, directory: Mapping[str, _Person], author: Author | None) -> Mailbox:
    """The mailbox as it leaves: a local one with its person's name and external address, others as they are."""
    person = directory.get(mailbox.address.lower())
    if person is None and author is not None and mailbox.address.lower() in author.external_addresses:
        person = author.user_name, mailbox.address
    return mailbox if person is None else mailbox._replace(name=person[0], address=person[1])


def _who(mailboxes: Collection[Mailbox]) -> list[tuple[str | None, str]]:
    return [(mailbox.name, mailbox.address.lower()) for mailbox in mailboxes]


def _edits(field: Field, directory: Mapping[str, _Person], author: Author | None) -> list[tuple[int, int, bytes]]:
    edits = []
    for mailbox in headers.mailboxes(field.value):
        new = _replaced(mailbox, directory, author)
        if new is not mailbox:
            edits.append((mailbox.start, mailbox.end, headers.format_mailbox(new.name, new.address)))
    rewritten = headers.splice(field.value, edits)
    if edits and max(map(len, rewritten.split(b"\n"))) > _LONGEST_LINE - len(field.name) - 2:
        # The names made a line too long: each of them begins a line of its own.
        edits = [(start, end, new if start == 0 else b"\r\n " + new) for start, end, new in edits]
    return [(field.value_start + start, field.value_start + end, new) for start, end, new in edits]
