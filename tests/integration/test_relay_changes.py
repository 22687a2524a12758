"""The SMTP servers of an account in a real database: changed by single fields as a command does, exported, applied."""

from __future__ import annotations

from typing import Any

import pytest

from services.admin.accounts import edit, export
from services.admin.accounts.apply import apply as apply_accounts
from services.admin.accounts.errors import AccountsError
from services.admin.cli.account_fields import parse_fields
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.model import External
from shared.provider.vault import Vault
from tests.company import KEY, SUPPORT, apply, everyone, external

ONE = {"host": "smtp.one.example", "port": 465, "tls": "implicit", "auth": True, "connections": 2}


async def change(database: Database, *words: str) -> list[str]:
    """Change fields of the account as ``external set`` does; the lines that it prints."""
    async with database.transaction() as connection:
        wanted = await edit.prepare(connection, "external", SUPPORT, parse_fields(list(words)), new=False)
        return (await apply_accounts(connection, wanted, Vault(KEY), HashingPool())).lines


async def stored(database: Database) -> External:
    return (await everyone(database))[0][SUPPORT]


async def test_servers_are_added_changed_and_removed_by_a_command(database: Database) -> None:
    await apply(database, {"external_accounts": [external(smtp=ONE)]})
    changed = f"external account {SUPPORT}: changed "
    # when a second server is added, with a login of its own
    second = ["smtp[1].host=smtp.two.example", "smtp[1].login=ours", "smtp[1].password=a secret"]
    assert await change(database, *second) == [f"{changed}smtp[1] none -> smtp.two.example:465/implicit"]
    account = await stored(database)
    own = account.relays[1].password
    assert own is not None and Vault(KEY).open(own) == "a secret"
    # then its other fields are changed without the password, and the port follows the encryption
    assert await change(database, "smtp[1].tls=starttls", "smtp[1].recipients_per_day=500") == [
        f"{changed}smtp[1] smtp.two.example:465/implicit -> smtp.two.example:587/starttls, "
        "smtp[1].recipients_per_day none -> 500"
    ]
    assert (await stored(database)).relays[1].password == own
    # and the exported file makes the same account, in another order too
    exported = export.external_fields(await stored(database))
    assert await apply(database, {"external_accounts": [exported]}) == []
    swapped = exported | {"smtp": exported["smtp"][::-1]}
    assert len(await apply(database, {"external_accounts": [swapped]})) == 1
    assert [relay.password for relay in (await stored(database)).relays] == [own, None]
    # when a server is removed, the other one stays
    await change(database, "smtp[0]=")
    assert [relay.server.host for relay in (await stored(database)).relays] == ["smtp.one.example"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smtp[1].host=smtp.two.example"], "password: has to be given again"),
        (["smtp[1].host=smtp.two.example", "smtp[1].login=ours"], "smtp[1].password: is missing, and none is stored"),
        (["smtp.password=hush-hush"], "smtp.password: login is missing beside it"),
        (["smtp[2].host=smtp.two.example"], "smtp[2]: the account has 1 SMTP servers; the next one is smtp[1]"),
        (["smtp.mails_per_minute=fast"], "smtp.mails_per_minute: 'fast' is not a number from 1 to 100000"),
    ],
)
async def test_a_command_with_a_mistake_changes_nothing(database: Database, words: list[str], said: str) -> None:
    await apply(database, {"external_accounts": [external(smtp=ONE)]})
    before: Any = await stored(database)
    with pytest.raises(AccountsError) as caught:
        await change(database, *words)
    assert said in str(caught.value)
    assert "hush-hush" not in str(caught.value)
    assert await stored(database) == before


async def test_what_a_server_learnt_ends_with_a_change(database: Database) -> None:
    await apply(database, {"external_accounts": [external(smtp=[ONE, ONE | {"port": 587, "tls": "starttls"}])]})
    async with database.transaction() as connection:
        await connection.execute(
            "update relays set failures = 3, paused_at = now(), connections_limit = 1, size = 5, full_until = now()"
        )
    await change(database, "smtp[1].connections=5")
    async with database.transaction() as connection:
        cursor = await connection.execute(
            "select distinct failures, paused_at, connections_limit, size, full_until from relays"
        )
        assert await cursor.fetchall() == [(0, None, None, None, None)]
