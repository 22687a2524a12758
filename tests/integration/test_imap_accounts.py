"""External accounts that are fetched by IMAP, in a real database: stored, exported, changed from POP3 and back."""

from __future__ import annotations

from typing import Any

import pytest

from services.admin.accounts import edit, export
from services.admin.accounts.apply import apply as apply_accounts
from services.admin.accounts.errors import AccountsError
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.model import ImapServer, Server
from shared.provider.vault import Vault
from tests.company import KEY, SUPPORT, apply, arrive, by_imap, everyone, external

IMAP = {"host": "imap.company.com", "port": 993, "tls": "implicit", "folders": ["INBOX", "Aufträge/Größe"]}
POP3 = {"host": "pop3.company.com", "port": 995, "tls": "implicit"}


async def change(database: Database, **fields: Any) -> list[str]:
    """Change fields of the account, as ``external set`` does; the lines that it prints."""
    async with database.transaction() as connection:
        wanted = await edit.prepare(connection, "external", SUPPORT, fields, new=False)
        return (await apply_accounts(connection, wanted, Vault(KEY), HashingPool())).lines


async def stored(database: Database) -> Any:
    return (await everyone(database))[0][SUPPORT]


async def test_an_account_is_stored_and_exported_with_its_folders(database: Database) -> None:
    entry = by_imap(IMAP | {"tls_fingerprint": "AB" * 32}, answer_notes=True)
    assert len(await apply(database, {"external_accounts": [entry]})) == 1
    account = await stored(database)
    assert account.imap == ImapServer("imap.company.com", 993, "implicit", "ab" * 32, ("INBOX", "Aufträge/Größe"))
    assert (account.pop3, account.incoming, account.protocol) == (None, account.imap, "imap")
    # and the exported file makes the same account
    exported = export.external_fields(account)
    assert exported["imap"] == IMAP | {"tls_fingerprint": "ab" * 32} and "pop3" not in exported
    assert await apply(database, {"external_accounts": [exported]}) == []


@pytest.mark.parametrize(("given", "kept"), [(False, None), (True, ""), ("Gesendet", "Gesendet")])
async def test_what_is_filed_at_the_provider_is_stored_and_exported(database: Database, given: Any, kept: Any) -> None:
    await apply(database, {"external_accounts": [by_imap(IMAP | {"answered": True, "sent": given})]})
    account = await stored(database)
    assert (account.imap.answered, account.imap.sent) == (True, kept)
    exported = export.external_fields(account)
    assert await apply(database, {"external_accounts": [exported]}) == []
    # and both are switched off again
    [line] = await change(database, imap={"answered": False, "sent": False})
    assert "; marks what was answered" in line.partition("->")[0]
    account = await stored(database)
    assert (account.imap.answered, account.imap.sent) == (False, None)


async def test_a_server_of_the_other_protocol_replaces_the_stored_one(database: Database) -> None:
    await apply(database, {"external_accounts": [external(pop3=POP3)]})
    # when the account is given an IMAP server, with the defaults of what is left out
    [line] = await change(database, imap={"host": "imap.company.com"}, password="secret")
    assert "pop3 pop3.company.com:995/implicit -> none, imap none -> imap.company.com:993/implicit (INBOX)" in line
    assert (await stored(database)).imap == ImapServer("imap.company.com", 993, "implicit")
    # then single fields of it are changed, and the port follows the encryption
    await change(database, imap={"folders": ["INBOX", "Junk"]})
    await change(database, imap={"tls": "starttls"})
    account = await stored(database)
    assert account.imap == ImapServer("imap.company.com", 143, "starttls", folders=("INBOX", "Junk"))
    # and so it goes back
    await change(database, pop3={"host": "pop3.company.com"}, password="secret")
    account = await stored(database)
    assert (account.pop3, account.imap) == (Server("pop3.company.com", 995, "implicit"), None)


async def test_a_change_that_leaves_no_server_or_two_is_refused(database: Database) -> None:
    await apply(database, {"external_accounts": [external(pop3=POP3)]})
    for fields, said in (
        ({"imap": {"folders": ["INBOX"]}}, "imap.host: is missing"),
        ({"pop3": None}, "pop3: is missing, and imap, too"),
        ({"pop3": {"port": 1}, "imap": {"host": "h"}}, "pop3: imap is given, too"),
    ):
        with pytest.raises(AccountsError, match=said):
            await change(database, **fields)
    assert (await stored(database)).pop3 == Server("pop3.company.com", 995, "implicit")


async def test_the_stored_password_goes_to_no_other_host_by_imap(database: Database) -> None:
    await apply(database, {"external_accounts": [external(pop3=POP3)]})
    before = await stored(database)
    with pytest.raises(AccountsError) as refused:
        await change(database, imap={"host": "imap.attacker.example"})
    assert str(refused.value) == (
        f"external account {SUPPORT}: password: has to be given again, because the stored one is for another server "
        "(imap.host pop3.company.com -> imap.attacker.example)"
    )
    # but a host that it was given for may be asked by the other protocol
    await change(database, imap={"host": "pop3.company.com"})
    assert (await stored(database)).password == before.password


async def test_microsoft_is_asked_for_access_by_the_protocol_in_use(database: Database) -> None:
    tokens = by_imap(IMAP, oauth={"issuer": "microsoft", "client_id": "us"})
    del tokens["password"]
    await apply(database, {"external_accounts": [tokens]})
    assert "IMAP.AccessAsUser.All" in (await stored(database)).oauth.issuer.scope
    await change(database, pop3={"host": "imap.company.com"})
    assert "POP.AccessAsUser.All" in (await stored(database)).oauth.issuer.scope


@pytest.mark.parametrize("login", [SUPPORT, "support"], ids=["same login", "another login"])
async def test_another_protocol_names_no_mail_by_the_keys_of_the_first(database: Database, login: str) -> None:
    # given an account with mail that was fetched, one whose deletion was interrupted, and one that was there before
    await apply(database, {"external_accounts": [external(pop3=POP3)]})
    account = await stored(database)
    await arrive(database, account.id, [b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n"])
    async with database.transaction() as connection:
        await connection.execute("update polls set first_contact_at = '2026-01-02'")
        await connection.execute(
            "update uidl_ledger set state = 'deleting' where id = (select max(id) from uidl_ledger)"
        )
        await connection.execute(
            """insert into uidl_ledger (external_id, uidl, state, was_history) values (%s, 'old', 'history', true),
               (%s, 'gone', 'closed', false)""",
            (account.id, account.id),
        )
    # when it is fetched by IMAP
    await change(database, imap={"host": "imap.company.com"}, password="secret", login=login)
    # then no key names a mail any more, and what is known of the mails stays
    async with database.transaction() as connection:
        cursor = await connection.execute(
            "select state, before, was_history, uidl ~ ' before [0-9]+$' from uidl_ledger order by id"
        )
        rows = await cursor.fetchall()
        cursor = await connection.execute("select first_contact_at is null from polls")
        [first_contact] = await cursor.fetchall()
    assert rows == [
        ("vanished", "fetched", False, True),
        ("vanished", "fetched", False, True),
        ("vanished", "history", True, True),
        ("closed", None, False, False),
    ]
    # and only with another login the mail that is there now is taken for old
    assert first_contact == (login != SUPPORT,)
