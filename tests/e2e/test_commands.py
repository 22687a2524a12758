"""The command line as an operator uses it: its output, its errors and its exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from services.admin.cli import accounts as account_commands
from services.admin.cli.app import app
from tests.company import HASH, local
from tests.system import PASSWORD, System, until

SUPPORT = "support@company.com"
CHECKOUT = {("test",), ("bench",), ("interop",), ("deploy-check",), ("alerts",)}
"""Commands of a checkout, which have no data folder."""


def run(*words: str, **environment: str) -> Result:
    """Run a command without a running system."""
    return CliRunner(env=environment).invoke(app, words)


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the words of every command."""
    found = typer.main.get_command(app)
    for name, command in found.commands.items():  # type: ignore[attr-defined]  # the root is a group
        below = getattr(command, "commands", None)
        yield from ((name, each) for each in below) if below else [(name,)]


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example_and_takes_a_data_folder(words: tuple[str, ...]) -> None:
    said = run(*words, "--help").stdout
    assert "Example: " in said
    assert "--data DIR" in said or words in CHECKOUT


def test_the_data_folder_may_stand_before_the_command_too(system: System) -> None:
    folder = str(system.settings.data)
    assert run("--data", folder, "export", "--json").exit_code == 0
    assert run("local", "--data", folder, "list", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("status",), 1, "no mailgroup is running"),
        (("nonsense",), 2, "nonsense"),
        (("apply", "/none.yaml"), 2, "/none.yaml: No such file"),
        (("route", "/none.eml", "--external", SUPPORT), 2, "/none.eml: No such file"),
        (("queue", "retry", "99999999999999999999"), 2, "99999999999999999999"),
        (("parked", "show", "0"), 2, "0 is not in the range"),
        (("service", "nonsense"), 2, "there are fetcher"),
    ],
)
def test_misuse_ends_with_2_and_failure_with_1(words: tuple[str, ...], status: int, said: str) -> None:
    done = run("--data", "/nonexistent", *words)
    assert (done.exit_code, said in done.stderr) == (status, True), done.output


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("POP3_PORT", "many", "MAILGROUP_POP3_PORT: 'many': has to be a whole number"),
        ("ALLOW_PRIVATE_UPSTREAM", "a b", "MAILGROUP_ALLOW_PRIVATE_UPSTREAM: 'a b': has to be yes, no, or host names"),
        ("SECRET_KEY", "short", "MAILGROUP_SECRET_KEY: not a Fernet key"),
    ],
)
def test_up_names_a_setting_that_makes_no_sense_and_starts_nothing(name: str, value: str, said: str) -> None:
    done = run("--data", "/nonexistent", "up", **{f"MAILGROUP_{name}": value})
    assert (done.exit_code, said in done.stderr) == (2, True), done.output


def test_an_unavailable_database_is_named_with_its_reason() -> None:
    where = {"MAILGROUP_DATABASE_URL": "postgresql://127.0.0.1:1/x", "MAILGROUP_BROKER_URL": "amqp://127.0.0.1:1"}
    done = run("export", **where)
    assert done.exit_code == 1
    assert "Connection refused" in done.stderr


def test_one_account_is_changed_field_by_field(system: System) -> None:
    system.apply(system.company())
    assert system.run("local", "set", "alex@local.com", "user_name=007").exit_code == 0
    assert system.json("local", "show", "alex@local.com")["user_name"] == "007"
    assert system.run("local", "set", "alex@local.com", "user_name=Alex").exit_code == 0
    alex = system.json("local", "show", "alex@local.com")
    assert (alex["user_name"], alex["aliases"]) == ("Alex", ["007"])
    moved = system.run("local", "set", "alex@local.com", "external=sales@company.com")
    assert "changed External email address (external): sales@company.com\n" in moved.stdout


def test_changes_are_also_printed_as_json(system: System) -> None:
    system.apply(system.company())
    moved = system.json("local", "set", "alex@local.com", "external=sales@company.com")
    assert moved["providers"] == [] and "external -> sales@company.com" in moved["changed"][0]
    assert system.json("external", "enable", SUPPORT) == {"changed": [], "providers": []}
    renewed = system.json("external", "set", SUPPORT, "delete_after_days=7")
    assert "delete_after_days" in renewed["changed"][0] and "7 days after it was fetched" in renewed["providers"][0]
    assert "removed" in system.json("local", "remove", "alex@local.com")["changed"][0]
    assert system.json("local", "restore", "alex@local.com")["changed"] == ["local account alex@local.com: restored"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("local", "set", "alex@local.com", "aliases=Al,Lex"), "alex@local.com: aliases: 'Al,Lex' is not a list"),
        (("local", "set", "alex@local.com", "address=jim@local.com"), "two accounts cannot become one"),
        (("local", "set", "alex@local.com", "enabled=on"), "enabled: 'on' is not true or false"),
        (("external", "set", SUPPORT, "pop3=x"), "is made of the fields host, port"),
        (("local", "add", "x@local.com", "password=x"), "local account x@local.com: user_name: is missing"),
    ],
)
def test_a_field_with_an_invalid_value_is_named(system: System, words: tuple[str, ...], said: str) -> None:
    system.apply(system.company())
    done = system.run(*words)
    assert (done.exit_code, said in done.stderr) == (2, True), done.output


def test_a_weak_password_needs_a_word_and_status_counts_it(system: System) -> None:
    system.apply(system.company())
    alex = ("local", "set", "alex@local.com")
    # a new password is refused if it is weak
    refused = system.run(*alex, "password=-", stdin="nine char\n")
    assert (refused.exit_code, "at least 10 characters are needed" in refused.stderr) == (2, True)
    assert system.run("local", "add", "x@local.com", "user_name=X", f"external={SUPPORT}", "password=x").exit_code == 2
    assert system.json("status")["weak_passwords"] == 0
    # unless the operator wants it
    taken = system.run(*alex, "password=short", "--weak")
    assert taken.exit_code == 0
    assert taken.stderr == "mailgroup: warning: 1 local account has a password of fewer than 10 characters\n"
    assert system.mails("alex@local.com", "short") == []
    # a file may have them: one warning, with their number
    company = system.company()
    for person in company["local_accounts"][:3]:
        del person["password_hash"]
        person["password"] = "secret"
    file = system.folder / "weak.json"
    file.write_text(json.dumps(company), encoding="utf-8")
    said = system.run("apply", str(file))
    assert said.exit_code == 0
    assert said.stderr == "mailgroup: warning: 3 local accounts have passwords of fewer than 10 characters\n"
    assert system.json("status")["weak_passwords"] == 3
    assert "Passwords: 3 local accounts have passwords of fewer than 10 characters" in system.run("status").stdout
    # a generated password is printed and works
    made = system.json(*alex, "--generate")["password"]
    assert system.mails("alex@local.com", made) == []
    assert system.json("status")["weak_passwords"] == 2
    printed = system.run("local", "add", "eve@local.com", "user_name=Eve", f"external={SUPPORT}", "--generate").stdout
    [made] = re.findall(r"^password: (\w{16})$", printed, re.M)
    assert system.mails("eve@local.com", made) == []
    assert system.run(*alex, "--generate", "password=x").exit_code == 2


def test_an_account_is_added_with_an_answer_and_started(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a mailbox with mail
    fields = system.external(SUPPORT)
    system.provider.put(SUPPORT, b"To: support@company.com\nSubject: lies-there\n\nHi\n")
    servers = [f"{name}.{key}={value}" for name in ("pop3", "smtp") for key, value in fields[name].items()]
    add = ("external", "add", SUPPORT, f"password={PASSWORD}", "poll_seconds=1", *servers)
    # when no answer is given, nothing is added
    refused = system.run(*add)
    assert (refused.exit_code, "history: is missing" in refused.stderr) == (2, True)
    # and all that is missing is named at once
    refused = system.run("external", "add", SUPPORT, "poll_seconds=0")
    missing = re.findall(r"(\w+): is missing", refused.stderr)
    assert (refused.exit_code, missing) == (2, ["history", "password", "pop3", "smtp"]), refused.stderr
    assert "poll_seconds: 0" in refused.stderr
    # and on a terminal the command asks, with the number of mails
    with monkeypatch.context() as terminal:
        terminal.setattr(account_commands, "is_asked", lambda: True)
        asked = system.run(*add, stdin="maybe\nall\n")
    assert asked.exit_code == 0, asked.output
    assert f"{SUPPORT}: 1 mail is at the provider already." in asked.stdout
    assert asked.stdout.count("Deliver them (all), or leave them there (from_now)?") == 2
    assert "1 of them will be delivered once everybody is there and the account is started" in asked.stdout
    # then its mail waits for the start
    assert system.run("external", "start", SUPPORT).exit_code == 1
    assert "on hold" in system.run("external", "list").stdout
    system.run("local", "add", "alex@local.com", "user_name=Alex", f"external={SUPPORT}", f"password_hash={HASH}")
    until(lambda: system.json("held", "list"))
    assert system.mails("alex@local.com") == []
    assert "started for 1 person; 1 mail on hold is routed now" in system.run("external", "start", SUPPORT).stdout
    until(lambda: system.who_has("lies-there", ["alex@local.com"]))
    assert "is started already" in system.run("external", "start", SUPPORT).stdout
    assert system.json("external", "start", SUPPORT) == {"changed": []}


def test_an_unknown_certificate_is_trusted_by_the_printed_command(system: System) -> None:
    system.apply({"external_accounts": [system.external(SUPPORT)]})
    secure = ("pop3.tls=implicit", f"pop3.port={system.provider.pop3s_port}")
    system.run("external", "set", SUPPORT, *secure)
    # given a certificate that no known authority has signed
    done = system.run("external", "test", SUPPORT)
    assert done.exit_code == 1
    assert f"certificate: SHA-256 {system.provider.fingerprint}; issued by CN=" in done.stdout
    assert "for localhost, 127.0.0.1; valid 20" in done.stdout
    [shown] = [step["certificate"] for step in system.json("external", "test", SUPPORT) if "certificate" in step]
    assert (shown["server"], shown["fingerprint"]) == ("pop3", system.provider.fingerprint)
    # when the printed command is run
    [words] = re.findall(r"to trust this one: mailgroup (.*)", done.stdout)
    assert system.run(*words.split()).exit_code == 0
    # then the account works, and its file has the pin
    assert system.run("external", "test", SUPPORT).exit_code == 0
    assert system.json("external", "show", SUPPORT)["pop3"]["tls_fingerprint"] == system.provider.fingerprint
    system.run("external", "set", SUPPORT, "pop3.tls_fingerprint=")
    assert system.run("external", "test", SUPPORT).exit_code == 1


def test_an_external_account_is_not_removed_while_it_has_sharers(system: System) -> None:
    system.apply(system.company())
    done = system.run("external", "remove", SUPPORT)
    assert done.exit_code == 1
    assert "is shared by alex@local.com, jim@local.com" in done.stderr


def test_accounts_whose_delegate_is_removed_are_named(system: System) -> None:
    system.apply(system.company())
    system.run("local", "set", "jim@local.com", "delegate=alex@local.com")
    assert "jim@local.com: has no delegate any more" in system.run("local", "remove", "alex@local.com").stdout


def test_a_person_is_retired_by_one_command(system: System) -> None:
    # given a mail of Alex
    system.apply(system.company())
    system.provider.put(SUPPORT, b'To: "Alex" <support@company.com>\nSubject: of-alex\n\nHi\n')
    until(lambda: system.who_has("of-alex", ["alex@local.com"]))
    # when a colleague cannot take over, nothing is done
    refused = system.run(
        "local", "retire", "alex@local.com", "--mailbox-to", "jim@local.com", "--delegate", "kim@local.com"
    )
    assert refused.exit_code == 2
    assert "local account alex@local.com: delegate: 'kim@local.com': has to be another local" in refused.stderr
    assert system.who_has("of-alex", ["jim@local.com"]) == []
    # when another one can
    words = ("--mailbox-to", "jim@local.com", "--delegate", "jim@local.com", "--remove")
    done = system.json("local", "retire", "alex@local.com", *words)
    # then all of it is done, and future mail with the name reaches the colleague
    assert done["changed"][:2] == [
        "local account alex@local.com: 1 mail copied to jim@local.com",
        "local account alex@local.com: removed; its mail is kept for the retention time ('local restore' brings it "
        "back)",
    ]
    assert system.who_has("of-alex", ["jim@local.com"])
    assert system.json("local", "show", "jim@local.com")["aliases"] == ["Alex"]
    again = system.run("local", "retire", "alex@local.com")
    assert again.exit_code == 1 and "is a further address of jim@local.com" in again.stderr


def test_a_change_says_what_happens_to_mail_at_the_provider(system: System) -> None:
    # given a maildrop with a mail that is fetched already
    system.apply(system.company())
    system.provider.put(SUPPORT, b"To: support@company.com\nSubject: fetched-before\n\nHi\n")
    until(lambda: system.who_has("fetched-before", ["alex@local.com"]))
    # when it is to be deleted there later, and when the server gets another name
    later = system.run("external", "set", SUPPORT, "delete_after_days=7").stdout
    renamed = system.run("external", "set", SUPPORT, "pop3.host=localhost", f"password={PASSWORD}").stdout
    # then no mail is announced to be delivered again
    assert "fetched mail will be deleted at the provider 7 days after it was fetched" in later
    assert " 0 of them will be delivered" in renamed
    assert "were fetched already" in renamed


def test_held_mail_is_delivered_after_a_local_account_is_enabled(system: System) -> None:
    company = system.company()
    company["local_accounts"] = [local("Alex", enabled=False)]
    company["external_accounts"] = company["external_accounts"][:1]
    system.apply(company)
    system.provider.put(SUPPORT, b"To: support@company.com\nMessage-ID: <held@c.example>\n\nheld-mail\n")
    until(lambda: [mail for mail in system.json("held", "list") if mail["message_id"] == "held@c.example"])
    assert any("held" in problem for problem in system.json("status")["problems"])

    system.run("local", "enable", "alex@local.com")
    until(lambda: system.who_has("held-mail", ["alex@local.com"]))
    until(lambda: system.run("status").exit_code == 0)
    history = system.run("trace", "<held@c.example>").stdout
    assert history == system.run("trace", "held@c.example").stdout
    assert "delivered  alex@local.com: rule 5: " in history


def test_the_queue_shows_why_a_mail_waits(system: System) -> None:
    system.apply(system.company())
    system.run("external", "set", SUPPORT, "smtp.port=1")
    system.submit("alex@local.com", ["anna@customer.example"], b"Subject: waits\r\n\r\nHi\r\n")
    [waiting] = until(lambda: [mail for mail in system.json("queue", "list") if mail["why"]])
    assert "connection refused" in waiting["why"]
    assert f"{waiting['id']}: relaying: " in system.run("queue", "list").stdout
    assert system.run("queue", "cancel", str(waiting["id"])).exit_code == 0
    assert system.run("queue", "cancel", str(waiting["id"])).exit_code == 1


def test_no_table_cuts_or_breaks_text_in_a_pipe(system: System) -> None:
    address = f"{'long' * 20}@company.com"
    system.apply({"external_accounts": [system.external(address)], "local_accounts": []})
    assert address in system.run("external", "list").stdout
    assert PASSWORD not in system.run("external", "show", address).stdout


def test_skipped_mails_are_listed_and_acknowledged(system: System) -> None:
    system.apply({"external_accounts": [system.external(SUPPORT)], "local_accounts": []})
    assert system.run("external", "skipped", SUPPORT, "--json").stdout.strip() == "[]"
    assert "acknowledged 0 mails" in system.run("external", "skipped", SUPPORT, "--acknowledge").stdout
    assert system.run("external", "skipped", SUPPORT, "--retry", "--id", "999999").exit_code == 1
    assert system.run("external", "skipped", SUPPORT, "--id", "1").exit_code == 2


def test_the_logs_tell_the_way_of_a_mail_between_colleagues(system: System) -> None:
    system.apply(system.company())
    system.submit(
        "alex@local.com", ["jim@local.com"], b"Subject: lunch-today\r\nMessage-ID: <lunch@local.com>\r\n\r\nHi\r\n"
    )
    until(lambda: system.who_has("lunch-today", ["jim@local.com"]))
    [traced] = system.json("trace", "lunch@local.com")
    assert (traced["events"][0]["event"], traced["events"][-1]["event"]) == ("submitted", "delivered")
    # by the id of the submission, though the mail inside has another one
    told = until(lambda: [line for line in logged(system, traced["id"]) if line["event"] == "delivered"])
    assert told[0]["service"] == "mailbox"
    lines = logged(system, traced["id"])
    assert lines[0]["event"] == "submitted" and [line["timestamp"] for line in lines] == sorted(
        line["timestamp"] for line in lines
    )


def logged(system: System, mail_id: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in system.run("logs", "--json", "--mail", str(mail_id)).stdout.splitlines()]
