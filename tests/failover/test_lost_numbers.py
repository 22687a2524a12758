"""An id that was assigned in a lost commit of a failover is never assigned again: clients may have seen it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from deploy.machine import ports
from services.pop3_out.mailbox_store import DatabaseStore
from shared.db.database import Database, is_read_only
from shared.db.migrations.migrate import migrate
from shared.errors import Temporary
from shared.model import Local
from shared.store import folder_mails
from shared.store.folder_mails import Copy
from tests.company import COMPANY, SUPPORT, apply, arrive, everyone
from tests.failover.pair import Pair
from tests.faults.proxy import Proxy
from tests.servers import opened, scratch

MAILS = 100
"""Mails per delivery: more than the 32 values of a sequence that PostgreSQL logs in advance, so values could repeat."""


@dataclass(frozen=True)
class Gateway:
    """The database of a gateway, with an asynchronous standby."""

    pair: Pair
    database: Database
    replication: Proxy
    to_primary: Proxy  # forwards to the current primary

    async def fail_over(self) -> None:
        """Kill the primary and promote the standby."""
        self.pair.kill_primary()
        await asyncio.to_thread(self.pair.promote)
        self.to_primary.targets = (self.pair.primary.port,)


async def until(answers: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(answers):  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.1)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    with scratch() as folder, ExitStack() as stack:
        first, second, *others = ports.choose(4, str(folder))
        pair = Pair(folder, (first, second), synchronous=False)
        pair.start_primary(stack)
        await until(pair.primary.answers)
        pair.primary.create("mailgroup")
        await asyncio.to_thread(migrate, pair.primary.url)
        async with Proxy(others[0], first).running() as replication, Proxy(others[1], first).running() as to_primary:
            await asyncio.to_thread(pair.copy_primary, replication.port)
            pair.start_standby()
            await until(pair.replicates)
            url = f"postgresql://mailgroup:{pair.primary.password}@127.0.0.1:{to_primary.port}/mailgroup"
            async with opened(url) as database:
                await apply(database, COMPANY)
                yield Gateway(pair, database, replication, to_primary)


async def deliver(database: Database, person: Local, text: str) -> set[int]:
    """Deliver MAILS mails to a person, and return their ids."""
    externals, _ = await everyone(database)
    ids = await arrive(database, externals[SUPPORT].id, [f"Subject: {text} {n}\r\n\r\n".encode() for n in range(MAILS)])
    async with database.transaction() as connection:
        cursor = await connection.execute(
            "select i.id, b.id, b.octets from inbound i join blobs b on b.id = i.blob_id where i.id = any(%s)", (ids,)
        )
        rows = await cursor.fetchall()
        await folder_mails.deliver_copies(connection, [Copy((person.id,), *row) for row in sorted(rows)])
    return set(ids)


async def again(work: Callable[[], Awaitable[set[int]]]) -> set[int]:
    """Retry until the new primary answers."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await work()
            except Temporary:
                await asyncio.sleep(0.1)


async def test_an_id_of_a_lost_commit_is_not_assigned_to_another_mail(gateway: Gateway) -> None:
    # given mails that the standby has, and mails that a client has seen and that the standby does not have
    _, people = await everyone(gateway.database)
    alex = people["Alex"]
    store = DatabaseStore(gateway.database)
    kept = await deliver(gateway.database, alex, "kept")
    await until(gateway.pair.is_replicated)
    await gateway.replication.leave()
    lost = {number for _ in range(3) for number in await deliver(gateway.database, alex, "lost")}
    before = await store.load_snapshot(alex.id)
    assert len(before) == 4 * MAILS
    # when the standby is promoted and other mails arrive, in fewer commits than were lost
    await gateway.fail_over()
    new = await again(lambda: deliver(gateway.database, alex, "new"))
    # then these mails have other ids
    after = await DatabaseStore(gateway.database).load_snapshot(alex.id)
    assert after.uids[:MAILS] == before.uids[:MAILS]
    assert len(after) == 2 * MAILS
    for column in ("uids", "uidls", "blob_ids"):
        assert set(getattr(after, column)[MAILS:]).isdisjoint(getattr(before, column)), column
    assert new.isdisjoint(kept | lost)
    # and a process that had cached the lost mails shows the current mailbox
    shown = await store.load_snapshot(alex.id)
    assert (shown.uids, shown.uidls, shown.blob_ids) == (after.uids, after.uidls, after.blob_ids)
    assert await store.read_mails(before.blob_ids[MAILS:], 100_000) == {}


async def test_a_connection_opened_before_promotion_assigns_no_lost_id(gateway: Gateway) -> None:
    # given mails that the standby does not have, and a connection to the standby before its promotion
    _, people = await everyone(gateway.database)
    alex = people["Alex"]
    await until(gateway.pair.is_replicated)
    await gateway.replication.leave()
    lost = await deliver(gateway.database, alex, "lost")
    before = await DatabaseStore(gateway.database).load_snapshot(alex.id)
    gateway.pair.kill_primary()
    gateway.to_primary.targets = (gateway.pair.standby.port,)
    one = Database(gateway.database._url, "mailgroup-one", connections=1)
    await one.open()
    try:
        async with one.statement() as connection:
            assert await is_read_only(connection)
            pid = connection.info.backend_pid
        # when the standby is promoted, and mails arrive by this connection
        await asyncio.to_thread(gateway.pair.promote)
        async with one.statement() as connection:
            assert not await is_read_only(connection)
            assert connection.info.backend_pid == pid
        new = await deliver(one, alex, "new")
        # then these mails have other ids
        after = await DatabaseStore(one).load_snapshot(alex.id)
    finally:
        await one.close()
    assert len(after) == MAILS and new.isdisjoint(lost)
    assert set(after.uids).isdisjoint(before.uids)
