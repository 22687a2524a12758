"""services/imap_out/structure_store.py: structures are computed once per body, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from services.imap_out.folder_store import FolderStore
from services.imap_out.structure.stored import MailStructure, read_structure
from services.imap_out.structure_store import StructureStore
from shared.db.database import Database
from shared.runtime.memory_budget import MemoryBudget
from shared.store import blobs
from tests.integration.test_folder_mails import add_mails, add_people
from tests.polling import until

SMALL = [b"Subject: %d\r\n\r\nHello\r\n" % number for number in range(3)]
LARGE = b"Subject: large\r\n\r\n" + b"x" * 998 * 400 + b"\r\n"
HOSTILE = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 900 + b"--b--\r\n"


@asynccontextmanager
async def opened_store(database: Database) -> AsyncIterator[StructureStore]:
    """The structures as a process of the service has them, with empty memory."""
    store = FolderStore(database).structures
    running = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def load(store: StructureStore, mails: dict[int, bytes]) -> dict[int, MailStructure]:
    budget = MemoryBudget(1 << 20)
    found = await store.load({blob_id: len(body) for blob_id, body in mails.items()}, budget)
    assert budget.in_use == 0
    return found


async def stored(database: Database) -> list[int]:
    async with database.statement() as connection:
        cursor = await connection.execute("select blob_id from mail_structures order by blob_id")
        return [int(row[0]) for row in await cursor.fetchall()]


async def given(database: Database, bodies: Sequence[bytes]) -> dict[int, bytes]:
    """The mails, in a mailbox, by blob id."""
    [alex] = (await add_people(database, "alex")).values()
    copies = await add_mails(database, alex, *bodies)
    return {copy.blob_id: body for copy, body in zip(copies, bodies, strict=True)}


async def test_a_structure_is_computed_once_and_stored(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    mails = await given(database, [*SMALL, LARGE])
    expected = {blob_id: read_structure((body,)) for blob_id, body in mails.items()}
    async with opened_store(database) as store:
        assert await load(store, mails) == expected

        async def all_stored() -> bool:
            return await stored(database) == sorted(mails)

        await until(all_stored)
        assert all(store.known(blob_id) == expected[blob_id] for blob_id in mails)
    # another process reads no mail
    monkeypatch.setattr(FolderStore, "read_heads", None)
    monkeypatch.setattr(FolderStore, "read_span", None)
    async with opened_store(database) as store:
        assert await load(store, mails) == expected


async def test_what_is_gone_or_too_large_is_not_stored(database: Database) -> None:
    mails = await given(database, [SMALL[0], HOSTILE])
    small, hostile = mails
    async with opened_store(database) as store:
        found = await load(store, {**mails, 999_999: b"x" * 10, 999_998: b"x" * 300_000})
        assert sorted(found) == sorted(mails) and store.known(hostile) == found[hostile]

        async def one_stored() -> bool:
            return await stored(database) == [small]

        await until(one_stored)
    # a purged mail takes its structure along
    async with database.transaction() as connection:
        await connection.execute("delete from folder_mails")
        await connection.execute("delete from inbound")
        assert await blobs.purge_blobs(connection, list(mails)) == 2
    assert await stored(database) == []


async def test_a_structure_of_an_older_form_is_replaced(database: Database) -> None:
    mails = await given(database, SMALL[:1])
    [blob_id] = mails
    async with database.transaction() as connection:
        await connection.execute("insert into mail_structures values (%s, %b)", (blob_id, b'[0,"x"]'))
    async with opened_store(database) as store:
        expected = await load(store, mails)

        async def replaced() -> bool:
            async with database.statement() as connection:
                cursor = await connection.execute("select structure from mail_structures")
                return await cursor.fetchall() == [(expected[blob_id].encode(),)]

        await until(replaced)
