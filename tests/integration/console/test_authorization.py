"""Authorizing an account in the console and by the REST API, at a stand-in of the provider's endpoints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import psycopg
import pytest
import requests

from services.admin.web import server as console_server
from shared.provider.credentials import Grant
from shared.provider.vault import Vault
from tests import console, servers
from tests.company import KEY, SUPPORT
from tests.console import Browser, stored, text
from tests.system import until
from tests.token_server import TokenServer, account_fields, device_code, token_server

PAGE = f"/external/{SUPPORT}/authorize"
API = f"/api/v1/external-accounts/{SUPPORT}/authorization"
GIVEN = (200, {"access_token": "first-access", "refresh_token": "secret-refresh"})
SECRETS = ("secret-refresh", "first-access", "secret-device", "hush")


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    """The console polls the stand-in more often than it polls real providers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console_server, "AUTHORIZE_SECONDS", 0.05)
        yield


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A stand-in at which no person has consented yet."""
    with token_server() as running:
        running.agreeing = False
        running.answers = [device_code(device_code="secret-device"), GIVEN]
        yield running


@pytest.fixture(autouse=True)
async def account(store: str, server: TokenServer) -> None:
    """An account without authorization."""
    await console.make(store, {"external_accounts": [account_fields(server)]})
    with psycopg.connect(store) as connection:
        connection.execute("delete from oauth_requests")
        connection.execute("delete from audit")


@pytest.fixture
async def by_browser(store: str, server: TokenServer) -> None:
    """Its provider gives no codes to type."""
    fields = account_fields(server)
    del fields["oauth"]["issuer"]["device_url"]
    await console.make(store, {"external_accounts": [fields]})
    server.answers = [GIVEN]


def begin(browser: Browser) -> requests.Response:
    return browser.post(PAGE, {"do": "begin"})


def code_of(page: requests.Response) -> list[str]:
    """The code that the user types at the provider's page."""
    return re.findall(r'class="figure typed">([^<]*)<', page.text)


def grant(store: str) -> Grant:
    [(sealed,)] = stored(store, "select password from external_accounts")
    return Grant.open(Vault(KEY), sealed)


def ends(browser: Browser, words: str) -> None:
    """The page says this in the end, and waits no longer."""
    until(lambda: words in text(browser.get(PAGE)) and "Waits for" not in text(browser.get(PAGE)), 60)


def audited(store: str) -> list[tuple[Any, ...]]:
    return stored(store, "select who, did from audit where target <> '' order by id")


def test_the_page_says_when_the_code_was_typed_at_the_provider(
    browser: Browser, store: str, server: TokenServer
) -> None:
    # given
    before = browser.get(f"/external/{SUPPORT}")
    assert "Nobody has authorized this account yet" in text(before)
    assert f'action="{PAGE}"' in before.text
    # when
    page = begin(browser)
    # then the page says what to do, and reloads without JavaScript
    assert "?run=" in page.url and code_of(page) == ["ABCD"]
    assert 'href="https://x.example/device"' in page.text and SUPPORT in text(page)
    assert '<noscript><meta http-equiv="refresh"' in page.text
    again = browser.get(page.url)
    assert code_of(again) == ["ABCD"] and not grant(store).refresh_token
    # when a person consents
    server.agreeing = True
    # then
    ends(browser, "Authorized.")
    assert grant(store) == Grant("secret-refresh", "hush", grant(store).authorized)
    assert audited(store) == [
        ("admin", "began to authorize external account"),
        ("admin", "authorized external account"),
    ]
    assert stored(store, "select request from oauth_requests") == [(b"",)]
    after = browser.get(f"/external/{SUPPORT}")
    assert "Authorize again" in text(after)
    shown = "".join(each.text for each in (before, page, again, after, browser.get(PAGE), browser.get("/audit")))
    assert not [secret for secret in SECRETS if secret in shown]


def test_the_page_is_notified_as_soon_as_it_is_done(browser: Browser, server: TokenServer) -> None:
    # given
    run = begin(browser).url.partition("?run=")[2]
    with browser.get(f"{PAGE}/live?run={run}", stream=True) as events:
        lines = (line.decode() for line in events.iter_lines() if line)
        assert next(lines) == 'data: {"reload": false}'
        # when
        server.agreeing = True
        # then
        assert next(line for line in lines if line.startswith("data")) == 'data: {"reload": true}'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {"error": "access_denied"}), "access_denied: the person, or the provider, said no"),
        ((400, {"error": "expired_token"}), "expired_token: the code was not used in time"),
        ((200, {"access_token": "x"}), "the provider gave no refresh token"),
    ],
)
def test_a_refusal_is_shown_in_plain_words_and_consent_may_begin_again(
    browser: Browser, store: str, server: TokenServer, answer: Any, words: str
) -> None:
    # given
    server.answers = [device_code(), answer, device_code(user_code="NEXT"), GIVEN]
    begin(browser)
    # when
    server.agreeing = True
    # then
    ends(browser, words)
    page = browser.get(PAGE)
    assert "Not authorized:" in text(page) and "Start again" in text(page)
    assert not grant(store).refresh_token
    # and
    server.agreeing = False
    assert code_of(begin(browser)) == ["NEXT"]
    server.agreeing = True
    ends(browser, "Authorized.")


def test_a_code_that_is_not_typed_expires(browser: Browser, server: TokenServer) -> None:
    server.answers = [device_code(expires_in=0.5)]
    begin(browser)
    ends(browser, "nobody agreed at the provider's page in time")


def test_an_unreachable_provider_is_polled_again(browser: Browser, store: str, server: TokenServer) -> None:
    # given
    begin(browser)
    server.answers = [(503, {})] * 100
    server.agreeing = True
    # then it says so, and waits longer
    until(lambda: "The last check at the provider failed" in text(browser.get(PAGE)), 60)
    # when it is back, and asked the next time
    server.answers = [GIVEN]
    with psycopg.connect(store) as connection:
        connection.execute("update oauth_requests set next_try_at = now()")
    # then
    ends(browser, "Authorized.")


def test_two_administrators_get_the_same_code(browser: Browser, url: str, store: str, server: TokenServer) -> None:
    # given
    other = console.signed_in(url)
    server.answers = [device_code(user_code="ONE"), device_code(user_code="TWO")]
    # when
    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(begin, (browser, other)))
    # then
    assert code_of(pages[0]) == code_of(pages[1]) != []
    assert code_of(begin(other)) == code_of(pages[0])
    assert audited(store) == [("admin", "began to authorize external account")]
    assert text(browser.get(PAGE)).count("Begun by admin") == 1


def test_a_restarted_console_continues_an_authorization(databases: servers.Databases, server: TokenServer) -> None:
    with databases.fresh() as store:
        asyncio.run(console.make(store, {"external_accounts": [account_fields(server)]}))
        with console.running(store) as url:
            page = begin(console.signed_in(url))
        server.agreeing = True
        with console.running(store) as url:
            browser = console.signed_in(url)
            ends(browser, "Authorized.")
            path = urlsplit(page.url)
            assert "Authorized." in text(browser.get(f"{path.path}?{path.query}"))
        assert grant(store).refresh_token == "secret-refresh"


def test_a_page_of_an_authorization_that_is_over_says_so(browser: Browser) -> None:
    assert "has ended: another one was begun" in text(browser.get(f"{PAGE}?run=earlier"))


def test_an_authorization_can_be_cancelled(browser: Browser, store: str, server: TokenServer) -> None:
    # given
    begin(browser)
    # when
    browser.post(PAGE, {"do": "stop"})
    server.agreeing = True
    # then
    ends(browser, "it was stopped by admin")
    assert not grant(store).refresh_token
    assert audited(store)[-1] == ("admin", "stopped authorizing external account")


async def test_an_account_that_was_changed_meanwhile_is_not_authorized(
    browser: Browser, store: str, server: TokenServer
) -> None:
    # given
    begin(browser)
    # when
    await console.make(store, {"external_accounts": [account_fields(server, client_id="other")]})
    server.agreeing = True
    # then
    await asyncio.to_thread(ends, browser, "the account was changed meanwhile")
    assert not grant(store).refresh_token


def test_only_administrators_authorize_and_only_from_our_pages(browser: Browser, observer: Browser, url: str) -> None:
    assert observer.get(PAGE).status_code == observer.get(f"{PAGE}/live").status_code == 403
    assert begin(observer).status_code == 403
    assert browser.post(PAGE, {"do": "begin"}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert Browser(url).get(PAGE).url.endswith("%2Fauthorize")
    assert f'action="{PAGE}"' not in observer.get(f"/external/{SUPPORT}").text
    assert observer.get(API).status_code == observer.post(API).status_code == 403


def test_no_private_address_is_contacted_without_permission(databases: servers.Databases, server: TokenServer) -> None:
    with databases.fresh() as store:
        asyncio.run(console.make(store, {"external_accounts": [account_fields(server)]}))
        with console.running(store, allow_private_upstream=False) as url:
            page = begin(console.signed_in(url))
    assert page.status_code == 409
    assert "127.0.0.1 is a private address, and those are not allowed" in text(page)
    assert server.requests == []


# ------------------------------------------------------------------------------------------ by a browser


def asked(page: requests.Response) -> dict[str, str]:
    """The parameters of the link to the provider's page."""
    [link] = re.findall(r'href="(http://[^"]*/agree\?[^"]*)"', page.text)
    return {name: values[0] for name, values in parse_qs(urlsplit(link.replace("&amp;", "&")).query).items()}


def answer(fields: dict[str, str], **query: str) -> str:
    """The URL to which the provider redirects the browser."""
    return f"{fields['redirect_uri']}?{urlencode({'state': fields['state']} | query)}"


def test_a_browser_on_this_machine_brings_the_answer_without_a_cookie(
    browser: Browser, url: str, store: str, server: TokenServer, by_browser: None
) -> None:
    # given
    page = begin(browser)
    fields = asked(page)
    assert fields["redirect_uri"] == f"{url}/authorized" and fields["code_challenge_method"] == "S256"
    assert "refresh" not in page.text.partition("<main")[0]  # a reload would lose what a person is typing
    # when another person guesses
    guess = requests.get(answer(fields | {"state": "guessed"}, code="stolen"), timeout=30)
    assert guess.status_code == 409 and "not the answer to any" in text(guess)
    assert server.requests == []
    # when the provider sends the browser, which shows no cookie to a visit from another site
    done = requests.get(answer(fields, code="brought"), timeout=30)
    # then
    assert "You may close this page" in text(done)
    ends(browser, "Authorized.")
    assert server.requests[0][1]["code"] == "brought" and server.requests[0][1]["code_verifier"]
    assert grant(store).refresh_token == "secret-refresh"
    assert audited(store)[-1] == ("admin", "authorized external account")
    # and it is good once
    assert requests.get(answer(fields, code="brought"), timeout=30).status_code == 409


def test_from_another_machine_the_address_is_pasted(
    browser: Browser, server: TokenServer, store: str, by_browser: None
) -> None:
    # given a console that is reached by a name
    port = urlsplit(browser.url).port
    cookie = f"mailgroup_session={browser.session.cookies['mailgroup_session']}"
    named = {"Host": "console.lan", "Origin": "http://console.lan", "Cookie": cookie}
    browser.post(PAGE, {"do": "begin"}, headers=named, allow_redirects=False)
    fields = asked(browser.get(PAGE))
    assert fields["redirect_uri"] == f"http://127.0.0.1:{port}/authorized"
    # when something else is pasted
    wrong = browser.post(PAGE, {"do": "bring", "url": "http://[nonsense"})
    # then
    assert wrong.status_code == 409 and "not the answer to any" in text(wrong)
    assert "Waits for" in text(wrong)
    # when
    page = browser.post(PAGE, {"do": "bring", "url": answer(fields, code="brought")})
    # then
    assert "Authorized." in text(page)
    assert grant(store).refresh_token == "secret-refresh"


def test_a_refusal_at_the_provider_s_page_is_shown(browser: Browser, server: TokenServer, by_browser: None) -> None:
    fields = asked(begin(browser))
    told = requests.get(answer(fields, error="access_denied"), timeout=30)
    assert "said no" in text(told)
    ends(browser, "the provider did not agree (access_denied: the person, or the provider, said no)")


# ------------------------------------------------------------------------------------------ by scripts; the overview


def test_a_script_starts_polls_and_cancels_an_authorization(browser: Browser, server: TokenServer) -> None:
    assert browser.get(API).status_code == 404
    begun = browser.post(API).json()
    assert (begun["state"], begun["flow"], begun["user_code"]) == ("waits", "device", "ABCD")
    assert browser.get(API).json() == begun == browser.post(API).json()
    refused = browser.session.post(f"{browser.url}{API}/answer", json={"url": "x"}, headers={"Origin": browser.url})
    assert refused.status_code == 409
    stopped = browser.session.delete(browser.url + API, headers={"Origin": browser.url}).json()
    assert (stopped["state"], stopped["url"], stopped["user_code"]) == ("failed", "", "")
    assert not [secret for secret in SECRETS if secret in str(begun) + str(stopped)]


def test_a_script_gives_the_answer_of_a_browser(browser: Browser, server: TokenServer, by_browser: None) -> None:
    begun = browser.post(API).json()
    assert begun["flow"] == "browser"
    fields = {name: values[0] for name, values in parse_qs(urlsplit(begun["url"]).query).items()}
    done = browser.session.post(
        f"{browser.url}{API}/answer", json={"url": answer(fields, code="brought")}, headers={"Origin": browser.url}
    )
    assert done.json()["state"] == "authorized"


def test_the_first_page_links_to_the_consent_when_the_provider_ended_it(
    browser: Browser, observer: Browser, store: str
) -> None:
    # given the rows that the fetcher writes after a refresh token was revoked
    with psycopg.connect(store) as connection:
        connection.execute(
            """insert into polls (external_id, paused_at, failures, last_error)
               select id, now(), 1, 'no token is given (invalid_grant)' from external_accounts
               on conflict (external_id) do update
               set paused_at = excluded.paused_at, failures = 1, last_error = excluded.last_error"""
        )
    # then
    until(lambda: f'href="{PAGE}">Authorize {SUPPORT}' in browser.get("/").text, 60)
    assert PAGE not in observer.get("/").text
    assert [e["authorize"] for e in browser.get("/api/v1/status").json()["externals"]] == [True]
    page = browser.get(f"/external/{SUPPORT}")
    assert "invalid_grant" in text(page) and f'action="{PAGE}"' in page.text
