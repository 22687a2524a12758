"""services/admin/monitoring/reconciliation.py: the counts agree, and differ when a mail is removed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.admin.cli.app import app
from services.admin.monitoring import reconciliation
from services.admin.monitoring.reconciliation import AccountBooks
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.db.database import Database
from shared.errors import MAX_FAILURES
from shared.store import folder_admin, folder_mails, inbound, inbound_admin
from shared.store.inbound_admin import InboundCounts
from tests import servers
from tests.company import COMPANY, SALES, SUPPORT, apply, arrive, everyone


def mail(number: int = 0) -> bytes:
    return f"From: anna@x.example\r\nTo: {SUPPORT}\r\nSubject: {number}\r\n\r\nHello\r\n".encode()


async def delivered(database: Database, count: int) -> list[int]:
    """Deliver mails of support@company.com to Alex and Jim; their ids."""
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(n) for n in range(count)])
    await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(rows)
    return rows


async def support(database: Database) -> AccountBooks:
    """The counts of support@company.com; those of the other account agree."""
    async with database.snapshot() as connection:
        sales, found = await reconciliation.load_accounts(connection, thoroughly=True)
    assert (sales.address, reconciliation.describe_difference(sales)) == (SALES, None)
    return found


async def change(database: Database, sql: str, *parameters: object) -> None:
    """Change the database without the system."""
    async with database.transaction() as connection:
        await connection.execute(sql.encode(), parameters)


async def test_the_counts_balance_in_every_state_of_a_mail(database: Database) -> None:
    await delivered(database, 2)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(n) for n in range(6)])
    await RouterWorker(database, 5).handle(rows[:2])
    async with database.transaction() as connection:
        for row in rows[2:4]:
            for _ in range(MAX_FAILURES):
                await inbound.count_failure(connection, row, "router", "boom")
        await inbound_admin.discard_inbound(connection, rows[3:4], "spam")
    await change(database, "update inbound set state = 'held' where id = %s", rows[4])
    found = await support(database)
    assert (found.fetched, found.books) == (8, InboundCounts(delivered=3, held=1, parked=1, in_flight=3))
    assert (found.difference, reconciliation.describe_difference(found), reconciliation.describe_late(found)) == (
        0,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("delete from inbound where id = (select max(id) from inbound)", "3 mails were fetched, 2 were accounted for"),
        (
            "delete from folder_mails where mail_id = (select max(id) from inbound)",
            "1 of them count as delivered and are",
        ),
        ("delete from uidl_ledger", None),  # the ledger of UIDLs is purged in time
    ],
)
async def test_a_missing_row_shows_as_a_difference(database: Database, loss: str, said: str | None) -> None:
    await delivered(database, 3)
    assert (await support(database)).difference == 0
    if loss.startswith("delete from inbound"):
        await change(database, "delete from folder_mails where mail_id = (select max(id) from inbound)")
    await change(database, loss)
    found = await support(database)
    assert found.difference == reconciliation.total_difference([found]) == (1 if said else 0)
    assert (said or "") in (reconciliation.describe_difference(found) or "")


async def test_a_copy_deleted_by_one_of_two_people_is_no_difference(database: Database) -> None:
    await delivered(database, 1)
    _, people = await everyone(database)
    async with database.transaction() as connection:
        for name in ("Alex", "Jim"):
            [entry] = await folder_admin.list_mails(connection, people[name].id)
            await folder_mails.tombstone_mails(connection, people[name].id, [entry.uid])
    assert (await support(database)).difference == 0
    await change(
        database,
        "delete from folder_mails where folder_id in (select id from folders where local_id = %s)",
        people["Alex"].id,
    )
    assert (await support(database)).difference == 0


def test_status_reports_a_difference(database_url: str, tmp_path: Path) -> None:
    async def lose() -> None:
        async with servers.opened(database_url) as database:
            await delivered(database, 2)
            await change(database, "delete from folder_mails where mail_id = (select max(id) from inbound)")

    asyncio.run(lose())
    where = {"MAILGROUP_DATABASE_URL": database_url, "MAILGROUP_DATA": str(tmp_path)}  # no broker to wait for
    done = CliRunner(env=where).invoke(app, ["status", "--json"])
    found = json.loads(done.stdout)
    assert found["books"][SUPPORT] == {
        "fetched": 2,
        "delivered": 1,
        "held": 0,
        "parked": 0,
        "own_copies": 0,
        "in_flight": 0,
    }
    assert done.exit_code == 1 and any("the counts do not add up" in problem for problem in found["problems"])


async def test_mail_in_flight_for_over_ten_minutes_is_reported(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    await arrive(database, externals[SUPPORT].id, [mail()])
    assert reconciliation.describe_late(await support(database)) is None
    await change(database, "update inbound set state_at = now() - interval '11 minutes'")
    assert reconciliation.describe_late(await support(database)) == "1 mail in flight, the oldest for 11 minutes"
