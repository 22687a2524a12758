"""services/admin/mail/operations.py: operations on single mails and accounts, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner, Result

from services.admin.accounts.errors import AccountsError
from services.admin.cli.app import app
from services.admin.mail import history, operations
from services.admin.mail.operations import OperationResult
from services.admin.mail.trace import trace
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.db.database import Database
from shared.errors import MAX_FAILURES, Permanent
from shared.provider.credentials import Grant
from shared.provider.vault import Vault, new_key
from shared.store import account_changes, accounts, folder_admin, folder_mails, inbound
from tests import servers
from tests.company import COMPANY, KEY, SALES, SUPPORT, apply, arrive, everyone, external, local, mailbox_of
from tests.scripted_smtp import scripted_smtp
from tests.sender_harness import sending
from tests.servers import rows_read
from tests.token_server import client_key

T = TypeVar("T")
ALEX, ANN, BOB = "alex@local.com", "ann@customer.org", "bob@customer.org"


def mail(to: str = SUPPORT, subject: str = "x") -> bytes:
    return f"From: anna@x.example\r\nTo: {to}\r\nSubject: {subject}\r\n\r\nHello\r\n".encode()


async def deliver(database: Database, *mails: bytes) -> list[int]:
    """Fetched, routed and delivered mails; their ids."""
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, mails)
    await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(rows)
    return rows


async def test_a_cancelled_submission_is_not_sent_and_its_author_reads_why(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        # given a queued mail to two people, one of whom has it already
        await harness.accounts({SUPPORT: provider.port})
        provider.by_recipient[BOB] = "451 4.3.0 later"
        id_ = await harness.submit(ANN, BOB)
        await harness.until(id_, state="queued", tries=1)
        async with harness.database.transaction() as connection:
            [listed] = await operations.list_queue(connection)
            assert (listed["state"], listed["status"]) == ("queued", "waiting")
            assert [(r["state"], r["status"]) for r in listed["recipients"]] == [
                ("relayed", "sent"),
                ("waiting", "waiting"),
            ]
        # when
        async with harness.database.transaction() as connection:
            assert await operations.cancel(connection, [id_, 9_999], "sent by mistake") == OperationResult(
                [id_], [9_999]
            )
            assert await operations.cancel(connection, [id_]) == OperationResult([], [id_])
        await harness.upkeep.notify_authors()
        await harness.upkeep.notify_authors()
        # then the author gets one notice, about the other person alone
        [notice] = await harness.notices("Alex")
        assert b"Final-Recipient: rfc822; bob@customer.org\r\nAction: failed\r\nStatus: 5.3.0\r\n" in notice
        assert b"sent by mistake" in notice and b"rfc822; ann@customer.org" not in notice
        assert ("cancelled", BOB) in await harness.events(id_) and ("noticed", ALEX) in await harness.events(id_)
        await harness.make_due()
        assert len(provider.taken) == 1
        async with harness.database.transaction() as connection:
            [traced] = await trace(connection, str(id_))
            shown = await history.load_mail_history(connection, id_)
        assert (traced["state"], traced["status"]) == ("done", "cancelled")
        assert shown is not None and (shown.state, shown.status) == ("done", "cancelled")


async def test_a_mail_that_is_being_sent_is_not_cancelled(database_url: str) -> None:
    async with scripted_smtp() as provider, sending(database_url) as harness:
        await harness.accounts({SUPPORT: provider.port})
        provider.gates["END"] = asyncio.Event()
        id_ = await harness.submit(ANN)
        await harness.until(id_, state="sent_unanswered")
        async with harness.database.transaction() as connection:
            assert await operations.cancel(connection, [id_]) == OperationResult([], [id_])
        provider.gates["END"].set()
        await harness.until(id_, state="done")


async def test_parked_mails_show_their_traceback_and_are_requeued_or_discarded(database: Database) -> None:
    # given two mails that failed five times in the router
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(), mail()])
    async with database.transaction() as connection:
        for row in rows:
            for _ in range(MAX_FAILURES):
                await inbound.count_failure(connection, row, "router: router", "Traceback …\nValueError: odd")
        # then both are shown
        found = await operations.list_parked(connection)
        assert [(r["id"], r["origin"], r["external"]) for r in found] == [(r, "router: router", SUPPORT) for r in rows]
        assert found[0]["error"].endswith("ValueError: odd") and found[0]["since"].endswith("Z")
        assert [r["id"] for r in await operations.list_parked(connection, rows[1:])] == rows[1:]
        assert {(r["state"], r["status"]) for r in found} == {("parked", "needs attention")}
        # when one is requeued and the other discarded
        assert await operations.requeue(connection, [rows[0], 9_999]) == OperationResult([rows[0]], [9_999])
        assert await operations.discard(connection, [rows[1]], "spam") == OperationResult([rows[1]], [])
        assert await operations.list_parked(connection) == []
        assert [(m["state"], m["status"]) for m in await trace(connection, str(rows[0]))] == [("fetched", "waiting")]
        assert [(m["state"], m["status"]) for m in await trace(connection, str(rows[1]))] == [
            ("discarded", "cancelled")
        ]
    # then the first one is routed
    await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(rows)
    assert len(await mailbox_of(database, ALEX)) == 1


async def test_held_mails_have_a_reason(database: Database) -> None:
    await apply(database, {"external_accounts": [external()], "local_accounts": [local("Alex", enabled=False)]})
    [row] = await deliver(database, mail())
    async with database.transaction() as connection:
        [found] = await operations.list_held(connection)
        assert (found["id"], found["external"]) == (row, SUPPORT) and found["reason"]
        assert (found["state"], found["status"]) == ("held", "on hold")
        # it can be ended, too
        assert await operations.discard(connection, [row], "nobody wants it") == OperationResult([row], [])
        assert await operations.list_held(connection) == []


async def test_an_undeleted_mail_comes_back_under_another_uidl(database: Database) -> None:
    # given a mail that Alex deleted
    await apply(database, COMPANY)
    [row] = await deliver(database, mail())
    _, people = await everyone(database)
    async with database.transaction() as connection:
        [entry] = await folder_admin.list_mails(connection, people["Alex"].id)
        await folder_mails.tombstone_mails(connection, people["Alex"].id, [entry.uid])
        [shown] = await operations.list_deleted(connection, ALEX)
        assert (shown["id"], shown["octets"]) == (row, len(mail())) and shown["deleted_at"].endswith("Z")
        # when
        assert await operations.undelete(connection, ALEX, [row, 9_999]) == OperationResult([row], [9_999])
        # then
        [back] = await folder_admin.list_mails(connection, people["Alex"].id)
        assert back.uidl != entry.uidl
        assert await operations.list_deleted(connection, ALEX) == []
        with pytest.raises(Permanent, match="no such local account"):
            await operations.undelete(connection, "nobody@local.com", [row])


async def test_restore_returns_an_account_with_its_mail_and_refuses_any_other(
    database: Database,
) -> None:
    await apply(database, COMPANY)
    await deliver(database, mail())
    _, people = await everyone(database)
    async with database.transaction() as connection:
        await account_changes.remove_account(connection, "local", people["Alex"].id)
    assert await mailbox_of(database, ALEX) == []
    async with database.transaction() as connection:
        assert (await operations.restore_account(connection, ALEX)).id == people["Alex"].id
    assert len(await mailbox_of(database, ALEX)) == 1
    for address, said in ((ALEX, "is there already"), ("nobody@local.com", "no removed local account")):
        with pytest.raises(Permanent, match=said):
            async with database.transaction() as connection:
                await operations.restore_account(connection, address)


async def test_a_restored_person_has_no_name_of_others_and_no_delegate_elsewhere(
    database: Database,
) -> None:
    # given Alex, once Lex, whose delegate is Jim
    alex = local("Alex", address=ALEX, delegate="jim@local.com")
    await apply(database, COMPANY | {"local_accounts": [local("Lex", address=ALEX), local("Jim")]})
    await apply(database, COMPANY | {"local_accounts": [alex, local("Jim")]})
    _, people = await everyone(database)
    assert people["Alex"].former_names == ("Lex",)
    # when, while Alex is removed, another person is Lex, and Jim shares another account
    async with database.transaction() as connection:
        await account_changes.remove_account(connection, "local", people["Alex"].id)
    await apply(database, COMPANY | {"local_accounts": [local("Lex", address="lex@local.com"), local("Jim", SALES)]})
    async with database.transaction() as connection:
        await operations.restore_account(connection, ALEX)
    # then mail to Lex is that one's alone
    _, people = await everyone(database)
    assert (people["Alex"].former_names, people["Alex"].delegate_id) == ((), None)
    assert people["Lex"].address == "lex@local.com"


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_restored_person_may_log_in_only_if_that_was_so_before(database: Database, enabled: bool) -> None:
    await apply(database, COMPANY | {"local_accounts": [local("Alex", enabled=enabled)]})
    _, people = await everyone(database)
    async with database.transaction() as connection:
        await account_changes.remove_account(connection, "local", people["Alex"].id)
        login = (people["Alex"].id, people["Alex"].password_hash)
        assert await accounts.valid_logins(connection, [login]) == set()
        assert (await operations.restore_account(connection, ALEX)).enabled == enabled
        assert await accounts.valid_logins(connection, [login]) == ({login} if enabled else set())


async def test_an_account_whose_name_is_taken_by_now_is_not_restored(database: Database) -> None:
    await apply(database, COMPANY)
    _, people = await everyone(database)
    async with database.transaction() as connection:
        await account_changes.remove_account(connection, "local", people["Alex"].id)
    await apply(database, {"external_accounts": [], "local_accounts": [local("Alex", address="alexandra@local.com")]})
    with pytest.raises(AccountsError, match="a name may belong to one person only"):
        async with database.transaction() as connection:
            await operations.restore_account(connection, ALEX)
    _, people = await everyone(database)
    assert people["Alex"].address == "alexandra@local.com"


async def test_rotating_seals_under_the_first_key_and_names_unreadable_ones(database: Database) -> None:
    # given two accounts, one of them sealed under a key that is lost
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    async with database.transaction() as connection:
        lost = Vault(new_key()).seal("secret")
        await account_changes.save_password(connection, externals[SUPPORT].id, lost)
        # when
        key = new_key()
        assert await operations.rotate_key(connection, Vault(f"{key},{KEY}")) == (1, [SUPPORT])
        # then the new key alone opens the other one
        sealed = {account.address: account.password for account in await accounts.load_externals(connection)}
    assert [Vault(key).open(token) for address, token in sealed.items() if address != SUPPORT] == ["secret"]
    assert sealed[SUPPORT] == lost


# ---------------------------------------------------------------------------------------------- the commands


@dataclass
class Commands:
    """The command line on a database."""

    url: str
    key: str = KEY

    def __call__(self, *words: str) -> Result:
        return CliRunner(env={"MAILGROUP_DATABASE_URL": self.url, "MAILGROUP_SECRET_KEY": self.key}).invoke(app, words)

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json").stdout)


def prepared(url: str, work: Callable[[Database], Awaitable[T]]) -> T:
    """Work on the database, from a test that is no coroutine: commands have an event loop of their own."""

    async def working() -> T:
        async with servers.opened(url) as database:
            return await work(database)

    return asyncio.run(working())


def test_commands_print_json_and_exit_with_1_if_a_mail_was_left_out(database_url: str) -> None:
    async def prepare(database: Database) -> list[int]:
        await apply(database, COMPANY)
        rows = await deliver(database, mail())
        externals, people = await everyone(database)
        parked = await arrive(database, externals[SUPPORT].id, [mail(), mail()])
        async with database.transaction() as connection:
            for row in parked:
                for _ in range(MAX_FAILURES):
                    await inbound.count_failure(connection, row, "router: router", "boom")
            [entry] = await folder_admin.list_mails(connection, people["Alex"].id)
            await folder_mails.tombstone_mails(connection, people["Alex"].id, [entry.uid])
        return [*rows, *parked]

    deleted, first, second = prepared(database_url, prepare)
    run = Commands(database_url)
    assert [row["id"] for row in run.json("parked", "list")] == [first, second]
    assert run.json("parked", "show", str(first))["error"] == "boom"
    assert run("parked", "show", str(deleted)).exit_code == 1
    assert run.json("parked", "requeue", str(first), "9999") == {"requeued": [first], "left": [9999]}
    assert run.json("parked", "discard", str(second), "--reason", "spam") == {"discarded": [second], "left": []}
    again = run("parked", "discard", str(second), "--reason", "spam")
    assert again.exit_code == 1 and f"not discarded: {second}: no such mail in a state that allows it" in again.stderr
    assert [row["id"] for row in run.json("undelete", ALEX)] == [deleted]
    assert run.json("undelete", ALEX, str(deleted)) == {"brought_back": [deleted], "left": []}
    assert run("undelete", "nobody@local.com").exit_code == 1
    assert run.json("held", "list") == run.json("queue", "list") == []
    assert run.json("queue", "retry") == {"tried_now": [], "left": []}
    assert run("queue", "cancel", "9999").exit_code == 1


def test_a_key_is_rotated_while_both_are_set_unreadable_ones_are_named(database_url: str) -> None:
    async def prepare(database: Database) -> None:
        await apply(database, COMPANY)

    prepared(database_url, prepare)
    key = new_key()
    # as the lines of a file, the new one first
    done = Commands(database_url, f"{key}\n{KEY}\n")("rotate-key")
    assert done.exit_code == 0 and "2 passwords are sealed under the first key" in done.stdout
    done = Commands(database_url, new_key())("rotate-key")
    assert done.exit_code == 1
    assert "opened by none of the keys" in done.stderr and SUPPORT in done.stderr
    assert Commands(database_url, key)("rotate-key").exit_code == 0


def test_an_application_s_key_is_given_by_a_file_and_rotated(database_url: str, tmp_path: Path) -> None:
    run, key, given = Commands(database_url), new_key(), client_key(certified=True).pem
    prepared(database_url, lambda database: apply(database, COMPANY))
    (tmp_path / "app.pem").write_text(given)
    application = ("oauth.grant=client_credentials", "oauth.issuer=microsoft", "oauth.client_id=us")
    # given a mistake: it is named with what is missing
    refused = run("external", "set", SUPPORT, *application)
    assert refused.exit_code == 2 and "oauth.tenant: is missing" in refused.stderr
    # when
    file = f"oauth.client_key_file={tmp_path}/app.pem"
    done = run("external", "set", SUPPORT, *application, "oauth.tenant=c.com", file)
    assert done.exit_code == 0 and "microsoft (client us, client_credentials, tenant c.com)" in done.stdout
    done = run("external", "set", SALES, f"oauth.same_as={SUPPORT}")
    assert done.exit_code == 0 and f"the access tokens of {SUPPORT}" in done.stdout
    # then no export has the key, and the account that others use stays
    exported = run("export")
    assert exported.exit_code == 0 and "tenant: c.com" in exported.stdout and "PRIVATE" not in exported.stdout
    assert run.json("external", "show", SALES)["oauth"] == {"same_as": SUPPORT}
    refused = run("external", "authorize", SUPPORT)
    assert refused.exit_code == 1 and "no person has to authorize it" in refused.stderr
    # when the key that seals it is rotated
    assert Commands(database_url, f"{key},{KEY}")("rotate-key").exit_code == 0

    async def read(database: Database) -> bytes:
        return (await everyone(database))[0][SUPPORT].password

    assert Grant.open(Vault(key), prepared(database_url, read)) == Grant(client_key=given)
    # and back to tokens of its own, by one command
    done = Commands(database_url, key)(
        "external", "set", SALES, "oauth.issuer=google", "oauth.client_id=us", "oauth.client_secret=hush"
    )
    assert done.exit_code == 0 and "google (client us)" in done.stdout and "hush" not in done.stdout


def test_a_removed_account_is_restored_once(database_url: str) -> None:
    async def prepare(database: Database) -> None:
        await apply(database, COMPANY)
        await deliver(database, mail())

    prepared(database_url, prepare)
    run = Commands(database_url)
    assert run("local", "remove", ALEX).exit_code == 0
    assert run("local", "restore", ALEX).exit_code == 0
    again = run("local", "restore", ALEX)
    assert again.exit_code == 1 and "is there already, not removed" in again.stderr
    assert prepared(database_url, lambda database: mailbox_of(database, ALEX)) == [mail()]


async def test_the_queue_is_counted_and_listed_to_a_limit_without_what_is_done(database: Database) -> None:
    # given mail that waits, behind and before much that is done
    await apply(database, COMPANY)
    externals, locals_ = await everyone(database)
    author = next(each for each in locals_.values() if each.address == ALEX)
    async with database.transaction() as connection:
        await connection.execute(
            """with blob as (insert into blobs (octets, sha256, head) values (1, 'x', 'x') returning id)
               insert into submissions (author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8,
                                        state)
               select %s, %s, blob.id, 'a@b', n || '@c', false, false,
                   case when n %% 1000 = 7 then 'queued' when n %% 1000 = 8 then 'parked' else 'done' end
               from blob, generate_series(1, 5000) n""",
            (author.id, externals[SUPPORT].id),
        )
    async with database.transaction() as connection:
        await connection.execute("analyze submissions")
        # when it is listed and counted
        before = await rows_read(connection, "submissions")
        listed = await operations.list_queue(connection, limit=3)
        counts = await operations.count_queue(connection)
        read = await rows_read(connection, "submissions") - before
    # then the oldest are listed, all are counted, and of what is done nothing is read
    assert [mail["message_id"] for mail in listed] == ["7@c", "1007@c", "2007@c"]
    assert (counts.waiting, counts.held, counts.parked) == (5, 0, 5)
    assert read < 100
