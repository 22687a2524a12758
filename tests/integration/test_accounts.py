"""Accounts in a real database: apply is idempotent and atomic, and refuses invalid accounts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from services.admin.access import audit
from services.admin.accounts import edit
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.export import external_fields, local_fields, version_of
from services.admin.mail import operations
from shared.db.database import Database
from shared.errors import Temporary
from shared.provider.credentials import Grant
from shared.provider.vault import Vault
from shared.store import account_changes, accounts, folder_mails
from tests.company import COMPANY, KEY, SALES, SUPPORT, apply, arrive, everyone, external, local


async def refused(database: Database, document: dict[str, Any], prune: bool = False) -> str:
    before = await everyone(database)
    with pytest.raises(AccountsError) as caught:
        await apply(database, document, prune)
    assert await everyone(database) == before  # nothing is half done
    return str(caught.value)


async def test_applying_twice_changes_nothing_the_second_time(database: Database) -> None:
    assert len(await apply(database, COMPANY)) == 6
    assert await apply(database, COMPANY) == []


@pytest.mark.parametrize("saved", ["Alex", "Jim"])
async def test_of_two_with_one_name_the_saved_one_is_at_fault(database: Database, saved: str) -> None:
    # given Alex and Jim, when one of them is saved with the other one's name, whichever is first in the alphabet
    await apply(database, COMPANY)
    [other] = {"Alex", "Jim"} - {saved}
    for fields, field in (({"user_name": other}, "user_name"), ({"aliases": [other]}, "aliases")):
        said = await refused(database, {"local_accounts": [local(saved, **fields)]})
        # then that one is blamed, and the other one is named as the owner
        assert said.startswith(
            f"local account {saved.lower()}@local.com: {field}: '{other}': {other.lower()}@local.com"
        )
    # and so it is with addresses
    document = {"local_accounts": [local(saved, addresses=[SUPPORT])]}
    assert (await refused(database, document)).startswith(f"local account {saved.lower()}@local.com: address")
    document = {"external_accounts": [external(aliases=[f"{saved.lower()}@local.com"])]}
    assert (await refused(database, document)).startswith(f"external account {SUPPORT}: aliases")


async def test_a_person_who_moves_away_from_those_they_stand_in_for_is_at_fault(database: Database) -> None:
    await apply(database, COMPANY)
    await apply(database, {"local_accounts": [local("Alex", delegate="jim@local.com")]})
    said = await refused(database, {"local_accounts": [local("Jim", SALES)]})
    assert said.startswith("local account jim@local.com: external: alex@local.com has this person as delegate")


async def test_a_delegate_who_is_disabled_is_refused_unless_named_before(database: Database) -> None:
    # given
    await apply(database, COMPANY)
    away = local("Jim", enabled=False)
    # when Alex names Jim, who is disabled before or by the same file
    for people in ([away, local("Alex", delegate="jim@local.com")], [local("Alex", delegate="JIM@local.com"), away]):
        said = await refused(database, {"local_accounts": people})
        assert "local account alex@local.com: delegate: " in said and "is disabled and gets no mail" in said
    # then after Jim is named and disabled, in this order, Alex can still be saved, and the loss is reported
    await apply(database, {"local_accounts": [local("Alex", enabled=False, delegate="jim@local.com")]})
    lines = await apply(database, {"local_accounts": [away]})
    assert lines[-1].startswith("local account alex@local.com: the delegate jim@local.com is disabled: mail with")
    assert lines[-1].endswith("stays on hold")
    renamed = local("Alex", user_name="Alexa", enabled=False, delegate="jim@local.com")
    assert len(await apply(database, {"local_accounts": [renamed]})) == 1


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_delegate_who_is_lost_later_is_reported_until_it_is_settled(database: Database, enabled: bool) -> None:
    # given Alex with the delegate Jim
    await apply(database, COMPANY)
    await apply(database, {"local_accounts": [local("Alex", enabled=enabled, delegate="jim@local.com")]})

    async def lost() -> list[tuple[str, bool, str, int]]:
        async with database.transaction() as connection:
            found = await accounts.load_absent_delegates(connection)
        return [(each.person, each.away, each.why, each.others) for each in found]

    assert await lost() == []
    # when Jim is removed
    async with database.transaction() as connection:
        await edit.remove(connection, "local", "jim@local.com")
    # then that is known, and no other change of accounts is refused for it
    assert await lost() == [("alex@local.com", not enabled, "is removed", int(enabled))]
    await apply(database, {"external_accounts": [external(poll_seconds=30)]})
    # and when Jim is back, or Alex has no delegate, all is well
    async with database.transaction() as connection:
        await operations.restore_account(connection, "jim@local.com")
    assert await lost() == []
    await apply(database, {"local_accounts": [local("Jim", enabled=False)]})
    assert await lost() == [("alex@local.com", not enabled, "is disabled", int(enabled))]
    await apply(database, {"local_accounts": [local("Alex", enabled=enabled)]})
    assert await lost() == []


async def test_a_restored_delegate_is_none_of_people_who_moved(database: Database) -> None:
    # given Alex, whose delegate Jim is removed, and who shares another account since
    await apply(database, COMPANY)
    await apply(database, {"local_accounts": [local("Alex", delegate="jim@local.com")]})
    async with database.transaction() as connection:
        await edit.remove(connection, "local", "jim@local.com")
        await connection.execute(
            """update local_accounts set external_id = (select id from external_accounts where address = %s)
               where address = 'alex@local.com'""",
            (SALES,),
        )
        # when
        await operations.restore_account(connection, "jim@local.com")
    # then
    _, people = await everyone(database)
    assert people["Alex"].delegate_id is None


async def test_an_exported_file_makes_the_same_accounts(database: Database) -> None:
    await apply(
        database,
        COMPANY
        | {
            "local_accounts": [
                local("Alex", aliases=["Sascha"], addresses=["a@local.com"], delegate="jim@local.com"),
                local("Jim"),
            ]
        },
    )
    externals, people = await everyone(database)
    document = {
        "external_accounts": [external_fields(account) for account in externals.values()],
        "local_accounts": [
            local_fields(person, [*externals.values()], [*people.values()]) for person in people.values()
        ],
    }
    assert "password" not in str(document)
    assert await apply(database, document) == []


async def test_a_password_left_out_keeps_the_stored_one_and_is_required_at_first(database: Database) -> None:
    nameless = external()
    del nameless["password"]
    assert "password: is missing" in await refused(database, {"external_accounts": [nameless]})
    await apply(database, {"external_accounts": [external()]})
    before = (await everyone(database))[0][SUPPORT].password
    await apply(database, {"external_accounts": [nameless | {"poll_seconds": 7}]})
    after = (await everyone(database))[0][SUPPORT]
    assert (after.password, after.poll_seconds) == (before, 7)


@pytest.mark.parametrize("direction", ["pop3", "smtp"])
async def test_another_host_gets_no_stored_password(database: Database, direction: str) -> None:
    # given an account, and a file without its password
    server = {"host": "mail.company.com", "port": 995}
    await apply(database, {"external_accounts": [external(pop3=server, smtp=server)]})
    nameless = external(pop3=server, smtp=server)
    del nameless["password"]
    # when one of its servers is another host, the password has to be given again
    moved = nameless | {direction: server | {"host": "mail.attacker.example"}}
    said = await refused(database, {"external_accounts": [moved]})
    assert said == (
        f"external account {SUPPORT}: password: has to be given again, because the stored one is for another server "
        f"({direction}.host mail.company.com -> mail.attacker.example)"
    )
    assert len(await apply(database, {"external_accounts": [moved | {"password": "secret"}]})) == 1
    # but not for another port of the same host, however it is written
    same = nameless | {direction: {"host": "Mail.Attacker.Example.", "port": 996}}
    assert len(await apply(database, {"external_accounts": [same]})) == 1


async def test_another_host_gets_no_access_token(database: Database) -> None:
    # given an account that a person has authorized
    server = {"host": "mail.company.com", "port": 995}
    tokens = external(pop3=server, smtp=server, oauth={"issuer": "google", "client_id": "us", "client_secret": "s"})
    del tokens["password"]
    await apply(database, {"external_accounts": [tokens]})
    stored = (await everyone(database))[0][SUPPORT]
    sealed = replace(Grant.open(Vault(KEY), stored.password), refresh_token="granted").seal(Vault(KEY))
    async with database.transaction() as connection:
        await account_changes.save_password(connection, stored.id, sealed)
    await apply(database, {"external_accounts": [tokens | {"poll_seconds": 7}]})
    assert Grant.open(Vault(KEY), (await everyone(database))[0][SUPPORT].password).refresh_token == "granted"
    # when a server is another host, the grant is gone, and the client's secret stays for the token endpoint
    await apply(database, {"external_accounts": [tokens | {"smtp": server | {"host": "mail.attacker.example"}}]})
    grant = Grant.open(Vault(KEY), (await everyone(database))[0][SUPPORT].password)
    assert (grant.refresh_token, grant.client_secret) == ("", "s")
    # and another token endpoint gets neither
    issuer = {"token_url": "https://login.attacker.example/token", "scope": "mail"}
    await apply(database, {"external_accounts": [tokens | {"oauth": {"issuer": issuer, "client_id": "us"}}]})
    assert Grant.open(Vault(KEY), (await everyone(database))[0][SUPPORT].password) == Grant()


@pytest.mark.parametrize(
    ("people", "words"),
    [
        ([local("Alex"), local("Jim", user_name="ALEX")], ["'ALEX'", "alex@local.com has this name in the same share"]),
        ([local("Alex"), local("Jim", aliases=[" \u200balex "])], ["has this name in the same share"]),
        ([local("Alex", address="alex@gmail.com")], ["gmail.com is a public mail provider's domain"]),
        ([local("Alex", address=SUPPORT)], ["is an address of external account"]),
        (
            [local("Alex", address="a@xn--bcher-kva.example"), local("Jim", addresses=["a@bücher.example"])],
            ["is an address of local account a@xn--bcher-kva.example"],
        ),
        (
            [local("Alex"), local("Jim", addresses=["ALEX@local.com"])],
            ["is an address of local account alex@local.com"],
        ),
        (
            [local("Alex", external="nobody@company.com")],
            ["external: 'nobody@company.com'", "there is no such", SUPPORT],
        ),
        (
            [local("Alex", delegate="nobody@local.com")],
            ["delegate: 'nobody@local.com'", "there is no such local account"],
        ),
        ([local("Alex", delegate="alex@local.com")], ["delegate: has to be another local account"]),
        ([local("Alex", delegate="kim@local.com"), local("Kim", "sales@company.com")], ["delegate: has to be another"]),
        ([local("Alex"), local("Alex")], ["is given twice"]),
    ],
)
async def test_a_file_with_a_conflict_is_refused_as_a_whole(
    database: Database, people: list[dict[str, Any]], words: list[str]
) -> None:
    said = await refused(database, COMPANY | {"local_accounts": people})
    assert all(word in said for word in words), said


async def test_the_same_name_in_two_shares_is_fine(database: Database) -> None:
    await apply(
        database,
        COMPANY | {"local_accounts": [local("Alex"), local("Alex", "sales@company.com", address="alex2@local.com")]},
    )


async def test_prune_removes_what_the_file_omits_adding_it_again_makes_it_new(
    database: Database,
) -> None:
    await apply(database, COMPANY)
    _, before = await everyone(database)
    lines = await apply(database, COMPANY | {"local_accounts": COMPANY["local_accounts"][1:]}, prune=True)
    assert lines == [
        "local account alex@local.com: removed; its mail is kept for the retention time ('local restore' "
        "brings it back)"
    ]
    await apply(database, COMPANY)
    _, after = await everyone(database)
    assert after["Alex"].id != before["Alex"].id


async def test_an_external_account_that_people_share_cannot_go_alone(database: Database) -> None:
    await apply(database, COMPANY)
    said = await refused(
        database,
        {"external_accounts": [external("sales@company.com")], "local_accounts": COMPANY["local_accounts"]},
        prune=True,
    )
    assert "there is no such external account" in said


async def test_every_change_of_an_account_makes_another_version(database: Database) -> None:
    async def version() -> str:
        async with database.statement() as connection:
            return await accounts.load_version(connection)

    await apply(database, COMPANY)
    seen = [await version(), await version()]
    assert seen[0] == seen[1]
    for statement in (
        "update local_accounts set enabled = false where address = 'alex@local.com'",
        "update external_accounts set removed_at = now()",
        "update local_accounts set delegate_id = null where false",
    ):
        async with database.transaction() as connection:
            await connection.execute(statement.encode())
            assert await version() == seen[-1]  # no other transaction sees it before its commit
        seen.append(await version())
    assert len(set(seen)) == 4


@pytest.mark.parametrize("address", ["alex@local.com", "ALEX@Local.com", "A.smith@LOCAL.com"])
async def test_people_log_in_with_any_of_their_addresses(database: Database, address: str) -> None:
    await apply(database, COMPANY | {"local_accounts": [local("Alex", addresses=["a.Smith@local.com"]), local("Jim")]})

    async with database.statement() as connection:
        found = await accounts.local_by_login(connection, address)

    assert found is not None and found.user_name == "Alex"


async def test_a_renamed_person_keeps_the_old_name_until_another_has_it(database: Database) -> None:
    await apply(database, COMPANY | {"local_accounts": [local("Alex"), local("Jim")]})
    renamed = [local("Alex", user_name="Sascha"), local("Jim")]
    await apply(database, COMPANY | {"local_accounts": renamed})
    _, people = await everyone(database)
    assert people["Sascha"].names == ("Sascha", "Alex")
    assert await apply(database, COMPANY | {"local_accounts": renamed}) == []  # and it stays so
    await apply(database, COMPANY | {"local_accounts": [*renamed, local("Alex", address="alex2@local.com")]})
    _, people = await everyone(database)
    assert (people["Sascha"].names, people["Alex"].names) == (("Sascha",), ("Alex",))
    await apply(
        database,
        COMPANY | {"local_accounts": [local("Alex", user_name="Sascha"), local("Jim", user_name="James")]},
        prune=True,
    )
    await apply(database, COMPANY | {"local_accounts": [local("Alex", user_name="Sascha"), local("Jim")]})
    assert (await everyone(database))[1]["Jim"].names == ("Jim", "James")  # back again: no name twice


async def test_an_external_account_added_again_continues_where_it_was(database: Database) -> None:
    await apply(database, COMPANY)
    before, _ = await everyone(database)
    await apply(database, {}, prune=True)
    assert await everyone(database) == ({}, {})
    assert "password: is missing" in await refused(
        database, {"external_accounts": [{name: value for name, value in external().items() if name != "password"}]}
    )
    await apply(database, {"external_accounts": [external(poll_seconds=9)]})
    after, _ = await everyone(database)
    assert (after[SUPPORT].id, after[SUPPORT].poll_seconds) == (before[SUPPORT].id, 9)


@pytest.mark.parametrize("how", ["disable", "remove", "prune"])
async def test_who_leaves_waits_for_a_delivery_and_a_delivery_for_them(database: Database, how: str) -> None:
    # given a delivery to Alex and Jim that is not committed yet
    await apply(database, COMPANY)
    externals, people = await everyone(database)
    [inbound_id] = await arrive(database, externals[SUPPORT].id, [b"Subject: x\r\n\r\n"])
    blob_id = await scalar(database, "select blob_id from inbound")
    copy = folder_mails.Copy([people["Alex"].id, people["Jim"].id], inbound_id, blob_id, 15)

    async def leave() -> None:
        if how == "remove":
            async with database.transaction() as connection:
                await edit.remove(connection, "local", "alex@local.com")
            return
        staying = [local(name, SALES if name in ("Kim", "Tom") else SUPPORT) for name in ("Jim", "Kim", "Tom")]
        alex = [local("Alex", enabled=False)] if how == "disable" else []
        await apply(database, COMPANY | {"local_accounts": [*alex, *staying]}, prune=True)

    async with database.transaction() as connection:
        await folder_mails.deliver_copies(connection, [copy])
        leaving = asyncio.create_task(leave())
        await asyncio.sleep(0.5)
        # then Alex leaves only after it
        assert not leaving.done()
        assert await scalar(database, "select enabled and removed_at is null from local_accounts order by id limit 1")
    await leaving
    assert not await scalar(database, "select enabled and removed_at is null from local_accounts order by id limit 1")
    # and the other way round: a delivery waits until it is known whether Alex stays
    async with database.transaction() as connection:
        await account_changes.lock_folders(connection, [people["Alex"].id])
        with pytest.raises(Temporary):
            async with database.transaction(0.5) as other:
                await folder_mails.deliver_copies(other, [copy])


async def scalar(database: Database, query: str) -> Any:
    async with database.transaction() as connection:
        row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


async def test_an_account_that_was_removed_meanwhile_is_not_saved(database: Database) -> None:
    await apply(database, COMPANY)
    version = version_of((await everyone(database))[1]["Alex"])
    async with database.transaction() as connection:
        await edit.require_version(connection, "local", "alex@local.com", version)
        await edit.remove(connection, "local", "alex@local.com")
        await audit.record_change(connection, "Eve", "removed local account", "alex@local.com")
    async with database.transaction() as connection:
        with pytest.raises(edit.ChangedMeanwhile, match=r"was removed meanwhile.* Eve: removed local account"):
            await edit.require_version(connection, "local", "alex@local.com", version)
