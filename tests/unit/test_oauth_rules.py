"""The field ``oauth`` of the accounts file: each way to get access tokens, and what it does not take."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from services.admin.accounts.errors import AccountsError
from services.admin.accounts.export import external_fields
from services.admin.accounts.file_format import ExternalFields, check
from services.admin.accounts.plan import build_external, build_oauth, plan_changes
from shared.model import External
from tests.company import SALES, SUPPORT, english_only, external
from tests.token_server import client_key

ISSUER = {"token_url": "https://issuer.example/token", "scope": "mail"}
KEY = client_key().pem
APPLICATION = {"grant": "client_credentials", "issuer": "microsoft", "client_id": "us", "tenant": "company.com"}
ROBOT = {"grant": "jwt_bearer", "issuer": "google", "client_id": "robot@p.example", "client_key": KEY}


def entry(oauth: dict[str, Any], address: str = SUPPORT, **fields: Any) -> dict[str, Any]:
    account = external(address, oauth=oauth, **fields)
    del account["password"]
    return account


def read(oauth: dict[str, Any]) -> ExternalFields:
    return check({"external_accounts": [entry(oauth)]}, "f").external_accounts[0]


def stored(given: ExternalFields, account_id: int = 1) -> External:
    return build_external(given, None, b"", build_oauth(given), account_id)


@pytest.mark.parametrize(
    "oauth",
    [
        {"issuer": "google", "client_id": "us", "client_secret": "hush"},
        {"issuer": "microsoft", "client_id": "us", "tenant": "company.com"},
        {"issuer": "microsoft", "client_id": "us", "client_key": client_key(certified=True).pem},
        {"issuer": ISSUER, "client_id": "us", "client_key": KEY},
        APPLICATION | {"client_secret": "hush"},
        APPLICATION | {"client_key": KEY, "tenant": "1c9f4d2a-0000-4000-8000-9be3fa1d7e55"},
        {"grant": "client_credentials", "issuer": ISSUER, "client_id": "us", "client_secret": "hush"},
        ROBOT,
        ROBOT | {"client_key": client_key().as_google_json("robot@p.example")},
        {"grant": "jwt_bearer", "issuer": ISSUER, "client_id": "us", "client_key": KEY},
        {"same_as": SALES},
    ],
    ids=range(11),
)
def test_each_way_to_get_tokens_is_accepted_and_exported_without_secrets(oauth: dict[str, Any]) -> None:
    account = stored(read(oauth))
    assert account.oauth is not None
    assert account.oauth.needs_consent == ("grant" not in oauth and "same_as" not in oauth)
    shown = external_fields(account)["oauth"]
    assert shown == {name: value for name, value in oauth.items() if name not in ("client_secret", "client_key")}
    # and what is exported means the same
    assert build_oauth(read(shown)) == account.oauth


@pytest.mark.parametrize(
    ("oauth", "complaints"),
    [
        ({}, ["issuer: is missing", "client_id: is missing"]),
        (
            {"grant": "password", "issuer": "google", "client_id": "x"},
            ["grant: 'password' is not one of authorization, client_credentials, jwt_bearer"],
        ),
        (
            {"same_as": SALES, "grant": "jwt_bearer", "issuer": "google", "client_id": "us", "client_secret": "hush"},
            [
                f"{name}: {value}is not allowed beside same_as: the access tokens are those of {SALES}"
                for name, value in (
                    ("grant", "'jwt_bearer' "),
                    ("issuer", "'google' "),
                    ("client_id", "'us' "),
                    ("client_secret", ""),
                )
            ],
        ),
        ({"same_as": "sales"}, ["same_as: 'sales': an address has the form name@domain"]),
        (
            APPLICATION | {"issuer": "google"},
            [
                "issuer: 'google': has no grant client_credentials; it has jwt_bearer for a service account",
            ],
        ),
        (
            ROBOT | {"issuer": "microsoft"},
            ["issuer: 'microsoft': has no grant jwt_bearer; it has client_credentials for an application"],
        ),
        (APPLICATION | {"tenant": None}, ["tenant: is missing: the name or id of your organisation at Microsoft"]),
        (APPLICATION | {"tenant": "Common"}, ["tenant: 'Common': names no organisation"]),
        (APPLICATION | {"tenant": "a/b"}, ["tenant: 'a/b' is not the name or id of an organisation: letters, digits"]),
        (APPLICATION | {"tenant": "../x"}, ["tenant: '../x' is not the name"]),
        (APPLICATION | {"tenant": "x@evil.example"}, ["tenant: 'x@evil.example' is not the name"]),
        (APPLICATION | {"tenant": "a..b"}, ["tenant: 'a..b' is not the name"]),
        ({"issuer": "google", "client_id": "x", "tenant": "company.com"}, ["tenant: 'company.com' is for the issuer"]),
        (
            ROBOT | {"client_secret": "hush"},
            ["client_secret: is not used by jwt_bearer, which signs"],
        ),
        (
            APPLICATION | {"client_secret": "hush", "client_key": KEY},
            ["client_key: is not allowed beside client_secret"],
        ),
        (
            APPLICATION | {"client_key": KEY, "client_key_file": "key.pem"},
            ["client_key_file: 'key.pem' is not allowed beside client_key"],
        ),
        (
            {"issuer": "google", "client_id": "x", "client_key": KEY},
            ["client_key: is for the grant jwt_bearer; google takes a client_secret"],
        ),
        (ROBOT | {"client_key": "hush"}, ["client_key: is not one private key in PEM form"]),
        (
            ROBOT | {"client_key": client_key().as_google_json("other@p.example")},
            ["client_key: is the key of other@p.example, which has to be the client_id"],
        ),
        (
            {"grant": "jwt", "issuer": "gogle", "client_key": "hush", "tenant": "a b"},
            [
                "grant: 'jwt' is not one of",
                "issuer: 'gogle' is not one of google, microsoft",
                "client_id: is missing",
                "client_key: is not one private key",
                "tenant: 'a b' is not the name",
            ],
        ),
    ],
    ids=range(20),
)
def test_every_mistake_is_named_at_once(oauth: dict[str, Any], complaints: list[str]) -> None:
    with pytest.raises(AccountsError) as caught:
        read(oauth)
    lines = [line.partition("oauth.")[2] for line in caught.value.lines]
    assert len(lines) == len(complaints), lines
    for line, words in zip(lines, complaints, strict=True):
        assert line.startswith(words), (line, words)
    assert "hush" not in str(caught.value) and "BEGIN" not in str(caught.value)
    assert english_only(caught.value) == []


def test_a_key_is_read_from_the_file_that_google_gives(tmp_path: Path) -> None:
    (tmp_path / "robot.json").write_text(client_key().as_google_json("robot@p.example"))
    given = {name: value for name, value in ROBOT.items() if name != "client_key"} | {"client_key_file": "robot.json"}
    [account] = check({"external_accounts": [entry(given)]}, "f", tmp_path).external_accounts
    assert account.oauth is not None and account.oauth.client_key == KEY


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "is not a text file"),
        (b"hush", "is not one private key in PEM form"),
        (client_key().as_google_json("other@p.example").encode(), "is the key of other@p.example"),
    ],
    ids=range(4),
)
def test_a_key_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    given = APPLICATION | {"client_id": "robot@p.example", "client_key_file": "key"}
    with pytest.raises(AccountsError, match=f"oauth.client_key_file: .*{words}") as caught:
        check({"external_accounts": [entry(given)]}, "f", tmp_path)
    assert "hush" not in str(caught.value)
    # and no request names a file of this machine
    with pytest.raises(AccountsError, match="give the key itself"):
        check({"external_accounts": [entry(given)]}, "f")


# ------------------------------------------------------------------------------------------------ with the others


def plan_problems(entries: list[dict[str, Any]], before: list[External], prune: bool = False) -> list[str]:
    wanted = check({"external_accounts": entries}, "f")
    try:
        plan_changes(wanted, before, [], prune)
    except AccountsError as error:
        return error.lines
    return []


@pytest.mark.parametrize(
    ("oauth", "field"), [(APPLICATION, "client_secret"), (ROBOT | {"client_key": None}, "client_key")]
)
def test_a_secret_or_key_is_needed_and_stays_with_its_endpoint_and_servers(oauth: dict[str, Any], field: str) -> None:
    [line] = plan_problems([entry(oauth)], [])
    assert f"oauth.{field}: is missing, and none is stored" in line
    before = [stored(read(oauth))]
    # given an account that has one, it need not be given again
    assert plan_problems([entry(oauth)], before) == []
    # unless another server would get it, or the tokens
    moved = {"host": "192.0.2.1", "port": 995}
    [line] = plan_problems([entry(oauth, pop3=moved)], before)
    assert f"oauth.{field}: has to be given again" in line and "pop3.host 127.0.0.1 -> 192.0.2.1" in line
    elsewhere = {name: value for name, value in oauth.items() if name != "tenant"} | {"issuer": ISSUER}
    [line] = plan_problems([entry(elsewhere)], before)
    assert f"oauth.{field}: has to be given again" in line and "-> https://issuer.example" in line
    # or it is for another application, or another grant, which may have had none
    assert "is missing" in plan_problems([entry(oauth | {"client_id": "other@p.example"})], before)[0]
    by_person = [stored(read({"issuer": oauth["issuer"], "client_id": oauth["client_id"]}))]
    assert "is missing" in plan_problems([entry(oauth)], by_person)[0]
    given = {field: KEY if field == "client_key" else "hush"}
    assert plan_problems([entry(oauth | given, pop3=moved)], before) == []


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry({"same_as": "sals@company.com"}), external(SALES)], "'sals@company.com': there is no such external"),
        ([entry({"same_as": SALES}), external(SALES)], f"'{SALES}': has no access tokens; name an account with oauth"),
        ([entry({"same_as": SUPPORT})], "is this account itself"),
        (
            [entry({"same_as": SALES}), entry({"same_as": "c@company.com"}, SALES), entry(ROBOT, "c@company.com")],
            "has no access tokens of its own; name c@company.com",
        ),
        (
            [entry({"same_as": SALES}, smtp={"host": "192.0.2.1"}), entry(ROBOT, SALES)],
            "has other servers (127.0.0.1); access tokens are sent to no other ones",
        ),
    ],
    ids=range(5),
)
def test_the_other_account_has_to_have_tokens_and_the_same_servers(entries: list[dict[str, Any]], words: str) -> None:
    [line] = plan_problems(entries, [])
    assert "oauth.same_as: " in line and words in line


def test_an_account_whose_tokens_others_use_keeps_them() -> None:
    owner, user = stored(read(ROBOT)), stored(read({"same_as": SUPPORT}), 2)
    before = [owner, External(**{**{f: getattr(user, f) for f in External.__dataclass_fields__}, "address": SALES})]
    assert plan_problems([entry({"same_as": SUPPORT.upper()}, SALES)], before) == []
    # when it is to have a password, or other servers
    moved = {"host": "192.0.2.1"}
    for changed in (external(), entry(ROBOT, pop3=moved, smtp=moved)):
        [line] = plan_problems([changed], before)
        assert f"external account {SUPPORT}: oauth: {SALES} uses the access tokens of this account" in line
    # or is removed
    [line] = plan_problems([entry({"same_as": SUPPORT}, SALES)], before, prune=True)
    assert "there is no such external account" in line
    # but both may change at once
    assert plan_problems([external(), external(SALES)], before) == []


def test_the_stored_form_holds_no_secret() -> None:
    oauth = build_oauth(read(ROBOT))
    assert oauth is not None and "PRIVATE" not in str(asdict(oauth))
