"""An external account that is added by itself holds its mail until the operator says that everybody is there."""

from __future__ import annotations

from typing import Any

import pytest

from services.admin.accounts import edit
from services.admin.accounts.apply import apply as apply_accounts
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.start import start
from services.admin.mail import operations
from services.admin.monitoring import problems
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.errors import Permanent
from shared.provider.vault import Vault
from tests.company import KEY, SUPPORT, apply, arrive, everyone, external, local, mailbox_of

ALEX, JIM = "alex@local.com", "jim@local.com"
OLD = b"From: anna@x.example\r\nTo: support@company.com\r\nSubject: old\r\n\r\nHello\r\n"


async def add(database: Database, **fields: Any) -> list[str]:
    """Add the account by itself, as ``external add``; what is printed."""
    entry = {name: value for name, value in (external() | fields).items() if value is not None}
    async with database.transaction() as connection:
        wanted = await edit.prepare(connection, "external", SUPPORT, entry, new=True)
        return (await apply_accounts(connection, wanted, Vault(KEY), HashingPool())).lines


async def begin(database: Database, address: str = SUPPORT) -> list[str]:
    async with database.transaction() as connection:
        return await start(connection, address, "the test")


async def fetch(database: Database, count: int = 1) -> list[int]:
    """Mails as the fetcher stores them, seen by the router."""
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [OLD.replace(b"old", b"old %d" % n) for n in range(count)])
    await RouterWorker(database, 5).handle(rows)
    return rows


async def deliver(database: Database, rows: list[int]) -> None:
    await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(rows)


async def count(database: Database, state: str) -> int:
    async with database.transaction() as connection:
        cursor = await connection.execute("select count(*) from inbound where state = %s", (state,))
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def test_mail_waits_for_the_start_before_everybody_is_there(database: Database) -> None:
    # given an account that is added by itself, with old mail
    assert await add(database) == [f"external account {SUPPORT}: added; its mail is on hold until it is started"]
    rows = await fetch(database, 3)
    # when people are added one after the other, and one is changed
    for names in (("Alex",), ("Alex", "Jim")):
        await apply(database, {"local_accounts": [local(name) for name in names]})
        assert await RouterWorker(database, 5).sweep() == []
    await apply(database, {"local_accounts": [local("Alex", enabled=False)]})
    await apply(database, {"local_accounts": [local("Alex")]})
    # then nobody has it
    assert await count(database, "held") == 3
    # until the start, which gives it to all
    assert await begin(database) == [
        f"external account {SUPPORT}: started for 2 people; 3 mails on hold are routed now"
    ]
    await deliver(database, rows)
    assert [len(await mailbox_of(database, who)) for who in (ALEX, JIM)] == [3, 3]
    # and later mail waits for nothing
    await deliver(database, await fetch(database))
    assert len(await mailbox_of(database, JIM)) == 4
    assert await begin(database) == []


async def test_a_router_that_did_not_know_of_the_start_delays_its_mail_only(database: Database) -> None:
    await add(database)
    await apply(database, {"local_accounts": [local("Alex")]})
    rows = await fetch(database)
    await begin(database)
    async with database.transaction() as connection:  # written by a router that had read the accounts before
        await connection.execute("update inbound set state = 'held'")
    assert len(await RouterWorker(database, 5).sweep()) == 1
    await deliver(database, rows)
    assert len(await mailbox_of(database, ALEX)) == 1


async def test_an_account_that_nobody_shares_is_not_started(database: Database) -> None:
    await add(database)
    with pytest.raises(Permanent, match="no enabled user shares it yet"):
        await begin(database)
    await apply(database, {"local_accounts": [local("Alex", enabled=False)]})
    with pytest.raises(Permanent, match="no enabled user shares it yet"):
        await begin(database)
    with pytest.raises(Permanent, match="there is no such external account"):
        await begin(database, "nobody@company.com")
    assert (await everyone(database))[0][SUPPORT].hold


async def test_a_new_account_has_to_say_what_happens_to_existing_mail(database: Database) -> None:
    with pytest.raises(AccountsError, match="history: is missing: all delivers the mail"):
        await add(database, history=None)
    assert await everyone(database) == ({}, {})
    await add(database, history="from_now")
    assert (await everyone(database))[0][SUPPORT].history == "from_now"


async def test_a_file_starts_at_once_and_changes_no_hold_that_it_does_not_name(database: Database) -> None:
    company = {"external_accounts": [external()], "local_accounts": [local("Alex")]}
    await apply(database, company)
    assert not (await everyone(database))[0][SUPPORT].hold
    await apply(database, {}, prune=True)
    # given an account on hold, which is removed and added again by a file that does not name the hold
    await apply(database, {"external_accounts": [external(hold=True)]})
    await fetch(database)
    await apply(database, {}, prune=True)
    await apply(database, company)
    assert (await everyone(database))[0][SUPPORT].hold and await count(database, "held") == 1
    # when a file says that it is over
    lines = await apply(database, {"external_accounts": [external(hold=False)]})
    assert lines == [
        f"external account {SUPPORT}: changed hold true -> false",
        f"external account {SUPPORT}: started for 1 person; 1 mail on hold is routed now",
    ]


async def test_the_field_hold_starts_no_account_that_nobody_shares(database: Database) -> None:
    # given an account on hold with mail, which nobody shares, or only a person who is disabled
    await add(database)
    rows = await fetch(database, 2)
    over = {"external_accounts": [external(hold=False)]}
    for people in ([], [local("Alex", enabled=False)]):
        await apply(database, {"local_accounts": people})
        # when the field says that the hold is over, then it is refused with field and value, and nothing is changed
        with pytest.raises(AccountsError) as refused:
            await apply(database, over | {"local_accounts": people})
        words = "hold: false: no enabled user shares it yet; add the people first, then start it"
        assert str(refused.value).endswith(f"external account {SUPPORT}: {words}")
        assert (await everyone(database))[0][SUPPORT].hold and await count(database, "held") == 2
    # and the same file is accepted once it names the people, and gives the mail to all of them
    lines = await apply(database, over | {"local_accounts": [local("Alex"), local("Jim")]})
    assert f"external account {SUPPORT}: started for 2 people; 2 mails on hold are routed now" in lines
    await deliver(database, rows)
    assert [len(await mailbox_of(database, who)) for who in (ALEX, JIM)] == [2, 2]


async def test_an_account_that_is_added_again_without_hold_needs_people_too(database: Database) -> None:
    # given an account on hold that was removed with mail
    await add(database)
    await fetch(database)
    await apply(database, {}, prune=True)
    # when it is added again by a file that ends the hold, and nobody shares it
    with pytest.raises(AccountsError, match="hold: false: no enabled user shares it yet"):
        await apply(database, {"external_accounts": [external(hold=False)]})
    assert await count(database, "held") == 1


async def test_a_person_who_is_brought_back_starts_nothing(database: Database) -> None:
    await add(database)
    await apply(database, {"local_accounts": [local("Alex")]})
    await fetch(database)
    async with database.transaction() as connection:
        await edit.remove(connection, "local", ALEX)
        await operations.restore_account(connection, ALEX)
    assert await count(database, "held") == 1


async def test_mail_that_waits_for_a_day_is_a_problem_and_before_it_is_none(database: Database) -> None:
    async def found() -> list[str]:
        async with database.snapshot() as connection:
            facts = await problems.load_facts(connection)
        assert facts.held == 0  # nobody has to be enabled for it
        return [problem.text for problem in problems.find_problems(facts) if problem.kind in ("start", "held")]

    await add(database)
    await fetch(database, 2)
    assert await found() == []
    async with database.transaction() as connection:
        await connection.execute("update inbound set state_at = now() - interval '25 hours'")
    assert await found() == [f"{SUPPORT}: 2 mails wait for a start, the oldest for 1 d"]
    await apply(database, {"local_accounts": [local("Alex")]})
    await begin(database)
    assert await found() == []
