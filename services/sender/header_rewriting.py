"""Rewrites the header of outgoing mail: local addresses become ``"user_name" <external address>``. Pure, over bytes.

The manual says in chapter 3 that the "To" line of outgoing mail is replaced; its own sample (4.3) works only if this
means the sender's line. Here every mailbox that is a local address is replaced, in every field that holds addresses
(``header_fields``), so that a reply to all reaches colleagues too. Every other octet stays unchanged.

With a reply tag (``Author.reply_address``) the author's own address in Reply-To becomes the one with the tag, and a
mail without Reply-To gets one. Any other Reply-To is the author's choice and stays.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import format_datetime
from itertools import islice
from typing import NamedTuple

from services.sender import header_fields
from services.sender.header_fields import AUTHOR_FIELDS, COPIES_OF_FROM, Treatment, treatment_of
from services.sender.header_folding import MAX_LINE_OCTETS, fold_long_lines
from shared.mime import headers
from shared.mime.addresses import ascii_address, fold_address
from shared.mime.display_names import normalise
from shared.mime.headers import Mailbox

_COMPLETED = frozenset({"message-id", "date"})
"""Fields that are added to a mail without them, like From."""
KEPT_MAILBOXES = 200
"""Limits the parsed mailboxes that are kept until the mail leaves: mailboxes of its header. A client may write 100,000;
the fields with further ones are parsed once more."""
_Person = tuple[str, str]  # user name, external address


@dataclass(frozen=True, slots=True)
class Author:
    """The author of a mail."""

    user_name: str
    external_address: str  # of the external account that relays the mail
    external_addresses: frozenset[str]  # this one and the account's aliases, folded
    redirects: bool = False  # the mail that another has written: From stays
    local_addresses: frozenset[str] = frozenset()  # the author's own ones, folded
    reply_address: str | None = None  # the external address with the author's reply tag; None: no tag


class ParsedField(NamedTuple):
    """A field that the rewriting concerns, and its position in the header."""

    key: str  # the name in lower case
    treatment: Treatment | None  # None: Message-ID and Date
    start: int
    end: int  # after the line end
    value_start: int
    value_end: int  # before the line end
    mailboxes: Sequence[Mailbox] | None  # of the rewritten fields; None: too many to keep


@dataclass(frozen=True, slots=True)
class ParsedHeader:
    """A parsed header."""

    header: bytes  # with its blank line, if it has one
    fields: Sequence[ParsedField]

    def value(self, field: ParsedField) -> bytes:
        """The raw octets of a field."""
        return self.header[field.value_start : field.value_end]

    def mailboxes(self, field: ParsedField) -> Iterable[Mailbox]:
        """The mailboxes of a field, in order."""
        if field.mailboxes is None:
            return _iterate_mailboxes(field.treatment, self.value(field))
        return field.mailboxes


def _iterate_mailboxes(treatment: Treatment | None, value: bytes) -> Iterator[Mailbox]:
    if treatment == "mailboxes":
        return headers.iterate_mailboxes(value)
    return iter(()) if treatment in (None, "removed") else header_fields.iterate_addresses(value)


def parse_header(header: bytes) -> ParsedHeader:
    """Parse a header once, for both functions below."""
    parsed = []
    kept = 0
    for field in headers.iterate_fields(header):
        key = field.key
        treatment = treatment_of(key)
        if treatment is None and key not in _COMPLETED:
            continue
        found = _iterate_mailboxes(treatment, field.value)
        mailboxes = list(islice(found, KEPT_MAILBOXES - kept + 1))
        fits = kept + len(mailboxes) <= KEPT_MAILBOXES
        if fits:
            kept += len(mailboxes)
        value_end = field.value_start + len(field.value)
        parsed.append(
            ParsedField(
                key, treatment, field.start, field.end, field.value_start, value_end, mailboxes if fits else None
            )
        )
    return ParsedHeader(header, parsed)


def mailbox_addresses(parsed: ParsedHeader) -> set[str]:
    """Return the addresses that ``rewrite_header`` looks up in its directory, folded (``fold_address``)."""
    return {fold_address(mailbox.address) for field in parsed.fields for mailbox in parsed.mailboxes(field)}


def rewrite_header(
    parsed: ParsedHeader, directory: Mapping[str, _Person], author: Author, message_id: str, date: datetime.datetime
) -> bytes:
    """Return the rewritten header.

    :param directory: folded local address to (user name, external address); the author's own addresses too.
    :param message_id: added as a Message-ID unless the mail has this one. :param date: added as Date if it has none.
    """
    author_fields = [field for field in parsed.fields if field.key == "from"]
    has_author = any(True for field in author_fields for _ in parsed.mailboxes(field))
    senders = _rewritten(author_fields, directory, author)
    edits: list[tuple[int, int, bytes]] = []
    seen: set[str] = set()
    for field in parsed.fields:
        key = field.key
        keep = field.treatment != "removed"
        if field.treatment == "key":
            keep = not any(fold_address(mailbox.address) in directory for mailbox in parsed.mailboxes(field))
        elif key == "from":
            keep = has_author
        elif key in COPIES_OF_FROM:
            rewritten = _rewritten([field], directory, author)
            keep = rewritten is None or rewritten != senders
        elif key == "message-id":
            keep = "message-id" in seen or message_id in headers.message_ids(parsed.value(field))
        if not keep:
            edits.append((field.start, field.end, b""))
            continue
        seen.add(key)
        if field.mailboxes is None or field.mailboxes:
            edits += _field_edits(parsed, field, directory, author)
    edits.append((0, 0, _missing_fields(seen, author, message_id, date)))
    return fold_long_lines(headers.splice(parsed.header, edits))


def _rewritten(
    fields: Sequence[ParsedField], directory: Mapping[str, _Person], author: Author
) -> list[tuple[str | None, str]] | None:
    """Return names and addresses of these fields as they leave, to compare them; None if there are too many."""
    compared = []
    for field in fields:
        if field.mailboxes is None:
            return None
        for mailbox in field.mailboxes:
            new = _rewrite_mailbox(mailbox, directory, author, field.key)
            compared.append((new.name, fold_address(new.address)))
    return compared


def _missing_fields(seen: Collection[str], author: Author, message_id: str, date: datetime.datetime) -> bytes:
    """Return the fields that a mail must have and this one lacks; for the top, valid even without a blank line."""
    lines = b""
    if "date" not in seen:
        lines += b"Date: " + format_datetime(date).encode() + b"\r\n"
    if "from" not in seen:
        lines += b"From: " + headers.format_mailbox(author.user_name, ascii_address(author.external_address)) + b"\r\n"
    if author.reply_address is not None and "reply-to" not in seen:
        lines += b"Reply-To: " + headers.format_mailbox(author.user_name, ascii_address(author.reply_address)) + b"\r\n"
    if "message-id" not in seen:
        lines += b"Message-ID: <" + message_id.encode("utf-8", "replace") + b">\r\n"
    return lines


def _rewrite_mailbox(mailbox: Mailbox, directory: Mapping[str, _Person], author: Author, key: str) -> Mailbox:
    """Return a local mailbox with its person's name and external address, and any other one unchanged.

    The domain becomes ASCII where that is possible, as few servers accept more in a header (RFC 6532).
    """
    address = fold_address(mailbox.address)
    person = directory.get(address)
    if key == "reply-to" and author.reply_address is not None and _is_authors_own(mailbox, author):
        person = author.user_name, author.reply_address
    elif person is None and key in AUTHOR_FIELDS and address in author.external_addresses:
        person = author.user_name, mailbox.address.rstrip(".")
    elif (
        person is None and key == "from" and not author.redirects
    ):  # it was the author's at the submission: smtp_in rejects any other
        person = author.user_name, author.external_address
    return mailbox if person is None else mailbox._replace(name=person[0], address=ascii_address(person[1]))


def _is_authors_own(mailbox: Mailbox, author: Author) -> bool:
    """Whether an address in Reply-To is the author's own. The external address with another name is not: the author may
    want the answers to reach a colleague, or everybody."""
    address = fold_address(mailbox.address)
    if address in author.local_addresses:
        return True
    return address in author.external_addresses and normalise(mailbox.name or "") in ("", normalise(author.user_name))


def _field_edits(
    parsed: ParsedHeader, field: ParsedField, directory: Mapping[str, _Person], author: Author
) -> list[tuple[int, int, bytes]]:
    if field.treatment != "mailboxes":
        return _text_edits(parsed, field, directory)
    edits = []
    formatted: dict[tuple[str | None, str], bytes] = {}
    for mailbox in parsed.mailboxes(field):
        new = _rewrite_mailbox(mailbox, directory, author, field.key)
        if new is not mailbox:
            person = new.name, new.address
            if person not in formatted:
                formatted[person] = headers.format_mailbox(*person)
            edits.append((mailbox.start, mailbox.end, formatted[person]))
    if not edits:
        return []
    rewritten = headers.splice(parsed.value(field), edits)
    if max(map(len, rewritten.split(b"\n"))) > MAX_LINE_OCTETS - (field.value_start - field.start) - 1:
        # The names made a line too long: each one begins a new line.
        edits = [(start, end, new if start == 0 else b"\r\n " + new) for start, end, new in edits]
    return [(field.value_start + start, field.value_start + end, new) for start, end, new in edits]


def _text_edits(
    parsed: ParsedHeader, field: ParsedField, directory: Mapping[str, _Person]
) -> list[tuple[int, int, bytes]]:
    """Replace the local addresses of a field that is no list of mailboxes, and cut those in ``for`` of a trace."""
    value = parsed.value(field)
    edits = []
    for mailbox in parsed.mailboxes(field):
        person = directory.get(fold_address(mailbox.address))
        if person is None:
            continue
        clause = header_fields.for_clause(value, mailbox.start, mailbox.end) if field.treatment == "trace" else None
        start, end = clause or (mailbox.start, mailbox.end)
        new = b"" if clause else header_fields.replaced_address(value[start:end], ascii_address(person[1]))
        edits.append((field.value_start + start, field.value_start + end, new))
    return edits
