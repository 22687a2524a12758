"""services/imap_out/structures_ahead.py: structures of new mail are there before a client asks (PostgreSQL)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.imap_out import structures_ahead
from services.imap_out.structure_store import StructureStore
from services.imap_out.structures_ahead import StructuresAhead
from shared.db.database import Database
from shared.errors import Temporary
from shared.model import Local
from shared.runtime.memory_budget import MemoryBudget
from tests.imap_clients import imap_server
from tests.integration.test_folder_mails import add_mails, add_people
from tests.integration.test_imap_structure_store import opened_store, stored
from tests.polling import until

BODIES = [b"Subject: %d\r\n\r\nHello\r\n" % number for number in range(3)]


async def run_sql(database: Database, statement: str, *values: object) -> None:
    async with database.transaction() as connection:
        await connection.execute(statement, values)


async def arrived(database: Database, local: Local, bodies: Sequence[bytes]) -> list[int]:
    """Blob ids of mails that arrived a minute ago."""
    copies = await add_mails(database, local, *bodies)
    await run_sql(database, "update blobs set created_at = now() - interval '1 minute'")
    return [copy.blob_id for copy in copies]


async def logged_in(database: Database, local: Local, protocol: str, days: int = 0) -> None:
    await run_sql(
        database,
        """insert into last_logins (local_id, protocol, at, peer)
           values (%s, %s, now() - make_interval(days => %s), '127.0.0.1')""",
        local.id,
        protocol,
        days,
    )


def ahead(database: Database, store: StructureStore) -> StructuresAhead:
    return StructuresAhead(database, store, MemoryBudget(1 << 20))


async def test_only_mail_of_people_who_read_by_imap_is_computed(database: Database) -> None:
    # given one who reads by IMAP, one by POP3, and one who did so by IMAP long ago
    people = list((await add_people(database, "alex", "jim", "kim")).values())
    alex, jim, kim = people
    await logged_in(database, alex, "imap")
    await logged_in(database, jim, "pop3")
    await logged_in(database, kim, "imap", days=31)
    mails = {person.id: await arrived(database, person, BODIES) for person in people}
    await run_sql(
        database,
        "update folder_mails set expunged_at = now(), expunged_as = 'deleted' where blob_id = %s",
        mails[alex.id][1],
    )
    async with opened_store(database) as store:
        # when the next mails are looked at, until there are none
        computing = ahead(database, store)
        assert await computing.compute_next()
        assert not await computing.compute_next()
        # then the mails in his folders have a structure, and no others
        wanted = [mails[alex.id][0], mails[alex.id][2]]

        async def all_stored() -> bool:
            return await stored(database) == wanted

        await until(all_stored)
    async with opened_store(database) as store:
        # and another process goes on behind them
        await run_sql(database, "delete from leases")
        later = await arrived(database, alex, BODIES[:1])
        computing = ahead(database, store)
        while await computing.compute_next():
            pass
        assert [blob_id for each in mails.values() for blob_id in each if store.known(blob_id)] == []
        assert store.known(later[0]) is not None


async def test_mail_that_is_on_its_way_is_computed_later(database: Database) -> None:
    [alex] = (await add_people(database, "alex")).values()
    await logged_in(database, alex, "imap")
    [copy] = await add_mails(database, alex, BODIES[0])
    await run_sql(database, "update blobs set created_at = now() + interval '1 hour'")
    async with opened_store(database) as store:
        computing = ahead(database, store)
        assert not await computing.compute_next()
        await run_sql(database, "update blobs set created_at = now() - interval '1 minute'")
        assert await computing.compute_next()
        assert store.known(copy.blob_id) is not None


async def test_one_process_computes_at_a_time(database: Database) -> None:
    [alex] = (await add_people(database, "alex")).values()
    await logged_in(database, alex, "imap")
    first = await arrived(database, alex, BODIES[:1])
    async with opened_store(database) as store, opened_store(database) as other_store:
        one, other = ahead(database, store), ahead(database, other_store)
        assert await one.compute_next()
        # given a mail that both have not looked at
        second = await arrived(database, alex, BODIES[1:2])
        assert not await other.compute_next()
        assert await one.compute_next()

        async def all_stored() -> bool:
            return await stored(database) == first + second

        await until(all_stored)
        # when one has ended, the other has passed its mails, and computes the next ones
        await run_sql(database, "delete from leases")
        third = await arrived(database, alex, BODIES[2:])
        while await other.compute_next():
            pass
        assert [other_store.known(blob_id) is not None for blob_id in first + second + third] == [False, False, True]


@pytest.mark.parametrize(("failure", "again"), [(Temporary("away"), True), (ValueError("a defect"), False)])
async def test_only_a_temporary_failure_is_retried(
    database: Database, monkeypatch: pytest.MonkeyPatch, failure: Exception, again: bool
) -> None:
    [alex] = (await add_people(database, "alex")).values()
    await logged_in(database, alex, "imap")
    [first] = await arrived(database, alex, BODIES[:1])
    monkeypatch.setattr(structures_ahead, "LOOK_SECONDS", 0.01)
    load = StructureStore.load
    failures = [failure]

    async def fail_once(self: StructureStore, *arguments: object) -> object:
        if failures:
            raise failures.pop()
        return await load(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StructureStore, "load", fail_once)
    async with opened_store(database) as store:
        running = asyncio.create_task(ahead(database, store).run())
        try:

            async def has_failed() -> bool:
                return not failures

            await until(has_failed)
            # then the next mail is computed in any case
            [second] = await arrived(database, alex, BODIES[1:2])

            async def computed() -> bool:
                return store.known(second) is not None

            await until(computed)
            assert (store.known(first) is not None) is again
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_the_service_computes_without_any_session(database_url: str, database: Database, tmp_path: Path) -> None:
    async with imap_server(database_url, database, tmp_path, BODIES) as server:
        await run_sql(database, "update blobs set created_at = now() - interval '1 minute'")
        await logged_in(database, server.alex, "imap")

        async def all_stored() -> bool:
            return len(await stored(database)) == len(BODIES)

        await until(all_stored, 60)
