"""The REST API: tokens, roles, the round trip of an account, and arbitrary requests."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from shared import __version__
from tests import console, servers
from tests.company import COMPANY, SALES, SUPPORT, external, local
from tests.console import Browser, stored, text
from tests.token_server import account_fields, client_key, device_code, token_server

LONG = "API_LONG" in os.environ  # make api
HOW = ("--max-examples", "50") if LONG else ("--max-examples", "4", "--phases", "examples,coverage,fuzzing")
LEFT_OUT = ("--exclude-checks", "positive_data_acceptance", "--exclude-path-regex", "/tokens/")
"""A schema cannot express that a name is unique, or that a domain is not a public provider's. And a test that revokes
its own token reads refusals only."""


def token(browser: Browser, role: str) -> str:
    """A new token, as the page shows it."""
    shown = text(browser.post("/users", {"do": "token", "name": f"{role} script", "role": role}))
    found = re.search(r"mg_[\w-]{40,}", shown)
    assert found, shown
    return found[0]


class Script:
    """A program that shows a token."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.headers = f"{url}/api/v1", {"Authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, json: Any = None) -> requests.Response:
        return requests.request(method, self.url + path, json=json, headers=self.headers, timeout=60)


def test_the_api_refuses_requests_without_a_token(url: str) -> None:
    for headers in ({}, {"Authorization": "Bearer mg_wrong"}, {"Authorization": "Basic YTpi"}):
        answer = requests.get(f"{url}/api/v1/status", headers=headers, timeout=60)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


def test_page_api_and_schema_show_the_version(browser: Browser, url: str) -> None:
    assert f"mailgroup {__version__}" in browser.get("/").text
    assert requests.get(f"{url}/api/openapi.json", timeout=60).json()["info"]["version"] == __version__
    assert Script(url, token(browser, "observer")).call("GET", "/status").json()["version"] == __version__


def test_a_token_is_shown_once_ends_and_is_stored_as_a_digest(browser: Browser, url: str, store: str) -> None:
    secret = token(browser, "observer")
    assert secret not in browser.get("/users").text
    assert secret not in str(stored(store, "select name, encode(token_sha256, 'escape') from api_tokens"))
    assert Script(url, secret).call("GET", "/held").ok
    for (id_,) in stored(store, "select id from api_tokens"):
        browser.agree("/users", {"do": "end-token", "id": str(id_)})
    assert Script(url, secret).call("GET", "/held").status_code == 401


def test_a_token_expires_after_its_days(browser: Browser, url: str, store: str) -> None:
    page = browser.post("/users", {"do": "token", "name": "short", "role": "observer", "days": "30"})
    [secret] = re.findall(r"mg_[\w-]+", text(page))
    [(left,)] = stored(store, "select expires_at - now() from api_tokens where name = 'short'")
    assert 29.9 < left.total_seconds() / 86_400 <= 30
    assert Script(url, secret).call("GET", "/status").ok
    # when its time is over, it opens nothing, and the list says so
    with psycopg.connect(store) as connection:
        connection.execute("update api_tokens set expires_at = now() where name = 'short'")
    assert Script(url, secret).call("GET", "/status").status_code == 401
    assert "expired" in text(browser.get("/users"))
    # and a wrong number of days is refused beside its field
    for days in ("0", "3651", "many"):
        refused = browser.post("/users", {"do": "token", "name": "x", "role": "observer", "days": days})
        assert refused.status_code == 422 and 'id="token-days-error"' in refused.text, days


def test_a_new_token_is_shown_once_and_a_reload_makes_no_other(browser: Browser, store: str) -> None:
    page = browser.post("/users", {"do": "token", "name": "reloaded", "role": "observer"})
    [secret] = re.findall(r"mg_[\w-]+", text(page))
    again = browser.get(page.url)
    assert again.ok and secret not in again.text
    assert stored(store, "select count(*) from api_tokens where name = 'reloaded'") == [(1,)]


def test_a_token_opens_no_page(browser: Browser, url: str) -> None:
    headers = {"Authorization": f"Bearer {token(browser, 'administrator')}"}
    page = requests.get(f"{url}/users", headers=headers, timeout=60, allow_redirects=False)
    assert page.status_code == 303


def test_an_account_makes_the_round_trip(browser: Browser, url: str, store: str) -> None:
    script = Script(url, token(browser, "administrator"))
    added = script.call("PUT", "/external-accounts", external()).json()
    assert added == {"changed": [f"external account {SUPPORT}: added; its mail is on hold until it is started"]}
    assert script.call("POST", f"/external-accounts/{SUPPORT}/start").status_code == 409
    assert script.call("PUT", "/local-accounts", local("Alex")).ok
    assert script.call("GET", f"/external-accounts/{SUPPORT}").json()["hold"] is True
    started = script.call("POST", f"/external-accounts/{SUPPORT}/start").json()
    assert started == {"changed": [f"external account {SUPPORT}: started for 1 person; 0 mails on hold are routed now"]}
    assert script.call("POST", f"/external-accounts/{SUPPORT}/start").json() == {"changed": []}
    shown = script.call("GET", f"/external-accounts/{SUPPORT}").json()
    assert shown["pop3"] == {"host": "127.0.0.1", "port": 1, "tls": "none"}
    assert "password" not in shown
    assert shown["answer_notes"] is False
    told = script.call("PUT", "/external-accounts", shown | {"answer_notes": True}).json()
    assert told["changed"] == [f"external account {SUPPORT}: changed answer_notes false -> true"]
    shown = script.call("GET", f"/external-accounts/{SUPPORT}").json()
    assert script.call("PUT", "/external-accounts", shown).json() == {"changed": []}
    assert [row["address"] for row in script.call("GET", "/local-accounts").json()] == ["alex@local.com"]
    named = script.call("POST", "/local-accounts/alex@local.com/names", {"name": "Al"})
    assert named.json()["changed"] == ["local account alex@local.com: changed aliases none -> Al"]
    assert script.call("DELETE", f"/external-accounts/{SUPPORT}").status_code == 409
    assert script.call("DELETE", "/local-accounts/alex@local.com").ok
    assert script.call("GET", "/local-accounts/alex@local.com").status_code == 404
    assert script.call("POST", "/local-accounts/alex@local.com/restore").ok
    told = script.call("GET", "/audit?q=alex@local.com").json()
    assert [row["did"] for row in told][:2] == ["restored local account", "removed local account"]
    assert told[0]["who"] == "token administrator script"


def test_a_new_external_account_needs_an_answer_and_a_stored_one_keeps_it(browser: Browser, url: str) -> None:
    script = Script(url, token(browser, "administrator"))
    silent = {name: value for name, value in external("new@company.com").items() if name != "history"}
    answer = script.call("PUT", "/external-accounts", silent)
    assert answer.status_code == 422 and "history: is missing" in answer.json()["detail"]
    assert script.call("GET", "/external-accounts/new@company.com").status_code == 404
    assert script.call("PUT", "/external-accounts", silent | {"history": "from_now"}).ok
    assert script.call("PUT", "/external-accounts", silent).json() == {"changed": []}
    assert script.call("GET", "/external-accounts/new@company.com").json()["history"] == "from_now"
    assert script.call("DELETE", "/external-accounts/new@company.com").ok


def test_a_password_is_strong_or_generated(browser: Browser, url: str, store: str) -> None:
    script = Script(url, token(browser, "administrator"))
    assert script.call("PUT", "/external-accounts", external(SALES)).ok
    eve = {name: value for name, value in local("Eve", SALES).items() if name != "password_hash"}
    for wrong, said in (
        ({"password": "nine char"}, "password: at least 10 characters are needed"),
        ({"password": "a long secret", "generate_password": True}, "a password is given, too"),
    ):
        answer = script.call("PUT", "/local-accounts", eve | wrong)
        assert answer.status_code == 422 and said in answer.json()["detail"]
    made = script.call("PUT", "/local-accounts", eve | {"generate_password": True}).json()
    assert made["changed"] == ["local account eve@local.com: added"] and len(made["password"]) == 16
    assert console.signed_in(url, "eve@local.com", made["password"]).get("/mine").ok
    assert made["password"] not in str(stored(store, "select * from audit"))
    assert script.call("PUT", "/local-accounts", eve | {"password": "a long secret"}).json() == {
        "changed": ["local account eve@local.com: changed password"]
    }
    assert script.call("DELETE", "/local-accounts/eve@local.com").ok


def test_a_person_is_retired_by_one_request(browser: Browser, url: str, store: str) -> None:
    # given
    script = Script(url, token(browser, "administrator"))
    for path, fields in (
        ("/external-accounts", external()),
        ("/local-accounts", local("Ann", address="ann@local.com")),
    ):
        assert script.call("PUT", path, fields).ok
    assert script.call("PUT", "/local-accounts", local("Ben", address="ben@local.com")).ok
    # when a colleague is wrong, a mistake is named, and nothing is done
    path = "/local-accounts/ann@local.com/retire"
    refused = script.call("POST", path, {"mailbox_to": "ben@local.com", "delegate": "ann@local.com"})
    assert refused.status_code == 422 and "delegate: 'ann@local.com': has to be a colleague" in refused.text
    assert script.call("POST", path, {"then": "nonsense"}).status_code == 422
    assert script.call("GET", "/local-accounts/ann@local.com").json()["enabled"] is True
    # then with a right one all of it is done
    done = script.call("POST", path, {"mailbox_to": "ben@local.com", "delegate": "ben@local.com"})
    assert done.json()["changed"][0] == "local account ann@local.com: 0 mails copied to ben@local.com"
    shown = script.call("GET", "/local-accounts/ann@local.com").json()
    assert (shown["enabled"], shown["delegate"]) == (False, "ben@local.com")
    assert script.call("POST", "/local-accounts/nobody@local.com/retire", {}).status_code == 404


def test_tokens_of_an_application_are_for_a_script_as_for_a_file(browser: Browser, url: str) -> None:
    script, owner, user = Script(url, token(browser, "administrator")), "owner@company.com", "user@company.com"
    robot = {"grant": "jwt_bearer", "issuer": "google", "client_id": "robot@p.example"}
    account = {name: value for name, value in external(owner).items() if name != "password"}
    # given mistakes, and a file of the server's machine
    answer = script.call("PUT", "/external-accounts", account | {"oauth": robot | {"client_key": "hush-hush"}})
    assert answer.status_code == 422 and "not one private key" in answer.text and "hush-hush" not in answer.text
    answer = script.call("PUT", "/external-accounts", account | {"oauth": robot | {"client_key_file": "/etc/hostname"}})
    assert answer.status_code == 422 and "give the key itself" in answer.text
    answer = script.call("PUT", "/external-accounts", account | {"oauth": robot})
    assert answer.status_code == 422 and "oauth.client_key" in answer.text
    # when
    given = client_key().as_google_json("robot@p.example")
    assert script.call("PUT", "/external-accounts", account | {"oauth": robot | {"client_key": given}}).ok
    # then the key is in no answer, and what is shown can be sent again
    shown = script.call("GET", f"/external-accounts/{owner}")
    assert shown.json()["oauth"] == robot and "PRIVATE" not in shown.text
    assert script.call("PUT", "/external-accounts", shown.json()).json() == {"changed": []}
    # and no person authorizes it
    answer = script.call("POST", f"/external-accounts/{owner}/authorization")
    assert answer.status_code == 409 and "no person has to authorize it" in answer.text
    # and an account that uses its tokens keeps it
    other = account | {"address": user, "oauth": {"same_as": owner}}
    assert script.call("PUT", "/external-accounts", other).ok
    assert script.call("GET", f"/external-accounts/{user}").json()["oauth"] == {"same_as": owner}
    answer = script.call("POST", f"/external-accounts/{user}/authorization")
    assert answer.status_code == 409 and f"uses the access tokens of {owner}" in answer.text
    answer = script.call("DELETE", f"/external-accounts/{owner}")
    assert answer.status_code == 409 and f"its access tokens are used by {user}" in answer.text
    assert script.call("DELETE", f"/external-accounts/{user}").ok
    assert script.call("DELETE", f"/external-accounts/{owner}").ok


def test_a_mistake_is_named_and_a_password_not_sent_back(browser: Browser, url: str) -> None:
    script = Script(url, token(browser, "administrator"))
    answer = script.call("PUT", "/external-accounts", external(password="the-secret", poll_seconds="often"))
    assert answer.status_code == 422
    assert "poll_seconds" in answer.json()["detail"]
    assert "the-secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "json"),
    [
        ("PUT", "/local-accounts", local("Eve")),
        ("DELETE", "/local-accounts/alex@local.com", None),
        ("POST", f"/external-accounts/{SUPPORT}/test", None),
        ("POST", f"/external-accounts/{SUPPORT}/start", None),
        ("POST", "/queue/retry", {"ids": [1]}),
        ("POST", "/mails/1/give", {"to": "alex@local.com"}),
        ("GET", "/mails/1/raw", None),
        ("GET", "/accounts-file", None),
    ],
)
def test_an_observer_s_token_changes_nothing_and_reads_no_body(
    browser: Browser, url: str, method: str, path: str, json: Any
) -> None:
    assert Script(url, token(browser, "observer")).call(method, path, json).status_code == 403


def test_the_description_is_complete(url: str) -> None:
    found = requests.get(f"{url}/api/openapi.json", timeout=60).json()
    assert len(found["paths"]) > 20
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], f"{method} {path}"
            assert operation["security"], f"{method} {path}"
            assert operation["responses"]["200"]["content"], f"{method} {path}"
    ours = {name: schema for name, schema in found["components"]["schemas"].items() if "ValidationError" not in name}
    assert len(ours) > 20
    assert [name for name, schema in ours.items() if not schema.get("description")] == []


@pytest.mark.timeout(1800)
def test_no_request_causes_an_error_and_every_reply_fits_the_schema(
    databases: servers.Databases, tmp_path: Path
) -> None:
    # given a console of its own, since users and passwords are changed, too
    with databases.fresh() as store, console.running(store) as url, token_server() as server:
        # its first account can be authorized at a stand-in of its provider
        server.agreeing = False
        server.answers = [device_code()] * 1000
        fields = {"external_accounts": [account_fields(server), external(SALES)]}
        asyncio.run(console.make(store, COMPANY | fields))
        judge(console.signed_in(url), url, tmp_path)


def judge(browser: Browser, url: str, folder: Path) -> None:
    """Let Schemathesis find something."""
    schema = folder / "openapi.json"  # it would wait ten seconds for the schema
    schema.write_bytes(browser.get("/api/openapi.json").content)
    words = ["run", str(schema), "--url", url, "--header", f"Authorization: Bearer {token(browser, 'administrator')}"]
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            *words,
            *HOW,
            "--seed",
            "1",
            "--request-timeout",
            "600",
            *LEFT_OUT,
        ],
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
        cwd=folder,  # it stores its findings beside it
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout[-40_000:]
