"""From a group that is to be relayed to the mail as it leaves: the header rewritten, the body as it stands."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator

from services.sender.relay import Letter
from services.sender.rewriting import Author, addresses, rewrite
from shared import accounts, headers, messages
from shared.accounts import External
from shared.database import Connection, Database
from shared.failures import Permanent
from shared.relays import Group


async def write(database: Database, group: Group, external: External) -> Letter:
    """The letter for the recipients that wait, by the accounts as they are now.

    :raises Permanent: the bytes of the mail are gone. :raises Temporary: the database is away.
    """
    async with database.transaction() as connection:
        beginning = (await messages.heads(connection, [group.message_id])).get(group.message_id)
        if beginning is None:
            raise Permanent(f"the bytes of mail {group.message_id} are gone")
        end = headers.header_end(beginning)
        if end == len(beginning) < group.octets:  # a header has up to 1 MiB, and the second piece has another
            beginning += await messages.second_piece(connection, group.message_id)
            end = headers.header_end(beginning)
        directory = await _directory(connection, addresses(beginning[:end]), group, external)
    submitted_at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=group.age)
    author = Author(group.author_name, external.address, frozenset(a.lower() for a in external.own_addresses))
    header = rewrite(beginning[:end], directory, author, group.header_id, submitted_at)

    async def pieces() -> AsyncIterator[bytes]:
        yield header + beginning[end:]
        if group.octets > len(beginning):
            passed = 0
            async for piece in messages.stream(database, group.message_id):  # cut in the same places every time
                passed += len(piece)
                if passed > len(beginning):
                    yield piece

    return Letter(
        external.address,
        group.recipients,
        group.octets - end + len(header),
        group.body_8bit,
        not header.isascii(),
        group.smtputf8,
        pieces,
    )


async def _directory(
    connection: Connection, asked: set[str], group: Group, external: External
) -> dict[str, tuple[str, str]]:
    """Who is behind these lower-case addresses: (user name, external address) of those that are local."""
    people = await accounts.locals_by_address(connection, sorted(asked))
    theirs = {
        found.id: found.address
        for found in await accounts.externals(connection, sorted({local.external_id for local in people}))
    }
    directory = {
        address.lower(): (local.user_name, theirs.get(local.external_id, external.address))
        for local in people
        for address in (local.address, *local.addresses)
    }
    # The author's mail leaves by the account that it was submitted for, whatever was changed or removed since.
    own = (group.author_address, *group.author_addresses)
    return directory | {address.lower(): (group.author_name, external.address) for address in own}
