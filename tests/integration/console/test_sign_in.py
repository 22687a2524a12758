"""The console in a browser without JavaScript: signing in, sessions, refused requests."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest
import requests

from services.admin.access import audit, users
from shared.db.database import Database
from tests import console, servers
from tests.console import PASSWORD, Browser, stored, text


@pytest.fixture
def browser(url: str) -> Browser:
    """A browser that is not signed in."""
    return Browser(url)


def test_a_user_who_is_not_signed_in_is_asked_to_and_comes_back(browser: Browser) -> None:
    asked = browser.get("/mine?x=1")
    assert asked.url.endswith("/sign-in?next=%2Fmine%3Fx%3D1")
    assert "Password" in text(asked)


def test_the_first_administrator_signs_in_and_out(browser: Browser) -> None:
    page = browser.sign_in()
    assert "Overview" in text(page)
    assert browser.post("/sign-out").url.endswith("/sign-in")
    assert browser.get("/").url.endswith("/sign-in")


def test_the_cookie_is_for_this_site_and_no_script(browser: Browser) -> None:
    answer = browser.post("/sign-in", {"name": "admin", "password": PASSWORD}, allow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie  # plain http on loopback: a browser would not send it back
    behind = browser.post(
        "/sign-in",
        {"name": "admin", "password": PASSWORD},
        headers={"X-Forwarded-Proto": "https"},
        allow_redirects=False,
    )
    assert "secure" in behind.headers["set-cookie"].lower()
    assert "max-age" in behind.headers["strict-transport-security"]


def test_the_cookie_is_not_what_the_database_holds(browser: Browser, store: str) -> None:
    browser.sign_in()
    token = str(browser.session.cookies["mailgroup_session"])
    with psycopg.connect(store) as connection:
        rows = str(connection.execute("select * from console_sessions").fetchall())
    assert token not in rows


def test_a_wrong_password_says_so_and_keeps_the_name(browser: Browser) -> None:
    page = browser.sign_in(password="wrong")
    assert page.status_code == 401
    assert "do not belong together" in text(page)
    assert 'value="admin"' in page.text
    assert "wrong" not in page.text


@pytest.mark.parametrize("name", ["nobody", "nobody@local.com", "x\0y", "ä" * 200, "' or 1=1 --"])
def test_an_unknown_name_is_refused_as_a_wrong_password_is(browser: Browser, name: str) -> None:
    page = browser.sign_in(name)
    assert page.status_code == 401
    assert "do not belong together" in text(page)


def test_a_person_signs_in_with_the_mailbox_password_and_sees_own_pages(browser: Browser, people: None) -> None:
    page = browser.sign_in("ALEX@local.com", "secret")
    assert "alex@local.com" in text(page)
    assert browser.get("/").status_code == 403


def test_the_audit_has_each_sign_in_and_no_name_that_may_be_a_password(
    browser: Browser, store: str, people: None
) -> None:
    def entries() -> list[tuple[Any, ...]]:
        return stored(store, "select who, did, detail from audit where did like '%sign%' order by id")

    known = len(entries())
    browser.sign_in(password="wrong")
    browser.sign_in("ALEX@local.com", "wrong")
    browser.sign_in("my-secret-password", "x")
    browser.sign_in("alex@local.com", "secret")
    console.signed_in(browser.url)
    assert entries()[known:] == [
        ("admin", "sign-in refused", "from 127.0.0.1"),
        ("alex@local.com", "sign-in refused", "from 127.0.0.1"),
        ("unknown name", "sign-in refused", "from 127.0.0.1"),
        ("alex@local.com", "signed in", "from 127.0.0.1"),
        ("admin", "signed in", "from 127.0.0.1"),
    ]


def test_a_session_ends_with_the_password_it_began_with(browser: Browser, store: str, people: None) -> None:
    browser.sign_in("kim@local.com", "secret")
    assert browser.get("/mine").ok
    with psycopg.connect(store) as connection:
        connection.execute("update local_accounts set password_hash = 'another' where address = 'kim@local.com'")
    assert browser.get("/mine").url.endswith("next=%2Fmine")


@pytest.mark.parametrize("column", ["created_at = now() - interval '8 days'", "seen_at = now() - interval '13 hours'"])
def test_a_session_expires(browser: Browser, store: str, column: str) -> None:
    browser.sign_in()
    with psycopg.connect(store) as connection:
        connection.execute(f"update console_sessions set {column}".encode())
    assert browser.get("/").url.endswith("/sign-in")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_change_from_another_site_is_refused(browser: Browser, origin: str) -> None:
    browser.sign_in()
    assert browser.post("/sign-out", headers={"Origin": origin}).status_code == 403
    assert browser.get("/").ok


def test_every_reply_has_the_security_headers(browser: Browser) -> None:
    browser.sign_in()
    for path in ("/", "/sign-in", "/nothing", "/static/style.css"):
        headers = browser.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    assert browser.get("/").headers["cache-control"] == "no-store"


def test_a_page_that_does_not_exist_is_not_found(browser: Browser) -> None:
    browser.sign_in()
    page = browser.get("/nothing")
    assert page.status_code == 404
    assert "Not found There is no page with this address. To the first page" in text(page)
    assert browser.get("/api/nothing").json() == {"detail": "Not Found"}


def test_a_request_larger_than_any_form_is_refused(browser: Browser) -> None:
    assert browser.post("/sign-in", b"x" * (4 * 1024 * 1024 + 1)).status_code == 413
    long = requests.post(f"{browser.url}/sign-in", data=iter([b"name=x&" * 10_000] * 70), timeout=30)
    assert long.status_code >= 400


def test_the_overview_shows_problems_in_words(browser: Browser) -> None:
    shown = text(browser.sign_in())
    assert "service fetcher: does not answer" in shown  # nothing but the console runs here


def test_only_a_changed_password_setting_replaces_the_stored_password(
    databases: servers.Databases,
) -> None:
    with databases.fresh() as database:
        with console.running(database) as url:
            browser = Browser(url)
            assert browser.sign_in().ok
            with psycopg.connect(database) as connection:  # as the page for it does
                connection.execute("update console_users set password_hash = given_hash || 'x'")
        with console.running(database) as url:
            assert Browser(url).sign_in().status_code == 401
        with console.running(database, admin_password="recovered") as url:
            assert Browser(url).sign_in(password="recovered").ok


def test_a_client_that_guesses_waits_and_others_do_not(browser: Browser, url: str) -> None:
    started = time.monotonic()
    for _ in range(4):
        browser.sign_in(password="guess")
    assert time.monotonic() - started > 1


async def test_sessions_and_their_messages_are_limited(database: Database, url: str) -> None:
    # given a user with more browsers than any has, and a browser that never shows a page
    async with database.transaction() as connection:
        known = await users.identity(connection, "admin")
        assert known is not None
        tokens = [await users.begin_session(connection, known, "192.0.2.1", "x") for _ in range(55)]
        last = await users.user_for_session(connection, tokens[-1])
        assert last is not None
        for number in range(30):
            await users.add_flash(connection, last.session_id, [f"line {number}"])
        # then the oldest sessions have ended, and the latest messages are kept
        good = [await users.user_for_session(connection, token) is not None for token in tokens]
        assert good == [False] * 5 + [True] * 50
        assert await users.pop_flash(connection, last.session_id) == [f"line {number}" for number in range(10, 30)]
        assert await users.pop_flash(connection, last.session_id) == []
        # and no text in the audit is as long as an outsider likes
        await audit.record_mails(connection, "admin", "looked into a mail", [1], "x" * 100_000)
        assert len((await audit.page(connection))[0].detail) == 1000
        await connection.execute("delete from console_sessions where peer = '192.0.2.1'")


def test_a_site_whose_name_leads_to_the_console_learns_and_changes_nothing(url: str) -> None:
    # given a page of another site, whose name resolves to this address now (DNS rebinding)
    port = url.rpartition(":")[2]
    site = f"rebound.example:{port}"
    signed_in = console.signed_in(url)
    headers = {"Host": site, "Origin": f"http://{site}"}
    # when it reads and sends from its own origin, even with a session
    for page in ("/", "/sign-in", "/static/style.css", "/api/v1/status"):
        answer = signed_in.get(page, headers=headers, allow_redirects=False)
        assert (answer.status_code, "MAILGROUP_ADMIN_HOSTS" in answer.text) == (421, True)
        assert "mailgroup</a>" not in answer.text
    answer = signed_in.post("/users", {"do": "add", "name": "x", "role": "administrator"}, headers=headers)
    assert answer.status_code == 421
    # then only the settings of mail clients are answered, which ask under names of each domain
    assert requests.get(f"{url}/mail/config-v1.1.xml", headers=headers, timeout=30).status_code in (200, 404)
    assert requests.get(f"{url}/sign-in", headers={"Host": f"localhost:{port}"}, timeout=30).ok


def test_a_further_name_of_the_console_is_a_setting(databases: servers.Databases) -> None:
    with databases.fresh() as database, console.running(database, admin_hosts="console.company.com") as url:
        for host, status in (("console.company.com", 200), ("other.company.com", 421)):
            assert requests.get(f"{url}/sign-in", headers={"Host": host}, timeout=30).status_code == status
