"""A changed address in a real database: what belongs to the account stays with it."""

from __future__ import annotations

import pytest

from services.admin.accounts import edit
from services.admin.accounts.apply import apply as apply_accounts
from services.admin.accounts.errors import AccountsError, Kind
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.provider.vault import Vault
from shared.store import accounts
from tests.company import COMPANY, KEY, SUPPORT, apply, arrive, everyone, external, local

HELP = "help@company.com"


async def change(database: Database, kind: Kind, account: str, **fields: object) -> list[str]:
    """Change single fields, as commands do."""
    async with database.transaction() as connection:
        wanted = await edit.prepare(connection, kind, account, fields, new=False)
        return (await apply_accounts(connection, wanted, Vault(KEY), HashingPool())).lines


async def test_ledger_people_and_password_stay_with_a_renamed_account(database: Database) -> None:
    await apply(database, COMPANY)
    before, people = await everyone(database)
    [mail] = await arrive(database, before[SUPPORT].id, [b"Subject: x\r\n\r\n"])
    # when
    [line] = await change(database, "external", SUPPORT, address=HELP, aliases=[SUPPORT])
    # then
    assert line.startswith(f"external account {HELP}: changed address {SUPPORT} -> {HELP}")
    after, now = await everyone(database)
    renamed = after[HELP]
    assert (renamed.id, renamed.password, renamed.login) == (before[SUPPORT].id, before[SUPPORT].password, SUPPORT)
    assert renamed.aliases == (SUPPORT,) and SUPPORT not in after
    assert now["Alex"].external_id == people["Alex"].external_id
    async with database.transaction() as connection:
        cursor = await connection.execute("select inbound_id from uidl_ledger where external_id = %s", (renamed.id,))
        assert await cursor.fetchall() == [(mail,)]
    # and the former address is an address of this account: nobody else may have it
    with pytest.raises(AccountsError, match="is an address of external account"):
        await apply(database, {"external_accounts": [external(SUPPORT)]})


async def test_a_login_is_changed_with_the_address_and_history_is_not_repeated(database: Database) -> None:
    await apply(database, {"external_accounts": [external(history="from_now")]})
    async with database.transaction() as connection:
        await connection.execute("update polls set first_contact_at = '2026-01-01'")
    await change(database, "external", SUPPORT, address=HELP, login=HELP)
    async with database.transaction() as connection:
        cursor = await connection.execute("select first_contact_at = '2026-01-01' from polls")
        assert await cursor.fetchall() == [(True,)]


async def test_a_renamed_person_keeps_mailbox_password_and_login(database: Database) -> None:
    await apply(database, COMPANY)
    _, people = await everyone(database)
    # when
    await change(database, "local", "alex@local.com", address="al@local.com", addresses=["alex@local.com"])
    # then
    async with database.transaction() as connection:
        found = await accounts.locals_by_login(connection, ["al@local.com", "ALEX@local.com"])
    assert {person.id for person in found.values()} == {people["Alex"].id}
    assert {person.password_hash for person in found.values()} == {people["Alex"].password_hash}


async def test_tokens_of_a_renamed_account_are_still_used(database: Database) -> None:
    application = {"issuer": "google", "client_id": "id", "client_secret": "secret"}
    owner = {key: value for key, value in external(oauth=application).items() if key != "password"}
    user = {
        key: value for key, value in external("b@company.com", oauth={"same_as": SUPPORT}).items() if key != "password"
    }
    await apply(database, {"external_accounts": [owner, user]})
    await change(database, "external", SUPPORT, address=HELP)
    externals, _ = await everyone(database)
    oauth = externals["b@company.com"].oauth
    assert oauth is not None and oauth.same_as == HELP
    assert await apply(database, {"external_accounts": [user | {"oauth": {"same_as": HELP}}]}) == []


async def test_an_address_that_another_account_has_is_refused(database: Database) -> None:
    await apply(database, COMPANY)
    before = await everyone(database)
    with pytest.raises(AccountsError, match="two accounts cannot become one"):
        await change(database, "external", SUPPORT, address="sales@company.com")
    with pytest.raises(AccountsError, match="two accounts cannot become one"):
        await change(database, "local", "alex@local.com", address="jim@local.com")
    assert await everyone(database) == before


async def test_a_file_with_a_former_address_is_applied_twice(database: Database) -> None:
    await apply(database, COMPANY)
    document = {
        "external_accounts": [external(HELP, renamed_from=SUPPORT, login=HELP)],
        "local_accounts": [local("Alex", HELP)],
    }
    assert len(await apply(database, document)) == 1  # Alex shares the same account as before
    assert await apply(database, document) == []
