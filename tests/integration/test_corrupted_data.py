"""PostgreSQL cannot read the bytes of one mail: it waits, with a problem that names the cause; other mail passes."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing

import psycopg
from prometheus_client import REGISTRY, generate_latest
from psycopg.conninfo import conninfo_to_dict

from deploy.machine.postgres import Postgres
from services.admin.monitoring.health_client import corruption_problems
from services.router.worker import RouterWorker
from shared.amqp import publications
from shared.db.database import Database
from shared.runtime.process import Service
from shared.runtime.queue_worker import run_worker
from shared.settings import Settings
from tests.company import COMPANY, SUPPORT, apply, arrive, everyone
from tests.polling import until
from tests.scripted_smtp import scripted_smtp
from tests.sender_harness import sending


def mail(token: str) -> bytes:
    """A mail that PostgreSQL stores outside of its row."""
    return f"From: alex@local.com\r\nTo: {SUPPORT}\r\nSubject: x\r\n\r\n".encode() + f"{token}\r\n".encode() * 1000


def damage(postgres: Postgres, database_url: str, token: str) -> None:
    """Remove the bytes of a mail as a failing disk does: PostgreSQL's row still says where they are."""
    url = postgres.admin_url_of(str(conninfo_to_dict(database_url)["dbname"]))
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("create extension pg_surgery")
        [[toast]] = connection.execute(
            "select reltoastrelid::regclass::text from pg_class where oid = 'blobs'::regclass"
        ).fetchall()
        pieces = connection.execute(
            f"select ctid::text from {toast} where position(%s::bytea in chunk_data) > 0".encode(), (token.encode(),)
        ).fetchall()
        assert pieces
        connection.execute("select heap_force_kill(%s::regclass, %s::tid[])", (toast, [piece for [piece] in pieces]))


def problems() -> list[str]:
    return corruption_problems(generate_latest(REGISTRY).decode(), time.time())


async def test_a_stage_isolates_a_mail_that_the_database_cannot_read(
    postgres: Postgres, database: Database, database_url: str, broker_url: str
) -> None:
    # given twenty mails, one of which PostgreSQL cannot read
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f"token-{number:02}") for number in range(20)])
    damage(postgres, database_url, "token-07")
    service = Service("router", Settings(database_url=database_url, broker_url=broker_url))
    await service.database.open()
    running = asyncio.create_task(run_worker(service, RouterWorker(service.database, 5)))
    await asyncio.sleep(0)
    await service.broker.open()
    await until(lambda: service.broker.ready)
    # when they are routed
    await service.broker.publish(publications.fetched((row, SUPPORT) for row in rows))

    async def states() -> list[tuple[str, int]]:
        async with database.statement() as connection:
            cursor = await connection.execute("select state, failures from inbound order by id")
            return [(str(state), int(failures)) for state, failures in await cursor.fetchall()]

    async def others_passed() -> bool:
        return (await states()).count(("routed", 0)) == 19

    await until(others_passed)
    # then the others pass, and this one waits without a failure of its own
    assert (await states())[7] == ("fetched", 0)

    async def isolated() -> bool:
        async with database.statement() as connection:
            cursor = await connection.execute("select id, crashes from poison where stage = 'router'")
            return await cursor.fetchall() == [(rows[7], 0)]

    await until(isolated)
    assert "corrupted data" in problems()[0]
    service.stopping.set()
    await running
    await service.broker.close()
    await service.database.close()


async def test_the_sender_isolates_a_mail_that_the_database_cannot_read(postgres: Postgres, database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        # given mails in the queue, one of which PostgreSQL cannot read
        await harness.accounts({SUPPORT: provider.port})
        await harness.rows("update external_accounts set enabled = false")
        ids = [await harness.submit("ann@customer.org", mail=mail(f"token-{number}")) for number in range(5)]
        damage(postgres, database_url, "token-2")
        # when they are relayed
        await harness.rows("update external_accounts set enabled = true")
        for number, id_ in enumerate(ids):
            if number != 2:
                await harness.until(id_, state="done")

        # then the others leave, and this one waits without a failure of its own
        async def waits() -> bool:
            return await harness.rows(
                """select s.id, s.state, s.failures, s.tries from submissions s
                   join poison p on p.stage = 'relay' and p.id = s.id"""
            ) == [(ids[2], "queued", 0, 0)]

        await until(waits)
        assert len(provider.taken) == 4
        assert "corrupted data" in problems()[0]
