"""From a group that is to be relayed to the mail as it leaves: the header rewritten, the body as it stands."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from services.sender.header_rewriting import Author, ParsedHeader, mailbox_addresses, parse_header, rewrite_header
from services.sender.smtp_transaction import OutgoingMessage
from shared.db.database import Connection, Database
from shared.errors import Permanent
from shared.mime import headers
from shared.mime.addresses import ascii_address, fold_address, spellings
from shared.model import External
from shared.store import accounts, blobs
from shared.store.relay_queue import QueuedMail

_People = Mapping[str, tuple[str, str]]  # lower-case local address to (user name, external address)
REMOVED_GRACE_SECONDS = 120.0
"""Who was removed so shortly before a mail was submitted still counts as there: its author may not know, and its age is
that of when it was claimed."""


@dataclass(frozen=True, slots=True)
class MessageSource:
    """What a letter is made of. beginning: of the mail, at least its header, which is ``parsed``.

    people: who is behind local addresses, these and perhaps others.
    """

    head: bytes
    parsed: ParsedHeader
    people: _People


async def load_sources(
    database: Database, groups: Sequence[QueuedMail], external: External
) -> dict[int, MessageSource]:
    """The sources of these groups, by id, with the accounts as they are now. Where the bytes are gone there is none.

    :raises Temporary: the database is away.
    """
    async with database.statement() as connection:
        heads = await blobs.heads(connection, [group.blob_id for group in groups])
        found = {}
        for group in groups:
            beginning = heads.get(group.blob_id)
            if beginning is None:
                continue
            end = headers.header_end(beginning)
            if end == len(beginning) < group.octets:  # a header has up to 1 MiB, and the second piece has another
                beginning += await blobs.second_chunk(connection, group.blob_id)
                end = headers.header_end(beginning)
            found[group.id] = beginning, parse_header(beginning[:end])
        asked = {address for _, parsed in found.values() for address in mailbox_addresses(parsed)}
        ages = {group.id: group.age + REMOVED_GRACE_SECONDS for group in groups}
        people = await _load_people(connection, asked, external, max(ages.values(), default=0.0))
    return {id_: MessageSource(beginning, parsed, people(ages[id_])) for id_, (beginning, parsed) in found.items()}


async def _load_people(
    connection: Connection, asked: set[str], external: External, oldest: float
) -> Callable[[float], _People]:
    """Who is behind the local addresses of a mail, by its age in seconds; none is older than ``oldest``.

    Whoever was removed since is still shown as somebody of us: customers are to see no local address, nor answer to it.
    """
    written = {spelling for address in asked for spelling in spellings(address)}
    people = await accounts.locals_by_address(connection, sorted(written), oldest)
    theirs = {external.id: external.address}
    others = {local.external_id for local, _ in people} - {external.id}
    if others:
        theirs |= {found.id: found.address for found in await accounts.load_externals(connection, sorted(others))}
    rows = [
        (fold_address(address), (local.user_name, theirs.get(local.external_id, external.address)), removed)
        for local, removed in people
        for address in (local.address, *local.addresses)
    ]
    return lambda age: {address: person for address, person, removed in rows if removed is None or removed < age}


def build_message(
    database: Database, group: QueuedMail, external: External, source: MessageSource | None
) -> OutgoingMessage:
    """The letter for the recipients that wait. :raises Permanent: the bytes of the mail are gone."""
    if source is None:
        raise Permanent(f"the bytes of blob {group.blob_id} are gone")
    beginning, end = source.head, len(source.parsed.header)
    # The author's mail leaves by the account that it was submitted for, whatever was changed or removed since.
    own = (group.author_address, *group.author_addresses)
    people = {
        **source.people,
        **{fold_address(address): (group.author_name, external.address) for address in own},
    }
    submitted_at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=group.age)
    author = Author(group.author_name, external.address, frozenset(map(fold_address, external.own_addresses)))
    header = rewrite_header(source.parsed, people, author, group.message_id, submitted_at)

    async def pieces() -> AsyncIterator[bytes]:
        yield header + beginning[end:]
        if group.octets > len(beginning):
            passed = 0
            async for piece in blobs.stream(database, group.blob_id):  # cut in the same places every time
                passed += len(piece)
                if passed > len(beginning):
                    yield piece

    return OutgoingMessage(
        ascii_address(external.address),
        group.recipients,
        group.octets - end + len(header),
        group.body_8bit,
        not header.isascii(),
        group.smtputf8,
        pieces,
        group.dsn_params,
    )
