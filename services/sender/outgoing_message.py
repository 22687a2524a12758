"""Builds the outgoing message of a queued mail: a rewritten header, and the body with the recipients of a report."""

from __future__ import annotations

import datetime
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from services.sender.header_rewriting import Author, ParsedHeader, mailbox_addresses, parse_header, rewrite_header
from services.sender.report_recipients import replaced_recipients, reported_recipients
from services.sender.smtp_transaction import OutgoingMessage
from shared.db.database import Connection, Database
from shared.errors import Permanent
from shared.mime import headers
from shared.mime.addresses import ascii_address, fold_address, spellings
from shared.mime.headers import Mailbox
from shared.mime.reply_tags import make_tag, tagged_address
from shared.model import External
from shared.runtime.parsing import Parsing
from shared.store import accounts, blobs, reply_tags
from shared.store.accounts import AddressHolder
from shared.store.relay_queue import QueuedMail

_People = Mapping[str, tuple[str, str]]  # lower-case local address to (user name, external address)
REMOVED_GRACE_SECONDS = 120.0
"""A local account that was removed at most this long before the submission is still rewritten: seconds; the author may
not know of the removal yet, and a mail's age is the one at its claim."""
LOOKED_UP_ADDRESSES = 1000
"""Limits the addresses of one query: addresses; a header of 1 MiB may contain 100,000 different ones."""


@dataclass(frozen=True, slots=True)
class MessageSource:
    """The beginning of an outgoing message."""

    head: bytes  # the rewritten header and the beginning of the body
    header_8bit: bool  # the header has octets beyond ASCII
    stored_octets: int  # of the stored mail, in place of which ``head`` is sent
    null_sender: bool = False  # leaves with ``MAIL FROM:<>``


async def load_sources(database: Database, mails: Sequence[QueuedMail], external: External) -> dict[int, MessageSource]:
    """Load the sources of these mails, by id, with the accounts as they are now. A mail whose bytes are gone has none.

    :raises Temporary: the database is unavailable.
    """
    parsing = Parsing()
    async with database.statement() as connection:
        tag_key = (await reply_tags.load_keys(connection))[:1] if external.reply_tag else []
        heads = await blobs.heads(connection, [mail.blob_id for mail in mails])
        parsed_heads: dict[int, tuple[bytes, _ParsedHead]] = {}
        addresses: set[str] = set()
        for mail in mails:
            head = heads.get(mail.blob_id)
            if head is None:
                continue
            end = headers.header_end(head)
            if end == len(head) < mail.octets:  # a header has up to 1 MiB; the second chunk has the rest of it
                head += await blobs.second_chunk(connection, mail.blob_id)
                end = headers.header_end(head)
            parsed = await parsing.run(end, _parse, head, end)
            parsed_heads[mail.id] = head, parsed
            addresses |= parsed.addresses
        del heads
        ages = {mail.id: mail.age + REMOVED_GRACE_SECONDS for mail in mails}
        people = await _load_people(connection, addresses, external, max(ages.values(), default=0.0))
    sources = {}
    for mail in mails:
        if mail.id in parsed_heads:
            head, parsed = parsed_heads.pop(mail.id)
            sources[mail.id] = await parsing.run(
                len(parsed.header.header), _build_source, mail, external, head, parsed, people(ages[mail.id]), tag_key
            )
    return sources


class _ParsedHead(NamedTuple):
    """The parsed beginning of a mail."""

    header: ParsedHeader
    recipients: Sequence[Mailbox]  # that a report in the body names
    addresses: set[str]  # of both, folded


def _parse(head: bytes, end: int) -> _ParsedHead:
    """Parse the beginning of a mail. :param end: of its header."""
    header = parse_header(head[:end])
    recipients = reported_recipients(head, end)
    return _ParsedHead(
        header, recipients, mailbox_addresses(header) | {fold_address(found.address) for found in recipients}
    )


def _build_source(
    mail: QueuedMail,
    external: External,
    head: bytes,
    parsed: _ParsedHead,
    people: _People,
    tag_key: Sequence[bytes],
) -> MessageSource:
    """Build the source of a mail. :param tag_key: makes reply tags; empty: none are made."""
    # A mail leaves by the account for which it was submitted, even if its author belongs to another one now.
    author_addresses = (mail.author_address, *mail.author_addresses)
    directory = {
        **people,
        **{fold_address(address): (mail.author_name, external.address) for address in author_addresses},
    }
    submitted_at = mail.submitted_at.astimezone(datetime.UTC)  # in every copy that is built
    original = parsed.header.header
    null_sender = not mail.envelope_from and is_automatic(original)
    redirects = _is_redirect(parsed.header, author_addresses)
    reply_address = None
    if tag_key and not redirects and not null_sender:
        reply_address = tagged_address(external.address, make_tag(tag_key[0], external.id, mail.author_id))
    author = Author(
        mail.author_name,
        external.address,
        frozenset(map(fold_address, external.own_addresses)),
        redirects,
        frozenset(map(fold_address, author_addresses)),
        reply_address,
    )
    header = rewrite_header(parsed.header, directory, author, mail.message_id, submitted_at)
    body = replaced_recipients(head, len(original), parsed.recipients, directory)
    return MessageSource(header + body, not header.isascii(), len(head), null_sender)


def _is_redirect(parsed: ParsedHeader, author_addresses: Sequence[str]) -> bool:
    """Return whether the author resends another's mail, which smtp_in has allowed. From is then in no domain of theirs.

    :param author_addresses: local ones; one of another domain may be gone since the submission.
    """
    if not any(field.key == "resent-from" for field in parsed.fields):
        return False
    domains = {fold_address(address).rpartition("@")[2] for address in author_addresses}
    senders = [field for field in parsed.fields if field.key == "from"]
    return not any(
        fold_address(mailbox.address).rpartition("@")[2] in domains
        for field in senders
        for mailbox in parsed.mailboxes(field)
    )


_REPORT = re.compile(rb"\s*multipart/report\s*;.*report-type\s*=\s*\"?disposition-notification\b", re.I | re.S)


def is_automatic(header: bytes) -> bool:
    """Return whether a mail is a report of its disposition (RFC 8098) or says that a program wrote it (RFC 3834).

    Only such mail leaves with the null sender that its client gave: others could not be reported as failed.
    """
    if any(_REPORT.match(value) for value in headers.values(header, "content-type")):
        return True
    words = [headers.field_text(value).partition(";")[0].strip() for value in headers.values(header, "auto-submitted")]
    return any(word and word.lower() != "no" for word in words)


async def _load_people(
    connection: Connection, addresses: set[str], external: External, max_age: float
) -> Callable[[float], _People]:
    """Return a function from a mail's age in seconds (at most ``max_age``) to the persons behind local addresses.

    Who gave up an address after the submission, or was removed, is included: customers must not see a local address.
    """
    people: list[AddressHolder] = []
    remaining = iter(addresses)
    while part := list(islice(remaining, LOOKED_UP_ADDRESSES)):
        all_spellings = {spelling for address in part for spelling in spellings(address)}
        people += await accounts.locals_by_address(connection, sorted(all_spellings), max_age)
    people.sort(key=lambda found: 1.0 if found.gone is None else -found.gone)  # of one address, the present holder wins
    external_addresses = {external.id: external.address}
    other_ids = {found.local.external_id for found in people} - {external.id}
    if other_ids:
        others = await accounts.load_externals(connection, sorted(other_ids))
        external_addresses |= {other.id: other.address for other in others}
    rows = [
        (
            fold_address(address),
            (found.local.user_name, external_addresses.get(found.local.external_id, external.address)),
            found.gone,
        )
        for found in people
        for address in found.addresses
    ]
    return lambda age: {address: person for address, person, gone in rows if gone is None or gone < age}


def build_message(
    database: Database, mail: QueuedMail, external: External, source: MessageSource | None
) -> OutgoingMessage:
    """Build the message for the waiting recipients. :raises Permanent: the bytes of the mail are gone."""
    if source is None:
        raise Permanent(f"the bytes of blob {mail.blob_id} are gone")

    async def pieces() -> AsyncIterator[bytes]:
        yield source.head
        if mail.octets > source.stored_octets:
            skipped = 0
            async for piece in blobs.stream(database, mail.blob_id):  # the head is one or two whole pieces
                skipped += len(piece)
                if skipped > source.stored_octets:
                    yield piece

    address = ascii_address(external.address)
    return OutgoingMessage(
        "" if source.null_sender else address,
        mail.recipients,
        mail.octets - source.stored_octets + len(source.head),
        mail.body_8bit,
        source.header_8bit,
        mail.smtputf8,
        pieces,
        mail.dsn_params,
        address if source.null_sender else None,
    )
