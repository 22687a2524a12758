"""The SMTP servers of an account in the accounts file, on the command line, and in the lines about a change."""

from __future__ import annotations

from typing import Any

import pytest

from services.admin.accounts import export
from services.admin.accounts.change_lines import describe_change
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import ExternalFields, check
from services.admin.accounts.plan import build_external, find_secret_problems
from services.admin.accounts.relay_fields import merge_relays
from services.admin.cli.account_fields import parse_fields
from shared.model import External, Relay, Server
from tests.company import SUPPORT, external

ONE: dict[str, Any] = {"host": "smtp.one.example", "port": 465, "tls": "implicit", "auth": True, "connections": 2}
OWN: dict[str, Any] = ONE | {"host": "smtp.two.example", "login": "ours", "recipients_per_day": 500}
BY_TOKEN: dict[str, Any] = ONE | {"login": "box@two.example", "oauth": {"same_as": "sales@company.com"}}


def entry(smtp: Any, **fields: Any) -> ExternalFields:
    [found] = check({"external_accounts": [external(smtp=smtp, **fields)]}).external_accounts
    return found


def built(smtp: Any) -> External:
    wanted = entry(smtp)
    return build_external(wanted, None, b"sealed", None, 1, [b"own"] * len(wanted.relays))


def mistakes(smtp: Any) -> str:
    with pytest.raises(AccountsError) as caught:
        entry(smtp)
    return str(caught.value).replace(f"external account {SUPPORT}: ", "")


@pytest.mark.parametrize(
    ("smtp", "said"),
    [
        ([], "smtp: from 1 to 3 SMTP servers are allowed"),
        ([ONE] * 4, "smtp: from 1 to 3 SMTP servers are allowed"),
        ([ONE, ONE | {"host": "SMTP.one.example."}], "smtp: SMTP.one.example., port 465, is named twice"),
        ([ONE, {"port": 25}], "smtp[1].host: is missing"),
        ([ONE, ONE | {"host": "a b"}], "smtp[1].host: 'a b': a host is a name or an IP address"),
        ([ONE, ONE | {"hots": "x"}], "smtp[1].hots: there is no such field; did you mean host?"),
        (ONE | {"mails_per_minute": 0}, "smtp.mails_per_minute: 0 is not a number from 1 to 100000"),
        (
            [ONE | {"recipients_per_day": "many"}],
            "smtp[0].recipients_per_day: 'many' is not a number from 1 to 10000000",
        ),
        (
            ONE | {"auth": False, "login": "x"},
            "smtp.login: 'x': auth is false, so nobody logs in; leave one of them out",
        ),
        (
            ONE | {"password": "very secret"},
            "smtp.password: login is missing beside it; without both, the account's login and password are used",
        ),
        (
            OWN | {"password": "very secret", "password_file": "x"},
            "smtp: only one of password, password_file, oauth may be given, not password and password_file",
        ),
        (
            BY_TOKEN | {"password": "very secret"},
            "smtp: only one of password, password_file, oauth may be given, not password and oauth",
        ),
        (
            {name: value for name, value in BY_TOKEN.items() if name != "login"},
            "smtp.oauth: login is missing beside it",
        ),
        (BY_TOKEN | {"oauth": {"same_as": "nobody"}}, "smtp.oauth.same_as: 'nobody': an address has the form"),
        (
            BY_TOKEN | {"oauth": {"issuer": "google"}},
            "smtp.oauth.same_as: is missing",
        ),
        ([ONE, OWN | {"password_file": "x"}], "smtp[1].password_file: x is for a file beside the accounts file"),
        ("smtp.one.example", "smtp: is made of the fields host, port, tls"),
        ([7], "smtp[0]: is made of the fields host, port, tls"),
    ],
)
def test_a_mistake_names_the_field_and_what_is_allowed(smtp: Any, said: str) -> None:
    found = mistakes(smtp)
    assert found.startswith(said), found
    assert "very secret" not in found


def test_one_server_and_several_are_exported_as_they_are_written() -> None:
    assert export.external_fields(built(ONE))["smtp"] == ONE
    exported = export.external_fields(built([ONE, OWN | {"password": "x"}]))["smtp"]
    assert exported == [ONE, OWN]  # without the password
    assert export.external_fields(built(BY_TOKEN))["smtp"] == BY_TOKEN
    assert [relay.password for relay in built([OWN, BY_TOKEN]).relays] == [b"own", None]
    # and ports follow the encryption
    assert [relay.port for relay in entry([{"host": "a", "tls": "starttls"}, {"host": "b"}]).relays] == [587, 465]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        # an own password is for its host alone
        (ONE, OWN, ["smtp.password: is missing, and none is stored"]),
        (OWN, OWN, []),
        (OWN, BY_TOKEN, []),
        (BY_TOKEN, BY_TOKEN, []),
        (
            BY_TOKEN,
            OWN,
            [
                "smtp.password: has to be given again, because the stored one is for another server "
                "(smtp.host smtp.one.example -> smtp.two.example)"
            ],
        ),
        (OWN, OWN | {"port": 587, "login": "theirs"}, []),
        ([ONE, OWN], [OWN, ONE], []),
        (
            OWN,
            OWN | {"host": "smtp.other.example"},
            [
                "smtp.password: has to be given again, because the stored one is for another server "
                "(smtp.host smtp.two.example -> smtp.other.example)"
            ],
        ),
        ([ONE, ONE | {"port": 25}], [ONE, OWN], ["smtp[1].password: is missing, and none is stored"]),
        # the account's password is sent to no other host than before
        (ONE, [ONE, ONE | {"port": 587, "tls": "starttls"}], []),
        (
            ONE,
            [ONE, ONE | {"host": "smtp.other.example"}],
            [
                "password: has to be given again, because the stored one is for another server "
                "(smtp[1].host none -> smtp.other.example)"
            ],
        ),
        (
            [ONE, OWN],
            [ONE, ONE | {"host": "smtp.two.example"}],
            [
                "password: has to be given again, because the stored one is for another server "
                "(smtp[1].host smtp.two.example, with another login -> smtp.two.example)"
            ],
        ),
    ],
)
def test_a_password_is_asked_for_again_for_another_host(before: Any, after: Any, said: list[str]) -> None:
    wanted = entry(after)
    wanted.password = None
    found = find_secret_problems(wanted, built(before))
    assert [f"{problem.field_name}: {problem.said}" for problem in found] == said


def test_a_change_names_each_server() -> None:
    old, new = built(ONE), built([ONE | {"mails_per_minute": 30}, OWN])
    line = describe_change(old, new)
    account = f"external account {SUPPORT}: changed "
    assert str(line) == f"{account}smtp.mails_per_minute none -> 30, smtp[1] none -> smtp.two.example:465/implicit"
    assert line.on_page == (
        f"{account}SMTP mails a minute at most: none -> 30; Second SMTP server: none -> smtp.two.example:465/implicit"
    )
    own = describe_change(new, built([ONE | {"mails_per_minute": 30}, OWN | {"login": "theirs"}]))
    assert own.in_command == (f"{account}Second SMTP server: login user name (smtp[1].login): ours -> theirs")
    tokens = describe_change(built(ONE | {"login": "box@two.example", "password": "x"}), built(BY_TOKEN))
    assert tokens.in_command == (
        f"{account}SMTP login password (smtp.password); "
        "SMTP account with the access tokens (smtp.oauth.same_as): none -> sales@company.com"
    )


@pytest.mark.parametrize(
    ("stored", "words", "expected"),
    [
        (ONE, ["smtp.connections=5"], ONE | {"connections": 5}),
        (ONE, ["smtp[1].host=b", "smtp[1].tls=none"], [ONE, {"host": "b", "tls": "none"}]),
        ([ONE, OWN], ["smtp.host=a"], [ONE | {"host": "a"}, OWN]),
        ([ONE, OWN], ["smtp[1].recipients_per_day="], [ONE, OWN | {"recipients_per_day": None}]),
        ([ONE, OWN], ["smtp[1]="], ONE),
        (
            ONE,
            ["smtp.login=box@two.example", "smtp.oauth.same_as=sales@company.com"],
            BY_TOKEN,
        ),
        ([ONE, OWN], ["smtp[0]="], OWN),
        (
            [ONE, OWN],
            ["smtp[0].tls=starttls"],
            [{k: v for k, v in ONE.items() if k != "port"} | {"tls": "starttls"}, OWN],
        ),
        (None, ["smtp.host=a", "smtp[1].host=b"], [{"host": "a"}, {"host": "b"}]),
        ([ONE, OWN], ["smtp=[{host: c}]"], [{"host": "c"}]),
    ],
)
def test_single_fields_are_changed_by_position(stored: Any, words: list[str], expected: Any) -> None:
    assert merge_relays(SUPPORT, stored, parse_fields(words)["smtp"]) == expected


def test_a_position_beyond_the_next_one_is_refused() -> None:
    with pytest.raises(AccountsError) as caught:
        merge_relays(SUPPORT, ONE, parse_fields(["smtp[2].host=c"])["smtp"])
    words = "smtp[2]: the account has 1 SMTP servers; the next one is smtp[1]"
    assert str(caught.value) == f"external account {SUPPORT}: {words}"


def test_an_account_without_a_server_to_send_is_none() -> None:
    with pytest.raises(ValueError, match="by an SMTP server"):
        External(1, SUPPORT, True, "x", b"", Server("h", 1, "none"), (), 60, "all", None, False, True, ())
    assert Relay(Server("H", 25, "none"), login="me").place == "h:25 me"
