"""The commands that change mailboxes tell open mail clients of it, on a real RabbitMQ."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import CliRunner

from services.admin.cli.app import app
from services.admin.context import AdminContext
from shared.amqp.broker import Broker
from shared.amqp.payloads import ChangedItem, read_payload
from shared.amqp.topology import CHANGED
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.settings import Settings
from shared.store import folder_admin, folder_mails
from tests.company import COMPANY, KEY, apply, everyone
from tests.integration.test_operations import deliver, mail
from tests.polling import until


async def test_commands_that_change_mailboxes_announce_it(
    database_url: str, database: Database, broker_url: str
) -> None:
    await apply(database, COMPANY)
    [id_] = await deliver(database, mail())
    _, people = await everyone(database)
    alex, jim = people["Alex"], people["Jim"]
    async with database.transaction() as connection:
        [entry] = await folder_admin.list_mails(connection, alex.id)
        await folder_mails.tombstone_mails(connection, alex.id, [entry.uid])
    heard: list[bytes] = []
    broker = Broker(broker_url, "test")
    broker.listen(f"{CHANGED}.#", heard.append)
    await broker.open()
    runner = CliRunner(
        env={"MAILGROUP_DATABASE_URL": database_url, "MAILGROUP_SECRET_KEY": KEY, "MAILGROUP_BROKER_URL": broker_url}
    )
    try:
        await broker.wait_until_ready(60)
        for words, changed in (
            (("undelete", alex.address, str(id_)), {alex.id}),
            (("give", str(id_), "--to", alex.address, "--away-from", jim.address), {alex.id, jim.id}),
            (("local", "hand-over", alex.address, "--to", jim.address), {jim.id}),
            (("local", "retire", alex.address, "--mailbox-to", jim.address, "--delegate", jim.address), {jim.id}),
        ):
            heard.clear()
            done = await asyncio.to_thread(runner.invoke, app, words)
            assert done.exit_code == 0, done.output
            await until(lambda: bool(heard), 60)
            assert set(read_payload(ChangedItem, heard[0]).ids) == changed, words
    finally:
        await broker.close()


@pytest.mark.parametrize("broker_url", ["amqp://127.0.0.1:1/", None])
async def test_without_a_broker_a_change_is_made_all_the_same(
    database_url: str, database: Database, broker_url: str | None
) -> None:
    await apply(database, COMPANY)
    settings = Settings(database_url=database_url, broker_url=broker_url, secret_key=KEY)
    await AdminContext(settings, database, HashingPool()).announce_changes(["alex@local.com"])
    await AdminContext(settings, database, HashingPool()).announce_changes(["nobody@local.com"])
