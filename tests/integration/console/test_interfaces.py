"""What the console can do, done by commands and by the REST API: both say the same, and both are in the audit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
import requests
from typer.testing import CliRunner, Result

from services.admin.cli.app import app
from services.admin.mail.indexing import SearchIndexer
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.db.database import Database
from tests import console, servers
from tests.company import COMPANY, KEY, SUPPORT, arrive, everyone, mailbox_of
from tests.console import Browser, stored

ALEX, JIM = "alex@local.com", "jim@local.com"
T = TypeVar("T")


class Command:
    """Commands on the database of the console."""

    def __init__(self, store: str) -> None:
        self._environment = {
            "MAILGROUP_DATABASE_URL": store,
            "MAILGROUP_BROKER_URL": "amqp://127.0.0.1:1/",
            "MAILGROUP_SECRET_KEY": KEY,
            "COLUMNS": "300",
        }

    def __call__(self, *words: str, stdin: str = "") -> Result:
        return CliRunner(env=self._environment).invoke(app, words, stdin)

    def json(self, *words: str, stdin: str = "") -> Any:
        done = self(*words, "--json", stdin=stdin)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


class Rest:
    """A script with the token of an administrator, which the command has made."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._headers = f"{url}/api/v1", {"Authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, **given: Any) -> requests.Response:
        return requests.request(method, self._url + path, headers=self._headers, timeout=60, **given)

    def json(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.call(method, path, json=body)
        assert answer.ok, answer.text
        return answer.json()


@pytest.fixture
def command(store: str) -> Command:
    """The command line."""
    return Command(store)


@pytest.fixture
def rest(url: str, command: Command) -> Rest:
    """The REST API."""
    return Rest(url, command.json("tokens", "create", "tests", "--role", "administrator")["token"])


def on(store: str, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do something with the database."""

    async def main() -> T:
        async with servers.opened(store) as database:
            return await work(database)

    return asyncio.run(main())


def given_mails(store: str, *heads: str) -> list[int]:
    """Mails to support@, delivered and indexed; their ids."""

    async def work(database: Database) -> list[int]:
        await console.make(store)
        externals, _ = await everyone(database)
        mails = [f"From: Anna <anna@x.example>\r\n{head}\r\n\r\nHello\r\n".encode() for head in heads]
        ids = await arrive(database, externals[SUPPORT].id, mails)
        await RouterWorker(database, 5).handle(ids)
        await MailboxWorker(database, 5).handle(ids)
        async with database.transaction() as connection:
            await connection.execute("update inbound set created_at = created_at - interval '1 minute'")
        indexer = SearchIndexer(database)
        while (await indexer.index_next()).mails:
            pass
        return ids

    return on(store, work)


def deeds(rest: Rest, target: str) -> list[str]:
    """What the audit says of a target, the latest first."""
    return [entry["did"] for entry in rest.json("GET", f"/audit?q={target}")]


def test_users_are_managed_by_command_and_rest(command: Command, rest: Rest, url: str) -> None:
    # given a user made by command, and one made by REST
    assert command.json("users", "add", "first", "--role", "observer", stdin="a long password\n") == {
        "changed": ["user first: added as observer"]
    }
    assert rest.json("POST", "/users", {"name": "second", "role": "observer", "password": "a long password"}) == {
        "changed": ["user second: added as observer"]
    }
    ids = {user["name"]: user["id"] for user in rest.json("GET", "/users")}
    assert ids == {user["name"]: user["id"] for user in command.json("users", "list")} and {"first", "second"} <= {*ids}
    # a short password is refused by both
    assert "at least 10" in command("users", "password", "first", stdin="short\n").stderr
    refused = rest.call("PUT", f"/users/{ids['first']}/password", json={"password": "short"})
    assert (refused.status_code, "at least 10" in refused.text) == (409, True)
    # both sign in; then the command sees one browser, and REST ends it
    first = console.signed_in(url, "first", "a long password")
    [session] = [each for each in command.json("users", "sessions") if each["who"] == "first"]
    rest.json("DELETE", f"/sessions/{session['id']}")
    assert first.get("/", allow_redirects=False).status_code == 303
    # role and password are changed, and both are removed
    assert command("users", "role", "FIRST", "administrator").exit_code == 0
    assert rest.json("PUT", f"/users/{ids['second']}/role", {"role": "administrator"})
    assert {user["role"] for user in rest.json("GET", "/users") if user["id"] in ids.values()} == {"administrator"}
    assert command("users", "password", "second", stdin="another password\n").exit_code == 0
    assert console.signed_in(url, "second", "another password").get("/users").status_code == 200
    assert command("users", "remove", "first").exit_code == 0
    rest.json("DELETE", f"/users/{ids['second']}")
    assert command("users", "remove", "first").exit_code == 1
    assert deeds(rest, "second")[:3] == ["console: remove", "signed in", "console: password"]


def test_an_account_is_checked_at_once_by_command_rest_and_page(
    command: Command, rest: Rest, browser: Browser, store: str
) -> None:
    def due() -> bool:
        [(due_now,)] = stored(
            store,
            f"""select next_poll_at <= now() and failures = 0
                from polls p join external_accounts e on e.id = p.external_id where e.address = '{SUPPORT}'""",
        )
        return bool(due_now)

    def postpone() -> None:
        with psycopg.connect(store) as connection:
            connection.execute("update polls set next_poll_at = now() + interval '1 hour', failures = 3")

    asyncio.run(console.make(store))
    # given an account that is due in an hour, each way makes it due now
    for check in (
        lambda: command("external", "check", SUPPORT),
        lambda: rest.json("POST", f"/external-accounts/{SUPPORT}/check"),
        lambda: browser.post(f"/external/{SUPPORT}/check"),
    ):
        postpone()
        assert not due()
        check()
        assert due()
    assert "is being checked for new mail" in console.text(browser.post(f"/external/{SUPPORT}/check"))
    assert deeds(rest, SUPPORT)[:3] == ["requested a check"] * 3
    # and a disabled account, or none, is not checked
    command("external", "disable", SUPPORT)
    assert "is disabled" in command("external", "check", SUPPORT).stderr
    assert rest.call("POST", f"/external-accounts/{SUPPORT}/check").status_code == 409
    assert "is disabled" in console.text(browser.post(f"/external/{SUPPORT}/check"))
    command("external", "enable", SUPPORT)
    assert command("external", "check", "nobody@company.com").exit_code == 1


def test_the_last_administrator_stays_for_command_and_rest(command: Command, rest: Rest) -> None:
    others = [user for user in rest.json("GET", "/users") if user["name"] != "admin"]
    for user in others:
        rest.json("DELETE", f"/users/{user['id']}")
    refused = command("users", "role", "admin", "observer")
    assert (refused.exit_code, "stay administrator" in refused.stderr) == (1, True)
    [admin] = rest.json("GET", "/users")
    assert rest.call("DELETE", f"/users/{admin['id']}").status_code == 409


def test_tokens_are_managed_by_command_and_rest(command: Command, rest: Rest, url: str) -> None:
    made = rest.json("POST", "/tokens", {"name": "by rest", "role": "observer"})
    assert Rest(url, made["token"]).call("GET", "/queue").status_code == 200
    assert Rest(url, made["token"]).call("GET", "/tokens").status_code == 403
    printed = command("tokens", "create", "by command").stdout.strip()
    assert Rest(url, printed).call("GET", "/queue").status_code == 200
    ids = {token["name"]: token["id"] for token in command.json("tokens", "list")}
    assert {token["name"]: token["id"] for token in rest.json("GET", "/tokens")} == ids
    # each is revoked by the other, and is of no use from then on
    assert command("tokens", "revoke", str(ids["by rest"])).exit_code == 0
    rest.json("DELETE", f"/tokens/{ids['by command']}")
    assert {Rest(url, token).call("GET", "/queue").status_code for token in (made["token"], printed)} == {401}


def test_the_protocol_of_an_account_is_changed_by_command_and_rest(command: Command, rest: Rest, store: str) -> None:
    # given an account that is fetched by POP3, when a command gives it an IMAP server
    asyncio.run(console.make(store))
    server = ("imap.host=127.0.0.1", "imap.port=1", "imap.tls=none", "imap.folders=[INBOX, Junk]")
    changed = "pop3 127.0.0.1:1/none -> none, imap none -> 127.0.0.1:1/none (INBOX, Junk)"
    assert command.json("external", "set", SUPPORT, *server)["changed"] == [
        f"external account {SUPPORT}: changed {changed}"
    ]
    # then both show that server alone
    shown = rest.json("GET", f"/external-accounts/{SUPPORT}")
    assert shown == command.json("external", "show", SUPPORT) and "pop3" not in shown
    assert shown["imap"] == {"host": "127.0.0.1", "port": 1, "tls": "none", "folders": ["INBOX", "Junk"]}
    [row] = [line for line in command("external", "list").stdout.splitlines() if SUPPORT in line]
    assert "IMAP" in row and "127.0.0.1:1 none" in row
    # and REST changes it back; both servers at once are refused
    pop3 = {"host": "127.0.0.1", "port": 1, "tls": "none"}
    refused = rest.call("PUT", "/external-accounts", json=shown | {"pop3": pop3})
    assert refused.status_code == 422 and "pop3: imap is given, too" in refused.json()["detail"]
    back = {name: value for name, value in shown.items() if name != "imap"} | {"pop3": pop3}
    assert len(rest.json("PUT", "/external-accounts", back)["changed"]) == 1
    assert command.json("external", "show", SUPPORT) == back


def test_names_that_nobody_has_are_assigned_and_hidden(command: Command, rest: Rest, store: str) -> None:
    given_mails(store, *(f'To: "{name}" <{SUPPORT}>\r\nSubject: x' for name in ("Sascha", "Lex", "Shop", "News")))
    listed = command.json("names", "list")
    assert {each["name"] for each in listed} == {"Sascha", "Lex", "Shop", "News"}
    assert [each["name"] for each in rest.json("GET", "/unknown-names")] == [each["name"] for each in listed]
    told = command.json("names", "assign", "Sascha", "--external", SUPPORT, "--to", ALEX)["changed"]
    assert told == [f"local account {ALEX}: changed aliases none -> Sascha"]
    told = rest.json("POST", "/unknown-names/assign", {"name": "Lex", "external": SUPPORT, "to": ALEX})["changed"]
    assert told == [f"local account {ALEX}: changed aliases Sascha -> Sascha, Lex"]
    assert command("names", "hide", "Shop", "--external", SUPPORT).exit_code == 0
    rest.json("POST", "/unknown-names/hide", {"name": "News", "external": SUPPORT})
    assert command.json("names", "list") == rest.json("GET", "/unknown-names") == []
    # a name of somebody else is refused, and stays listed
    given_mails(store, f'To: "Alexa" <{SUPPORT}>\r\nSubject: x')
    refused = command("names", "assign", "Alexa", "--external", SUPPORT, "--to", "nobody@local.com")
    assert refused.exit_code == 1
    assert [each["name"] for each in command.json("names", "list")] == ["Alexa"]


def test_unanswered_mail_is_listed_by_command_and_rest(command: Command, rest: Rest, store: str) -> None:
    [id_] = given_mails(store, f"To: {SUPPORT}\r\nSubject: Who answers this\r\nMessage-ID: <q@x.example>")
    [by_command] = [mail for mail in command.json("answers") if mail["mail_id"] == id_]
    [by_rest] = [mail for mail in rest.json("GET", "/answers") if mail["mail_id"] == id_]
    assert by_command["subject"] == by_rest["subject"] == "Who answers this" and by_rest["author"] is None
    assert "Who answers this" in command("answers").stdout
    assert command.json("answers", "--answered") == rest.json("GET", "/answers?answered=true") == []


def test_mail_is_found_given_and_read_by_command(command: Command, rest: Rest, store: str, tmp_path: Path) -> None:
    [id_] = given_mails(store, f'To: "Alex" <{SUPPORT}>\r\nSubject: Blue printer\r\nMessage-ID: <p@x.example>')
    [found] = command.json("find", "blue", "printer")
    [same] = rest.json("GET", "/mails?q=blue+printer")
    assert (found["id"], found["status"], found["sender"]) == (same["id"], same["status"], same["sender"])
    assert command.json("find", "blue", "--day", "2001-01-01") == []
    assert command("find", "--day", "tomorrow").exit_code == 2
    # moved from Alex to Jim
    told = command.json("give", str(id_), "--to", JIM, "--away-from", ALEX)["changed"]
    assert told == [f"mail {id_}: {JIM} has it, and {ALEX} no longer"]
    has = [on(store, lambda database, who=who: mailbox_of(database, who)) for who in (ALEX, JIM)]  # type: ignore[misc]
    assert [sum(b"Blue printer" in mail for mail in mails) for mails in has] == [0, 1]
    # read whole, into a new file
    file = tmp_path / "mail.eml"
    assert command("raw", str(id_), "--output", str(file)).exit_code == 0
    assert file.read_bytes() == rest.call("GET", f"/mails/{id_}/raw").content
    again = command("raw", str(id_), "--output", str(file))
    assert again.exit_code == 2 and "exists" in again.stderr
    assert command("raw", "999999").exit_code == 1
    assert command("resend", str(id_)).exit_code == 1  # it is no submission
    assert deeds(rest, str(id_)).count("looked into a mail") == 2 and "gave a mail" in deeds(rest, str(id_))


def test_mail_is_handed_over_by_command_and_rest(command: Command, rest: Rest, store: str) -> None:
    given_mails(store, f'To: "Alex" <{SUPPORT}>\r\nSubject: Only for Alex')
    count = len(on(store, lambda database: mailbox_of(database, ALEX)))
    told = command.json("local", "hand-over", ALEX, "--to", JIM)["changed"][0]
    assert told.startswith(f"local account {JIM}: has ") and count > 0
    assert any(b"Only for Alex" in mail for mail in on(store, lambda database: mailbox_of(database, JIM)))
    assert rest.json("POST", f"/local-accounts/{ALEX}/hand-over", {"to": "kim@local.com"})["changed"]
    assert rest.call("POST", f"/local-accounts/{ALEX}/hand-over", json={"to": ALEX}).status_code == 409
    assert command("local", "hand-over", ALEX, "--to", "nobody@local.com").exit_code == 1
    assert deeds(rest, ALEX)[:2] == ["handed mail over", "handed mail over"]


def test_a_person_is_signed_out_and_a_removed_one_is_listed(command: Command, rest: Rest, store: str, url: str) -> None:
    asyncio.run(console.make(store))
    for sign_out in (
        lambda: command("local", "sign-out", ALEX),
        lambda: rest.json("POST", f"/local-accounts/{ALEX}/sign-out"),
    ):
        alex: Browser = console.signed_in(url, ALEX, "secret")
        assert alex.get("/mine").status_code == 200
        assert len(command.json("local", "logins", ALEX)["sessions"]) == 1
        sign_out()
        assert alex.get("/mine", allow_redirects=False).status_code == 303
        assert command.json("local", "logins", ALEX)["sessions"] == []
    command("local", "remove", JIM)
    assert [person["address"] for person in command.json("local", "removed")] == [JIM]
    assert [person["address"] for person in rest.json("GET", "/removed-local-accounts")] == [JIM]
    assert command("local", "restore", JIM).exit_code == 0


def test_an_accounts_file_is_tried_and_applied(command: Command, rest: Rest, store: str, tmp_path: Path) -> None:
    asyncio.run(console.make(store))
    renamed = {"local_accounts": [COMPANY["local_accounts"][0] | {"user_name": "Alexandra"}]}
    file = tmp_path / "accounts.json"
    file.write_text(json.dumps(renamed), encoding="utf-8")
    line = f"local account {ALEX}: changed user_name Alex -> Alexandra"

    def put(query: str, body: bytes) -> requests.Response:
        return rest.call("PUT", f"/accounts-file{query}", data=body)

    # a dry run says it, and changes nothing
    for _ in range(2):
        assert line in command.json("apply", str(file), "--dry-run")["changed"][0]
        assert line in put("?dry_run=true", file.read_bytes()).json()["changed"][0]
    assert command.json("local", "show", ALEX)["user_name"] == "Alex"
    # what is wrong is named, and nothing is changed
    wrong = put("", b"local_accounts: [{address: x}]")
    assert (wrong.status_code, "local_accounts" in wrong.text) == (422, True)
    assert put("", b"\xff").status_code == 422
    assert put("?prune=true", b"\n").status_code == 422  # it would remove all accounts
    assert put("", b" " * (5 * 1024 * 1024)).status_code == 413
    # then it is in force
    assert put("", file.read_bytes()).json()["changed"][0].startswith(line)
    assert command.json("local", "show", ALEX)["user_name"] == "Alexandra"
    assert "changed local account" in deeds(rest, ALEX)


def test_the_first_fetch_of_existing_mail_is_followed(command: Command, rest: Rest, store: str) -> None:
    asyncio.run(console.make(store))
    path = f"/external-accounts/{SUPPORT}/history"
    assert rest.json("GET", path) == {"wanted": True, "fetched": 0, "total": None, "done": False}
    assert "not checked yet" in command("external", "history", SUPPORT).stdout

    async def first_contact(database: Database) -> None:
        async with database.transaction() as connection:
            await connection.execute("update polls set first_contact_at = now()")
            await connection.execute(
                """insert into uidl_ledger (external_id, uidl, state, was_history)
                   select id, n::text, case when n > 3 then 'history' else 'fetched' end, true
                   from external_accounts, generate_series(1, 10) n where address = %s""",
                (SUPPORT,),
            )

    on(store, first_contact)
    assert rest.json("GET", path) == {"wanted": True, "fetched": 3, "total": 10, "done": False}
    assert "3 of 10 mails" in command("external", "history", SUPPORT).stdout
    assert command("external", "history", "nobody@company.com").exit_code == 1

    async def all_fetched(database: Database) -> None:
        async with database.transaction() as connection:
            await connection.execute("update uidl_ledger set state = 'fetched'")

    on(store, all_fetched)
    assert "10 of 10" in command("external", "history", SUPPORT, "--follow").stdout
