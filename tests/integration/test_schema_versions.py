"""An upgrade in progress: code of two versions on one database, before and after the migration."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.router.worker import RouterWorker
from shared.amqp import publications
from shared.amqp.broker import Broker, Publication
from shared.db.database import Database
from shared.db.migrations import revisions
from shared.db.migrations.migrate import migrate, pending
from shared.runtime import queue_worker
from shared.runtime.process import Service
from shared.runtime.queue_worker import run_worker
from shared.settings import Settings
from shared.store import inbound
from shared.store.inbound import RoutingResult
from tests.company import COMPANY, SUPPORT, apply, arrive
from tests.polling import until

LATEST = revisions.known_revisions()[-1]
SECOND = f"""from shared.db.migrations.sql_file import upgrade_with

revision = "second"
down_revision = "{LATEST}"

upgrade = upgrade_with(__file__)
"""
OLD_NAME, NEW_NAME = "earlier_names", "former_names"
BY_OLD_CODE = "decided by the old version"
MAIL = f"From: anna@x.example\r\nTo: {SUPPORT}\r\n\r\nHello\r\n".encode()


class Counting(RouterWorker):
    """The router of this version, which needs the second revision. tries: batches begun."""

    tries = 0

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        self.tries += 1
        return await super().handle(ids)


class OldRouter(Counting):
    """The router of the version before: it reads the column under its old name, and routes every mail to one person."""

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        self.tries += 1
        async with self._database.transaction() as connection:
            mails = await inbound.load_fetched(connection, ids)
            cursor = await connection.execute(f"select id, {OLD_NAME} from local_accounts order by id limit 1")
            [person, _] = await cursor.fetchone() or (0, [])
            recipients = ((person, 1, BY_OLD_CODE),)
            await inbound.write_decisions(
                connection, [RoutingResult(mail.id, recipients, 1, BY_OLD_CODE, False) for mail in mails]
            )
        return []


@pytest.fixture
async def older_schema(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts in a database whose column still has its old name; the second revision renames it."""
    await apply(database, COMPANY)
    async with database.transaction() as connection:
        await connection.execute(f"alter table local_accounts rename column {NEW_NAME} to {OLD_NAME}")
    shutil.copytree(revisions.FOLDER, tmp_path / "new")
    (tmp_path / "new" / "versions" / "second.py").write_text(SECOND)
    (tmp_path / "new" / "versions" / "second.sql").write_text(
        f"alter table local_accounts rename column {OLD_NAME} to {NEW_NAME};\n"
    )
    monkeypatch.setattr(revisions, "FOLDER", tmp_path / "new")
    monkeypatch.setattr(queue_worker, "RETRY_PAUSES", (0.05,))


@asynccontextmanager
async def running(settings: Settings, version: type[Counting]) -> AsyncIterator[Counting]:
    """A router at work; stopped at the end."""
    service = Service("router", settings)
    await service.database.open()
    router = version(service.database, 600.0)
    work = asyncio.create_task(run_worker(service, router))
    await asyncio.sleep(0)
    await service.broker.open()
    await until(lambda: service.broker.ready)
    try:
        yield router
    finally:
        service.stopping.set()
        await work
        await service.broker.close()
        await service.database.close()


@asynccontextmanager
async def publishing(url: str) -> AsyncIterator[Broker]:
    broker = Broker(url, "test")
    await broker.open()
    await until(lambda: broker.ready)
    yield broker
    await broker.close()


async def states(database: Database) -> dict[str, int]:
    """How many mails wait for the router, were routed by the old code, and by the new code."""
    async with database.transaction() as connection:
        cursor = await connection.execute(
            """select case when state = 'fetched' then 'waiting' when reason = %s then 'old' else 'new' end, count(*)
               from inbound where state in ('fetched', 'routed') group by 1""",
            (BY_OLD_CODE,),
        )
        return {str(row[0]): int(row[1]) for row in await cursor.fetchall()}


async def blamed(database: Database) -> int:
    """How many mails had a failure counted, were parked, or were tried in isolation."""
    async with database.transaction() as connection:
        cursor = await connection.execute(
            """select (select count(*) from inbound where failures > 0 or state = 'parked')
                    + (select count(*) from poison where crashes > 0)"""
        )
        [count] = await cursor.fetchone() or (0,)
    return int(count)


async def test_code_that_does_not_fit_the_schema_waits_and_counts_no_failure(
    database: Database, database_url: str, broker_url: str, older_schema: None
) -> None:
    settings = Settings(database_url=database_url, broker_url=broker_url)
    async with database.transaction() as connection:
        cursor = await connection.execute("select id from external_accounts where address = %s", (SUPPORT,))
        [support] = await cursor.fetchone() or (0,)

    async def fetch_until_tried(router: Counting) -> None:
        """Fetch mails until this router gets some: the broker gives each of them its turn."""
        tries = router.tries
        while router.tries == tries:
            ids = await arrive(database, support, [MAIL, MAIL])
            await broker.publish(publications.fetched([(id_, SUPPORT) for id_ in ids]))
            await asyncio.sleep(0.1)

    async def waits(router: Counting) -> None:
        """It tries again and again, and its mails stay as they are."""
        tries = router.tries
        await until(lambda: router.tries > tries + 5)
        assert "waiting" in await states(database) and await blamed(database) == 0

    async def has(state: str) -> bool:
        return state in await states(database)

    async def none_waits() -> bool:
        return "waiting" not in await states(database)

    async with publishing(broker_url) as broker, running(settings, Counting) as new:
        # given new code on the older schema: it waits
        await fetch_until_tried(new)
        await waits(new)
        assert set(await states(database)) == {"waiting"} and pending(database_url) == ["second"]
        async with running(settings, OldRouter) as old:
            # and beside it old code, which works
            await fetch_until_tried(old)
            await until(lambda: has("old"))
            await waits(new)
            assert not await has("new")
            # when the migration is applied
            assert await asyncio.to_thread(migrate, database_url) == ["second"]
            # then the new code continues without intervention
            await until(lambda: has("new"))
            # and the old code waits
            await fetch_until_tried(old)
            await waits(old)
        # and when the old code is stopped, the new code routes the mails that it had
        await until(none_waits)
        assert await blamed(database) == 0
