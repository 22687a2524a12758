"""services/admin/accounts/plan.py: the difference between stored accounts and a file, without a database."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from services.admin.accounts.apply import is_other_maildrop
from services.admin.accounts.change_lines import describe_change, detail_on_page
from services.admin.accounts.conflicts import find_conflicts
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import check, read_file
from services.admin.accounts.plan import AccountsPlan, build_local, expected_accounts, plan_changes
from shared.languages.translation import in_language
from shared.model import External, ImapServer, Issuer, Local, OAuth, Relay, Server
from tests.company import COMPANY, HASH, SALES, SUPPORT, english_only, external, local

SERVER = Server("127.0.0.1", 1, "none")
IMAP = ImapServer("h", 993, "implicit", folders=("INBOX", "Aufträge"))


def stored_external(address: str) -> External:
    return External(1, address, True, "x", b"", SERVER, (Relay(SERVER),), 60, "all", None, False, True, ())


def stored_local(name: str, account_id: int = 1, delegate_id: int | None = None) -> Local:
    return Local(account_id, f"{name.lower()}@local.com", True, HASH, name, (), (), 1, delegate_id)


def planned(
    document: dict[str, Any], externals: list[External], people: list[Local], prune: bool = False
) -> AccountsPlan:
    return plan_changes(check(document), externals, people, prune)


def test_everything_in_a_file_is_saved_beside_what_is_stored() -> None:
    support, alex = stored_external("SUPPORT@company.com"), stored_local("Alex")
    plan = planned(COMPANY, [support], [alex])
    assert [(entry.address, old) for entry, old in plan.save_externals] == [(SUPPORT, support), (SALES, None)]
    assert [(entry.user_name, old) for entry, old in plan.save_locals] == [
        ("Alex", alex),
        ("Jim", None),
        ("Kim", None),
        ("Tom", None),
    ]
    assert (plan.remove_locals, plan.remove_externals) == ([], [])


@pytest.mark.parametrize("prune", [True, False])
def test_accounts_that_the_file_does_not_name_are_removed_only_to_prune(prune: bool) -> None:
    sales, tom = stored_external(SALES), stored_local("Tom")
    plan = planned({"external_accounts": [external()], "local_accounts": [local("Alex")]}, [sales], [tom], prune)
    assert (plan.remove_externals, plan.remove_locals) == (([sales], [tom]) if prune else ([], []))


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (
            {"external_accounts": [external(), external()]},
            f"external account {SUPPORT}: address: '{SUPPORT}' is given twice",
        ),
        (
            {"local_accounts": [local("Alex", SALES)]},
            f"local account alex@local.com: external: '{SALES}': there is no such external account; "
            f"there are: {SUPPORT}",
        ),
        (
            {"local_accounts": [local("Alex", delegate="tom@local.com")]},
            "local account alex@local.com: delegate: 'tom@local.com': there is no such local account; "
            "there are: alex@local.com",
        ),
        (
            {"local_accounts": [{key: value for key, value in local("Alex").items() if key != "password_hash"}]},
            "local account alex@local.com: password: is missing, and none is stored",
        ),
    ],
)
def test_a_file_that_refers_to_nothing_or_lacks_something_has_no_plan(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(AccountsError) as caught:
        planned(document, [stored_external(SUPPORT)], [])
    assert caught.value.lines == [problem] and english_only(caught.value) == []


def test_mistakes_of_the_file_and_of_the_whole_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "accounts.yaml"
    file.write_text(
        "external_accounts:\n"
        f"- {{address: {SALES}, password: x, pop3: {{host: h}}, smtp: {{host: h}}, poll_seconds: 0}}\n"
        "local_accounts:\n"
        f"- {{address: alex@local.com, user_name: Tom, password: x, external: {SUPPORT}}}\n"
        f"- {{address: jim@local.com, user_name: Jim, password: x, external: suport@company.com}}\n"
        f"- {{address: kim@local.com, user_name: Kim, password: x, external: {SALES}, delegate: kimm@local.com}}\n"
        f"- {{address: ann@local.com, user_name: Ann, external: {SUPPORT}}}\n"
    )
    with pytest.raises(AccountsError) as caught:
        plan_changes(read_file(file), [stored_external(SUPPORT)], [stored_local("Tom")], prune=False)
    assert [(problem.address, problem.field_name, problem.where) for problem in caught.value.problems] == [
        (SALES, "poll_seconds", f"{file}: line 2, column 93"),
        ("alex@local.com", "user_name", f"{file}: line 4, column 40"),
        ("jim@local.com", "external", f"{file}: line 5, column 67"),
        ("kim@local.com", "delegate", f"{file}: line 6, column 96"),
        ("ann@local.com", "password", f"{file}: line 7, column 3"),
    ]
    assert "did you mean support@company.com?" in caught.value.lines[2]
    assert "did you mean kim@local.com?" in caught.value.lines[3]


@pytest.mark.parametrize("saved", ["alex@local.com", "jim@local.com"])
def test_the_account_that_is_saved_is_told_of_a_name_that_is_taken(saved: str) -> None:
    people = [replace(stored_local("Alex", 1), user_name="Same"), replace(stored_local("Jim", 2), user_name="Same")]
    [problem] = find_conflicts([stored_external(SUPPORT)], people, {("local", saved)})
    assert (problem.address, problem.field) == (saved, ("user_name",))


def test_accounts_are_expected_as_a_plan_leaves_them() -> None:
    stored = [stored_local("Alex", 1, delegate_id=2), stored_local("Tom", 2)]
    document = {
        "external_accounts": [external()],
        "local_accounts": [local("Alex"), local("Jim", delegate="alex@local.com")],
    }
    plan = planned(document, [stored_external(SUPPORT)], stored, prune=True)
    externals, people = expected_accounts(plan, [stored_external(SUPPORT)], stored)
    assert [(external.address, external.id) for external in externals] == [(SUPPORT, 1)]
    assert [(p.address, p.id, p.delegate_id) for p in people] == [
        ("alex@local.com", 1, None),
        ("jim@local.com", -2, 1),
    ]


def test_a_person_who_is_to_share_an_account_that_is_pruned_has_no_plan() -> None:
    document = {"external_accounts": [external(SALES)], "local_accounts": [local("Alex")]}
    with pytest.raises(AccountsError, match="there is no such external account; there are: sales"):
        planned(document, [stored_external(SUPPORT)], [], prune=True)
    assert planned(document, [stored_external(SUPPORT)], []).save_locals


def test_a_renamed_person_keeps_id_delegate_and_the_former_name() -> None:
    old = stored_local("Alex", 7, delegate_id=3)
    [entry] = check({"local_accounts": [local("Alex", user_name="Sascha", aliases=["Al", "alex"])]}, "t").local_accounts
    new = build_local(entry, old, 1, HASH)
    assert (new.id, new.delegate_id, new.user_name) == (7, 3, "Sascha")
    assert (new.aliases, new.former_names) == (("Al",), ("Alex",))
    changed = "local account alex@local.com: changed "
    line = describe_change(old, new)
    assert str(line) == f"{changed}user_name Alex -> Sascha, aliases none -> Al, former_names none -> Alex"
    on_page = "User name: Alex -> Sascha; Further names: none -> Al; Former names: none -> Alex"
    assert line.on_page == changed + on_page
    typed = "User name (user_name): Alex -> Sascha; Further names (aliases): none -> Al; Former names: none -> Alex"
    assert line.in_command == changed + typed


@pytest.mark.parametrize(
    ("given", "was_weak", "weak"),
    [
        ({"password": "nine char"}, False, True),
        ({"password": "ten  chars"}, True, False),
        ({}, True, True),
        ({}, False, False),
        ({"password_hash": HASH}, True, True),
        ({"password_hash": HASH.replace("m=19456", "m=19457")}, True, False),
    ],
)
def test_a_weak_password_is_known_until_another_is_set(given: dict[str, str], was_weak: bool, weak: bool) -> None:
    fields = {name: value for name, value in local("Alex").items() if name != "password_hash"}
    entry = check({"local_accounts": [fields | given]}, "test").local_accounts[0]
    old = Local(1, "alex@local.com", True, HASH, "Alex", (), (), 1, None, weak_password=was_weak)
    new = build_local(entry, old, 1, given.get("password_hash", HASH))
    assert new.weak_password is weak
    line = describe_change(old, replace(new, password_hash="other"))
    assert str(line) == "local account alex@local.com: changed password"  # said once
    assert line.in_command == "local account alex@local.com: changed Login password (password)"


OTHER_SERVER = Server("127.0.0.2", 2, "implicit")
OTHERS: dict[str, Any] = {
    "address": "x@local.com",
    "enabled": False,
    "login": "y",
    "password": b"sealed",
    "pop3": OTHER_SERVER,
    "relays": (Relay(OTHER_SERVER),),
    "poll_seconds": 61,
    "history": "from_now",
    "delete_after_days": 1,
    "delete_history": True,
    "reply_to_author": False,
    "aliases": ("z",),
    "oauth": OAuth("google", Issuer("https://x.example/token", "mail"), "client"),
    "answer_notes": True,
    "reply_tag": True,
    "hold": True,
    "password_hash": "other",
    "user_name": "Sam",
    "addresses": ("z@local.com",),
    "external_id": 2,
    "delegate_id": 2,
    "former_names": ("Al",),
    "weak_password": True,
    "junk": True,
    "language": "de",
}
"""Another value for each field of an account that a change may name."""


@pytest.mark.parametrize("old", [stored_external(SUPPORT), stored_local("Alex")], ids=["external", "local"])
def test_each_field_that_changes_has_a_label_for_people(old: External | Local) -> None:
    for name in (each.name for each in fields(old) if each.compare and each.name not in ("id", "imap")):
        # given an account of which one field has another value
        new = replace(old, **{name: OTHERS[name]})
        line = describe_change(old, new, "sales@company.com", ("none", "jim@local.com"))
        [change] = line.fields
        # then the page shows a label instead of the field's name, and the command both
        assert line.on_page != str(line) and f"changed {change.name}" not in line.on_page
        assert name == "former_names" or f" ({change.name})" in line.in_command
        # and the page of the record shows what the page said
        stored, shown = (each.partition(": ")[2] for each in (str(line), line.on_page))
        assert detail_on_page(f"changed {line.kind} account", stored) == shown.removeprefix("changed ")


def test_the_record_of_a_change_is_shown_in_the_language_of_its_reader() -> None:
    stored = (
        "changed user_name Ann, the enabled -> Sam, enabled true -> false, delegate none -> jim@local.com, password"
    )
    english = (
        "User name: Ann, the enabled -> Sam; Enabled: true -> false; Delegate: none -> jim@local.com; Login password"
    )
    assert detail_on_page("changed local account", stored) == english
    with in_language("de"):
        shown = detail_on_page("changed local account", stored)
        relay = detail_on_page("changed external account", "changed smtp[1].port 25 -> 587")
        other = detail_on_page("made a token", "observer, days: 9")
        began = detail_on_page("started external account", "external account a@x.example: started for 2 people; 1 mail")
    assert shown.startswith("Name: Ann, the enabled -> Sam; ") and ": ja -> nein; " in shown
    assert relay == "Zweiter SMTP-Server: SMTP-Port: 25 -> 587" and other == "Beobachter, Tage: 9"
    assert began.startswith("externes Konto a@x.example: für 2 Personen gestartet")


def test_a_change_of_the_protocol_names_both_servers_and_the_folders() -> None:
    old = stored_external(SUPPORT)
    line = describe_change(old, replace(old, pop3=None, imap=IMAP))
    changed = f"external account {SUPPORT}: changed "
    assert str(line) == f"{changed}pop3 127.0.0.1:1/none -> none, imap none -> h:993/implicit (INBOX, Aufträge)"
    assert line.on_page == (
        f"{changed}POP3 server: 127.0.0.1:1/none -> none; IMAP server: none -> h:993/implicit (INBOX, Aufträge)"
    )


def test_an_account_has_one_server_to_fetch_from() -> None:
    old = stored_external(SUPPORT)
    assert (old.protocol, old.incoming) == ("pop3", SERVER)
    new = replace(old, pop3=None, imap=IMAP)
    assert (new.protocol, new.incoming) == ("imap", IMAP)
    for wrong in (None, IMAP):
        with pytest.raises(ValueError, match="by POP3 or by IMAP"):
            replace(old, pop3=None if wrong is None else SERVER, imap=wrong)


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"poll_seconds": 1}, False),
        ({"pop3": Server("127.0.0.1", 995, "implicit")}, False),
        ({"pop3": Server("other.example", 1, "none")}, True),
        ({"login": "y"}, True),
        ({"pop3": None, "imap": ImapServer("imap.example", 993, "implicit")}, False),
        ({"pop3": None, "imap": ImapServer("imap.example", 993, "implicit"), "login": "y"}, True),
    ],
    ids=["interval", "port", "host", "login", "protocol", "protocol and login"],
)
def test_another_protocol_alone_is_no_other_maildrop(change: dict[str, Any], other: bool) -> None:
    old = stored_external(SUPPORT)
    assert is_other_maildrop(old, replace(old, **change)) is other


def test_what_the_system_learns_by_itself_is_no_change() -> None:
    learnt = replace(stored_external(SUPPORT), relays=(Relay(SERVER, size=1000, refused=900),))
    line = describe_change(learnt, replace(stored_external(SUPPORT), poll_seconds=30))
    assert str(line) == f"external account {SUPPORT}: changed poll_seconds 60 -> 30"
