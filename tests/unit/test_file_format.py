"""The accounts file: every mistake is named with its field, its value and what is allowed."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import ExternalFields, ImapFields, LocalFields, SmtpFields, check, read_file
from tests.company import COMPANY, SUPPORT, by_imap, english_only, external, local


def complaints(document: Any) -> str:
    with pytest.raises(AccountsError) as caught:
        check(document, "accounts.yaml")
    assert english_only(caught.value) == []
    return str(caught.value)


def test_the_manuals_company_is_accepted() -> None:
    accounts = check(COMPANY, "accounts.yaml")
    assert [account.address for account in accounts.external_accounts] == [SUPPORT, "sales@company.com"]


@pytest.mark.parametrize(
    ("tls", "pop3", "imap", "smtp"),
    [("none", 110, 143, 25), ("starttls", 110, 143, 587), ("implicit", 995, 993, 465)],
)
def test_ports_default_to_those_of_the_tls_mode(tls: str, pop3: int, imap: int, smtp: int) -> None:
    server = {"host": "mail.company.com", "tls": tls}
    accounts = [external(pop3=server, smtp=server), by_imap(server, smtp=server)]
    by_pop3, by_the_other = check({"external_accounts": accounts}, "x").external_accounts
    assert (by_pop3.incoming.port, by_the_other.incoming.port) == (pop3, imap)
    assert by_pop3.relays[0].port == by_the_other.relays[0].port == smtp


def test_tls_defaults_to_implicit_and_login_to_the_address() -> None:
    server = {"host": "mail.company.com"}
    [account] = check({"external_accounts": [external(pop3=server, smtp=server)]}, "x").external_accounts
    assert (account.incoming.tls, account.login, account.relays[0].auth) == ("implicit", SUPPORT, True)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (None, ["INBOX"]),
        (["INBOX"], ["INBOX"]),
        (["inbox", "Support & Verkauf", "Aufträge/Größe", "日本語", "50 %*"], None),
        (["Gro\u0308ße"], ["Größe"]),  # NFC, as RFC 9051 wants it
    ],
)
def test_folders_are_named_as_people_write_them(given: list[str] | None, stored: list[str] | None) -> None:
    server: dict[str, Any] = {"host": "imap.company.com"} | ({"folders": given} if given else {})
    [account] = check({"external_accounts": [by_imap(server)]}, "x").external_accounts
    assert account.imap is not None and account.pop3 is None and account.protocol == "imap"
    assert account.imap.folders == (stored or ["INBOX", *(given or [])[1:]])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            {"external_accounts": [external(pasword="x")]},
            [
                f"external account {SUPPORT}: pasword: there is no such field; did you mean password?",
            ],
        ),
        (
            {"external_accounts": [external(pop3={"host": "h", "prot": 1})]},
            ["pop3.prot: there is no such field; did you mean port?"],
        ),
        (
            {"external_accounts": [external(smtp={"host": "h", "xyz": 1})]},
            ["smtp.xyz: there is no such field; allowed here are host, port, tls"],
        ),
        ({"externals": []}, ["externals: there is no such field; there are: external_accounts, local_accounts"]),
        ({"local_acounts": []}, ["local_acounts: there is no such field; did you mean local_accounts?"]),
        ({"external_accounts": [external(poll_seconds=0)]}, ["poll_seconds: 0 is not a number from 1 to 86400"]),
        (
            {"external_accounts": [external(pop3={"host": "h", "port": 70000})]},
            ["pop3.port: 70000 is not a number from 1 to 65535"],
        ),
        (
            {"external_accounts": [external(pop3={"host": "h", "tls": "ssl"})]},
            ["pop3.tls: 'ssl' is not one of none, starttls, implicit"],
        ),
        ({"external_accounts": [external(pop3={"host": "h h"})]}, ["pop3.host", "'h h'", "a name or an IP address"]),
        ({"external_accounts": [external(history="some")]}, ["history: 'some' is not one of all, from_now"]),
        ({"external_accounts": [external(enabled="yes")]}, ["enabled", "'yes'", "true or false"]),
        ({"external_accounts": [external("support")]}, ["address", "'support'", "name@domain"]),
        ({"external_accounts": [external("a" * 200 + "@b.c")]}, ["at most 200 octets"]),
        (
            {"external_accounts": [{"address": SUPPORT}]},
            ["pop3: is missing, and imap, too: one of them names the server", "smtp: is missing"],
        ),
        (
            {"external_accounts": [external(imap={"host": "h"})]},
            [f"external account {SUPPORT}: pop3: imap is given, too; mail is fetched from one of them"],
        ),
        ({"external_accounts": [by_imap({"host": "h", "auth": True})]}, ["imap.auth: there is no such field"]),
        ({"external_accounts": [by_imap({"folders": ["INBOX"]})]}, ["imap.host: is missing"]),
        ({"external_accounts": [by_imap(None)]}, ["pop3: is missing, and imap, too"]),
        ({"external_accounts": [by_imap({"host": "h", "tls": "ssl"})]}, ["imap.tls: 'ssl' is not one of none"]),
        (
            {"external_accounts": [by_imap({"host": "h", "folders": "INBOX"})]},
            ["imap.folders: 'INBOX' is not a list, for example [one, two]"],
        ),
        ({"external_accounts": [by_imap({"host": "h", "folders": []})]}, ["imap.folders: from 1 to 20 folders"]),
        (
            {"external_accounts": [by_imap({"host": "h", "folders": [f"f{n}" for n in range(21)]})]},
            ["imap.folders: from 1 to 20 folders are allowed"],
        ),
        (
            {"external_accounts": [by_imap({"host": "h", "folders": ["Inbox", "Junk", "INBOX"]})]},
            ["imap.folders: 'INBOX' is named twice"],
        ),
        (
            {"external_accounts": [by_imap({"host": "h", "folders": ["INBOX", " ", "a\r\nb", "x" * 201]})]},
            [
                "imap.folders[1]: ' ': a folder is named by at least one visible character",
                "imap.folders[2]: 'a\\r\\nb': a folder is named",
                "imap.folders[3]: ",
                "is longer than 200 characters",
            ],
        ),
        ({"local_accounts": [{"address": "a@b.c", "user_name": "A"}]}, ["external", "is missing"]),
        ({"local_accounts": [local("Alex", user_name="  ")]}, ["user_name", "visible letter"]),
        ({"local_accounts": [local("Alex", user_name="A\r\nBcc: x")]}, ["user_name", "control characters"]),
        ({"local_accounts": [local("Alex", password="x")]}, ["only one of password, password_file, password_hash"]),
        ({"local_accounts": [local("Alex", password_hash="plain")]}, ["password_hash", "argon2id"]),
        ({"external_accounts": [external(pop3={"host": "h", "tls_fingerprint": "12"})]}, ["64 hex digits"]),
        ({"local_accounts": {}}, ["local_accounts", "list"]),
        ([], ["is made of the fields external_accounts, local_accounts"]),
    ],
)
def test_a_mistake_is_named(document: Any, words: list[str]) -> None:
    said = complaints(document)
    assert all(word in said for word in words), said


def test_every_mistake_is_named_at_once() -> None:
    said = complaints({"external_accounts": [external(pasword="x", poll_seconds=-1)], "local_accounts": [{}]})
    assert len(said.splitlines()) >= 4


@pytest.mark.parametrize("value", [None, True, 7, 1.5, "x", "", [], [1], {}, {"a": 1}], ids=repr)
def test_no_wrong_type_is_told_in_the_words_of_a_library(value: Any) -> None:
    entry = dict.fromkeys(ExternalFields.model_fields, value)
    inside = external(
        pop3=dict.fromkeys(SmtpFields.model_fields, value),
        imap=dict.fromkeys(ImapFields.model_fields, value),
        oauth={"issuer": value},
    )
    person = dict.fromkeys(LocalFields.model_fields, value)
    for document in ({"external_accounts": [entry, inside], "local_accounts": [person]}, {"local_accounts": [value]}):
        said = complaints(document)
        assert not re.search(
            r"[Ii]nput|should|dict|instance|Fields|NoneType|valid (string|integer|list)|None|True", said
        )


def test_each_mistake_of_a_file_has_its_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "accounts.yaml"
    file.write_text(
        "external_accounts:\n"
        "  - address: support@company.com\n"
        "    pop3: {host: pop3.company.com, port: abc}\n"
        "    smtp: {host: smtp.company.com, tls: startls}\n"
        "local_accounts:\n"
        "  - address: alex@local.com\n"
        "    usr_name: Alex\n"
        "    external: support@company.com\n"
    )
    with pytest.raises(AccountsError) as caught:
        read_file(file).require_valid()
    assert caught.value.lines == [
        f"{file}: line 3, column 42: external account {SUPPORT}: pop3.port: 'abc' is not a number from 1 to 65535",
        f"{file}: line 4, column 41: external account {SUPPORT}: smtp.tls: 'startls' is not one of none, starttls, "
        "implicit; did you mean starttls?",
        f"{file}: line 6, column 5: local account alex@local.com: user_name: is missing",
        f"{file}: line 7, column 5: local account alex@local.com: usr_name: there is no such field; did you mean "
        "user_name?",
    ]


def test_a_problem_names_its_field_for_a_form() -> None:
    with pytest.raises(AccountsError) as caught:
        check({"external_accounts": [external(pop3={"host": "h", "port": "abc"}, aliases=["x"])]})
    port, alias = caught.value.problems
    assert (port.kind, port.address, port.field, port.value) == ("external", SUPPORT, ("pop3", "port"), "'abc'")
    assert (alias.field_name, alias.path) == ("aliases[0]", ("external_accounts", 0, "aliases", 0))


def test_a_wrong_password_never_shows_in_the_message() -> None:
    assert "hunter" not in complaints({"external_accounts": [external(password=["hunter"])]})


def test_a_file_that_is_not_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "accounts.yaml"
    file.write_text("external_accounts:\n  - address: [\n")
    with pytest.raises(AccountsError, match=r"accounts.yaml: line \d+, column \d+: not YAML"):
        read_file(file)


def test_a_field_given_twice_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "accounts.yaml"
    file.write_text("external_accounts: []\nexternal_accounts: []\n")
    with pytest.raises(AccountsError, match="external_accounts"):
        read_file(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccountsError, match="No such file"):
        read_file(tmp_path / "none.yaml")


def test_json_is_accepted_and_yaml_words_keep_their_meaning_of_yaml_1_2(tmp_path: Path) -> None:
    file = tmp_path / "accounts.json"
    file.write_text(
        '{"local_accounts": [{"address": "no@local.com", "user_name": "No",\n'
        '\t"external": "support@company.com", "password": "12:30:45"}]}'
    )
    [person] = read_file(file).local_accounts
    assert (person.user_name, person.password) == ("No", "12:30:45")
    file.write_text("local_accounts:\n- {address: no@local.com, user_name: no, external: support@company.com}")
    assert read_file(file).local_accounts[0].user_name == "no"


def test_a_password_file_is_read_beside_the_accounts_file(tmp_path: Path) -> None:
    (tmp_path / "alex.txt").write_text("s3cret\n")
    file = tmp_path / "accounts.yaml"
    file.write_text(
        "local_accounts:\n- {address: a@local.com, user_name: A, external: s@c.com, password_file: alex.txt}"
    )
    assert read_file(file).local_accounts[0].password == "s3cret"
    (tmp_path / "alex.txt").unlink()
    with pytest.raises(AccountsError, match=r"password_file: alex.txt: No such file"):
        read_file(file).require_valid()


def test_json_escapes_of_letters_beyond_the_bmp_are_one_letter(tmp_path: Path) -> None:
    file = tmp_path / "accounts.json"
    file.write_text(json.dumps({"local_accounts": [local("Alex", user_name="Alex \U0001f389")]}))
    assert read_file(file).local_accounts[0].user_name == "Alex \U0001f389"
    file.write_text('{"local_accounts": [{"address": "a@b.c", "user_name": "\\ud83c", "external": "s@c.com"}]}')
    with pytest.raises(AccountsError, match="user_name"):
        read_file(file).require_valid()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # 271 octets that stand for 60 million values
        (
            "external_accounts: []\n"
            + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("xabcdef", "abcdefg", strict=True)),
            "line 2, column 4: anchors and aliases are not allowed: &a; write it out",
        ),
        ("local_accounts: &a\n- *a\n", "line 1, column 17: anchors and aliases are not allowed: &a"),
        ("local_accounts:\n- *a\n", "line 2, column 3: anchors and aliases are not allowed: *a"),
        ("x: " + "[" * 50_000, "line 1, column 23: lists and mappings may be 20 deep at most"),
        ("x: [" + "1," * 250_000 + "]", "line 1, column 439999: at most 220000 names and values are allowed"),
        ("x" * (4 * 1024 * 1024 + 1), "is longer than 4194304 octets"),
    ],
    ids=["bomb", "recursion", "alias", "depth", "values", "octets"],
)
def test_a_file_that_stands_for_more_than_it_says_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "accounts.yaml"
    file.write_text(text)
    started = time.process_time()
    with pytest.raises(AccountsError) as caught:
        read_file(file)
    assert said in str(caught.value)
    assert time.process_time() - started < 60  # some seconds; 60 million values would take hours
