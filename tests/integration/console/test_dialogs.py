"""The console's dialogs for accounts, and the Test button against a real provider."""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html import unescape
from typing import Any

import psycopg
import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from shared.provider.credentials import Grant
from shared.provider.vault import Vault
from tests import console, servers
from tests.company import KEY
from tests.console import Browser, forms, stored, text
from tests.system import until
from tests.token_server import client_key

SUPPORT = "support@pages.example"


def empty(store: str) -> None:
    """Delete accounts and sessions. The console reads the same tables in another order, so a deadlock may happen."""
    for tries_left in reversed(range(5)):
        try:
            with psycopg.connect(store) as connection:
                connection.execute("truncate external_accounts, local_accounts, audit cascade")
        except psycopg.errors.DeadlockDetected:
            if not tries_left:
                raise
        else:
            return


@pytest.fixture
def browser(url: str, store: str) -> Browser:
    """An administrator, and no accounts."""
    empty(store)
    return console.signed_in(url)


def external(**fields: Any) -> dict[str, Any]:
    """The dialog of an external account as it is sent. A field that is None is not."""
    values = {
        "address": SUPPORT,
        "enabled": "on",
        "login": "",
        "password": "secret-of-support",
        "method": "password",
        "pop3.host": "127.0.0.1",
        "pop3.port": "1",
        "pop3.tls": "none",
        "smtp.host": "127.0.0.1",
        "smtp.port": "1",
        "smtp.tls": "none",
        "smtp.auth": "on",
        "smtp.connections": "2",
        "poll_seconds": "60",
        "history": "all",
        "delete_after_days": "",
        "reply_to_author": "on",
        "aliases": "",
        "do": "save",
    }
    return {name: value for name, value in (values | fields).items() if value is not None}


IMAP = {
    "protocol": "imap",
    "imap.host": "127.0.0.1",
    "imap.port": "1",
    "imap.tls": "none",
    "imap.folders": "INBOX\r\nAufträge",
}
"""The fields of the dialog for an account that is fetched by IMAP."""


def local(name: str, **fields: Any) -> dict[str, Any]:
    """The dialog of a local account as it is sent."""
    return {
        "address": f"{name.lower()}@local.com",
        "enabled": "on",
        "password": "a long secret",
        "user_name": name,
        "external": SUPPORT,
    } | fields


def test_an_external_account_is_added_shown_and_changed(browser: Browser, store: str) -> None:
    page = browser.post("/external/new", external())
    assert page.url.endswith(f"/external/{SUPPORT}")
    assert "added" in text(page)
    assert "not reachable now: 127.0.0.1:1: connection refused" in text(page)

    fields = external(password="", poll_seconds="30", aliases="help@pages.example", answer_notes="on")
    page = browser.post(f"/external/{SUPPORT}", fields)
    assert "Check for new mail every … seconds: 60 -> 30" in text(page) and "poll_seconds 60" not in text(page)
    notes = "Notify the others by mail when somebody has answered mail that went to everyone: false -> true"
    assert notes in text(page)
    assert re.search(r'name="answer_notes"[^>]* checked', page.text)
    assert 'value="30"' in page.text
    assert SUPPORT in text(browser.get("/external"))
    # and the audit records the person and the change, without the secret
    told = str(stored(store, "select who, did, target, detail from audit"))
    added = "added; its mail is on hold until it is started"
    assert f"('admin', 'changed external account', 'support@pages.example', '{added}')" in told
    assert "poll_seconds 60 -> 30" in told
    assert "secret" not in told


def test_an_account_by_imap_is_added_shown_and_changed_to_pop3(browser: Browser, store: str) -> None:
    # given an account that is fetched by IMAP; what was typed for POP3 is left out
    page = browser.post("/external/new", external(**IMAP))
    assert "added; its mail is on hold" in text(page)
    columns = "select imap_host, imap_port, imap_tls, imap_folders, pop3_host from external_accounts"
    assert stored(store, columns) == [("127.0.0.1", 1, "none", ["INBOX", "Aufträge"], "imap.invalid")]
    # when its page is sent as it is shown, nothing is changed
    [dialog] = [form for form in forms(page) if "protocol" in form.values]
    assert (dialog.values["protocol"], dialog.values["imap.folders"]) == ("imap", "INBOX\nAufträge")
    assert dialog.values["pop3.host"] == ""
    assert "Nothing was changed" in text(browser.post(f"/external/{SUPPORT}", dialog.values | {"do": "save"}))
    # then it is changed to POP3 by the choice alone, and the certificate of IMAP is of no more use
    page = browser.post(f"/external/{SUPPORT}", external(password="", **{"imap.tls_fingerprint": "ab" * 32}))
    moved = "POP3 server: none -> 127.0.0.1:1/none; IMAP server: 127.0.0.1:1/none (INBOX, Aufträge) -> none"
    assert moved in text(page)
    assert stored(store, columns) == [(None, None, None, None, "127.0.0.1")]


@pytest.mark.parametrize(("name", "port"), [("pop3", 110), ("imap", 143), ("smtp", 25)])
def test_a_form_without_a_script_is_saved_with_the_usual_port(
    browser: Browser, store: str, name: str, port: int
) -> None:
    # given the form of a new account, in which the encryption is switched off
    [dialog] = [form for form in forms(browser.get("/external/new")) if "protocol" in form.values]
    filled = {"address": SUPPORT, "password": "secret-of-support", "smtp.host": "127.0.0.1", "history": "all"}
    typed = filled | {"pop3.host": "127.0.0.1", "imap.host": "127.0.0.1", f"{name}.tls": "none"}
    typed["protocol"] = "imap" if name == "imap" else "pop3"
    # when it is sent with a mistake, then the port is shown that will be used
    page = browser.post("/external/new", dialog.values | typed | {"poll_seconds": "x"})
    assert f'name="{name}.port" type="text" value="{port}"' in page.text
    # and when it is saved
    browser.post("/external/new", dialog.values | typed)
    assert stored(store, f"select {name}_port, {name}_tls from external_accounts") == [(port, "none")]


def test_an_account_shows_its_last_failure_and_the_provider_s_size_limit(browser: Browser, store: str) -> None:
    # given an account of which nothing has failed yet
    browser.post("/external/new", external())
    state = text(browser.get(f"/external/{SUPPORT}"))
    assert "Last successful check never" in state and "Last failed" not in state
    assert "Connections that the provider allows" not in state
    # when a poll and a try to send fail, and the provider allows one connection at a time
    with psycopg.connect(store) as connection:
        connection.execute("update polls set last_error = 'no', last_error_at = '2026-01-02 03:04:05Z'")
        connection.execute("update relays set last_error_at = '2026-01-02 04:05:06Z', connections_limit = 1")
    # then the page shows when
    state = text(browser.get(f"/external/{SUPPORT}"))
    assert "Last failed check 2026-01-02 03:04:05" in state
    assert "Last failed try to send 2026-01-02 04:05:06" in state
    assert "Connections that the provider allows 1 of 2" in state


def test_no_page_shows_a_secret_again(browser: Browser) -> None:
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex", password="secret-of-alex"))
    for path in ("/external", f"/external/{SUPPORT}", "/local", "/local/alex@local.com"):
        assert "secret-of" not in browser.get(path).text
    refused = browser.post("/external/new", external(address="other@pages.example", **{"pop3.port": "x"}))
    assert "secret-of" not in refused.text


@pytest.mark.parametrize(
    ("fields", "said", "field"),
    [
        ({"pop3.host": ""}, "POP3 server: fill this in", "pop3.host"),
        (IMAP | {"imap.host": ""}, "IMAP server: fill this in", "imap.host"),
        (IMAP | {"imap.folders": "INBOX\ninbox"}, "Folders: 'INBOX' is named twice", "imap.folders"),
        ({"smtp.port": "many"}, "SMTP port: 'many' is not a number from 1 to 65535", "smtp.port"),
        (
            {"poll_seconds": "0"},
            "Check for new mail every … seconds: 0 is not a number from 1 to 86400",
            "poll_seconds",
        ),
        ({"address": "nonsense"}, "Email address: 'nonsense': an address has the form", "address"),
        ({"password": ""}, "Login password: is missing", "password"),
        ({"aliases": "x"}, "Further addresses of this mailbox: 'x': an address has the form", "aliases"),
    ],
)
def test_an_invalid_field_is_named_and_the_form_keeps_its_input(
    browser: Browser, store: str, fields: dict[str, str], said: str, field: str | None
) -> None:
    page = browser.post("/external/new", external(login="who-logs-in") | fields)
    assert page.status_code == 422
    assert said in text(page)
    assert 'value="who-logs-in"' in page.text
    if field:
        [tag] = re.findall(rf'<(?:input|textarea|select) id="{re.escape(field)}"[^>]*>', page.text)
        assert 'aria-invalid="true" autofocus' in tag and f'aria-describedby="{field}-error' in tag
        [beside] = re.findall(rf'id="{re.escape(field)}-error">(.*?)</p>', page.text)
        assert said.partition(": ")[2].lower() in unescape(beside).lower()
    assert stored(store, "select * from external_accounts") == []


def test_a_new_account_asks_what_happens_to_existing_mail(browser: Browser, store: str) -> None:
    # given the form, which has no answer yet
    page = browser.get("/external/new")
    assert len(re.findall(r'<input type="radio"[^>]* name="history"[^>]* required', page.text)) == 2
    assert not re.search(r'name="history"[^>]* checked', page.text)
    # when it is sent without one
    page = browser.post("/external/new", external(history=None))
    # then it is asked for, and nothing is saved
    assert page.status_code == 422
    assert "Existing mail at the provider: choose whether it is delivered, or stays at the provider" in text(page)
    assert len(re.findall(r'name="history"[^>]* aria-invalid="true"', page.text)) == 2
    # in other words where the test has found no mail
    page = browser.post("/external/new", external(history=None, found="0"))
    assert "Test found no mail there. What is to happen to mail that comes until the account is added?" in text(page)
    assert stored(store, "select * from external_accounts") == []
    # and a stored answer is not lost
    browser.post("/external/new", external(history="from_now"))
    assert "Nothing was changed" in text(browser.post(f"/external/{SUPPORT}", external(password="", history=None)))
    assert stored(store, "select history, hold from external_accounts") == [("from_now", True)]


def test_an_account_is_started_on_the_first_page_and_its_own(browser: Browser, observer: Browser, store: str) -> None:
    # given an account without people
    browser.post("/external/new", external())
    assert "0 people; no mail on hold. Add a person" in text(browser.get("/"))
    assert "Everybody is here" not in text(browser.get(f"/external/{SUPPORT}"))
    refused = browser.post(f"/external/{SUPPORT}/start")
    assert refused.status_code == 422 and "no enabled user shares it yet" in text(refused)
    # when there are people, an observer does not start it
    browser.post("/local/new", local("Alex"))
    assert "1 person; no mail on hold. Everybody is here, start" in text(browser.get("/"))
    assert "Everybody is here" not in text(observer.get("/"))
    assert observer.post(f"/external/{SUPPORT}/start").status_code == 403
    # then the administrator does
    page = browser.post(f"/external/{SUPPORT}/start", {"people": "1"})
    assert "started for 1 person; 0 mails on hold are routed now" in text(page) and "Welcome" not in text(page)
    assert "is started already" in text(browser.post(f"/external/{SUPPORT}/start"))
    assert ("started external account",) in stored(store, "select did from audit")
    # and a further account does not bring the welcome back
    browser.post("/external/new", external(address="sales@pages.example"))
    page = browser.get("/")
    assert "Welcome" not in text(page) and "Not started yet" in text(page) and "sales@pages.example" in text(page)


NAMES_OF_FILES = re.compile(r"\b(?:pop3|smtp)\.\w+|[a-z]+_[a-z_]+|Input should|Value error|\[\d+\]")
"""Names of fields in the accounts file, and texts of pydantic."""


def test_a_start_asks_again_if_the_people_have_changed_meanwhile(browser: Browser, store: str) -> None:
    # given a page that shows one person, and one who is disabled
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    browser.post("/local/new", local("Kim", enabled=None))
    assert "So far: 1 person, without those who are disabled" in text(browser.get(f"/external/{SUPPORT}"))
    # when a second one is added before the press
    browser.post("/local/new", local("Jim"))
    asked = browser.post(f"/external/{SUPPORT}/start", {"people": "1"})
    # then the people are named first, and nothing is started
    assert f"Start {SUPPORT} for 2 people?" in text(asked)
    assert "alex@local.com" in text(asked) and "jim@local.com" in text(asked)
    assert stored(store, "select hold from external_accounts") == [(True,)]
    # and the answer starts it
    page = browser.post(f"/external/{SUPPORT}/start", {"people": "1", "confirmed": "on"})
    assert "started for 2 people; 0 mails on hold are routed now" in text(page)


def test_all_wrong_fields_are_shown_at_once_each_in_the_words_of_the_page(browser: Browser) -> None:
    # when an account has a mistake in every field that is typed
    wrong = {
        "address": "nonsense",
        "login": "x" * 400,
        "password": "",
        "pop3.host": "",
        "pop3.port": "0",
        "pop3.tls": "some",
        "smtp.host": "a b",
        "smtp.port": "99999",
        "smtp.connections": "many",
        "poll_seconds": "-1",
        "history": "some",
        "delete_after_days": "x",
        "aliases": "x",
        "pop3.tls_fingerprint": "short",
    }
    page = browser.post("/external/new", external(**wrong))
    # then each is marked, and its text stands beside it
    assert page.status_code == 422
    marked = set(re.findall(r'<(?:input|select|textarea)[^>]* name="([\w.]+)"[^>]*aria-invalid="true"', page.text))
    beside = re.findall(r'<p class="error under" id="([\w.]+)-error">(.+?)</p>', page.text)
    assert sorted(marked) == sorted(wrong) == sorted(name for name, _ in beside)
    # and only the first one has the focus
    assert re.findall(r'id="([\w.]+)"[^>]* autofocus', page.text) == ["address"]
    # and nothing is in the words of the file
    [summary] = re.findall(r'<div class="problem" role="alert">(.*?)</div>', page.text, re.S)
    for shown in (summary, *(words for _, words in beside)):
        assert not NAMES_OF_FILES.search(shown), shown
    # and so it is with a person
    wrong = {"address": "x", "password": "", "user_name": " ", "external": "y", "delegate": "z", "aliases": "\x01"}
    page = browser.post("/local/new", local("Alex", **wrong))
    beside = re.findall(r'<p class="error under" id="([\w.]+)-error">(.+?)</p>', page.text)
    assert sorted(name for name, _ in beside) == sorted(wrong)
    assert not any(NAMES_OF_FILES.search(words) for _, words in beside)


@pytest.mark.parametrize("saved", ["Alex", "Jim"])
def test_a_name_that_a_colleague_has_is_an_error_of_the_saved_person(browser: Browser, saved: str) -> None:
    browser.post("/external/new", external())
    for name in ("Alex", "Jim"):
        browser.post("/local/new", local(name))
    [other] = {"Alex", "Jim"} - {saved}
    page = browser.post(f"/local/{saved}@local.com", local(saved, aliases=f"Sam\n{other}"))
    assert re.findall(r'<p class="error under" id="([\w.]+)-error">', page.text) == ["aliases"]
    assert f"Further names: '{other}': {other.lower()}@local.com has this name in the same share" in text(page)
    page = browser.post(f"/local/{saved}@local.com", local(saved, user_name=other))
    assert re.findall(r'<p class="error under" id="([\w.]+)-error">', page.text) == ["user_name"]


def test_a_folder_for_junk_is_refused_to_whom_would_not_see_it(browser: Browser, store: str) -> None:
    # given Alex, who reads by POP3 alone
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    with psycopg.connect(store) as connection:
        connection.execute(
            "insert into last_logins (local_id, protocol, at, peer) select id, 'pop3', now(), '::1' from local_accounts"
        )
    # then form and request say why it cannot be switched on
    page = browser.post("/local/alex@local.com", local("Alex", junk="on"))
    assert re.findall(r'<p class="error under" id="([\w.]+)-error">', page.text) == ["junk"]
    assert "this person logs in by POP3 alone" in text(page)
    url, headers = f"{browser.url}/api/v1/local-accounts", {"Origin": browser.url}
    fields: dict[str, Any] = {"address": "alex@local.com", "user_name": "Alex", "external": SUPPORT, "junk": True}
    refused = browser.session.put(url, json=fields, headers=headers)
    assert refused.status_code == 422 and "junk: cannot be switched on" in refused.json()["detail"]
    # when Alex reads by IMAP, too
    with psycopg.connect(store) as connection:
        connection.execute(
            "insert into last_logins (local_id, protocol, at, peer) select id, 'imap', now(), '::1' from local_accounts"
        )
    # then both can
    assert browser.session.put(url, json=fields, headers=headers).status_code == 200
    assert browser.session.get(f"{url}/alex@local.com").json()["junk"] is True
    assert re.search(r'name="junk" type="checkbox" checked', browser.get("/local/alex@local.com").text)
    page = browser.post("/local/alex@local.com", local("Alex", password=""))
    assert "Junk mail goes into the folder Junk: true -> false" in text(page)
    page = browser.post("/local/alex@local.com", local("Alex", password="", junk="on"))
    assert "Junk mail goes into the folder Junk: false -> true" in text(page)


def test_a_delegate_who_is_disabled_is_refused_everywhere_and_shown(browser: Browser, store: str) -> None:
    # given Jim, who is disabled
    browser.post("/external/new", external())
    browser.post("/local/new", local("Jim", enabled=""))
    # then a form, a request and a file with this delegate are refused
    page = browser.post("/local/new", local("Alex", delegate="jim@local.com"))
    assert "Delegate: 'jim@local.com' is disabled and gets no mail" in text(page)
    url, headers = f"{browser.url}/api/v1/local-accounts", {"Origin": browser.url}
    fields = {"address": "alex@local.com", "user_name": "Alex", "external": SUPPORT, "password": "secret of alex"}
    refused = browser.session.put(url, json=fields | {"delegate": "jim@local.com"}, headers=headers)
    assert refused.status_code == 422 and "delegate: 'jim@local.com' is disabled" in refused.json()["detail"]
    file = f"local_accounts: [{{address: a@local.com, user_name: A, external: {SUPPORT}, delegate: jim@local.com}}]"
    tried = browser.post("/accounts-file", files={"file": ("a.yaml", file)})
    assert tried.status_code == 422 and "is disabled and gets no mail" in text(tried)
    # when Jim is disabled only afterwards
    with psycopg.connect(store) as connection:
        connection.execute("update local_accounts set enabled = true")
    browser.post("/local/new", local("Alex", delegate="jim@local.com", enabled=""))
    page = browser.post("/local/jim@local.com", local("Jim", password="", enabled=""))
    # then that is told at once, on the page of the person, and in the status
    lost = "the delegate jim@local.com is disabled: mail with this person's name stays on hold"
    assert f"local account alex@local.com: {lost}" in text(page)
    assert lost.capitalize() in text(browser.get("/local/alex@local.com"))
    told = f"alex@local.com: is disabled, and {lost}"
    until(lambda: told in browser.get("/api/v1/status").json()["problems"])  # the status is gathered now and then


def test_a_refused_form_keeps_what_was_typed_the_password_too(browser: Browser, store: str) -> None:
    page = browser.post("/external/new", external(poll_seconds="x"))
    [kept] = re.findall(r'name="kept" value="([^"]+)"', page.text)
    done = browser.post("/external/new", external(password="", kept=kept))
    assert "added" in text(done)
    # and no other person can use its placeholder
    other = console.signed_in(browser.url)
    stolen = other.post("/external/new", external(address="b@pages.example", password="", kept=kept))
    assert "password: is missing" in text(stolen)


@pytest.mark.parametrize(
    ("address", "host", "imap", "told"),
    [
        ("team@gmail.com", "pop.gmail.com", "imap.gmail.com", "app password"),
        ("team@outlook.com", "outlook.office365.com", "outlook.office365.com", "takes no passwords"),
        ("team@yahoo.com", "pop.mail.yahoo.com", "imap.mail.yahoo.com", "app password"),
        ("team@fastmail.com", "pop.fastmail.com", "imap.fastmail.com", "app password"),
        ("team@gmx.net", "pop.gmx.net", "imap.gmx.net", "Allow access by POP3"),
        ("team@icloud.com", "", "imap.mail.me.com", "offers no POP3"),
        ("team@pages.example", "pop3.pages.example", "imap.pages.example", ""),
    ],
)
def test_the_provider_of_the_address_is_filled_in(
    browser: Browser, address: str, host: str, imap: str, told: str
) -> None:
    empty = {"pop3.host": "", "smtp.host": "", "pop3.port": "995", "pop3.tls": "implicit", "imap.port": "993"}
    page = browser.post("/external/new", external(address=address, do="fill", **empty))
    [dialog] = [form for form in forms(page) if "protocol" in form.values]
    assert (dialog.values["pop3.host"], dialog.values["pop3.port"]) == (host, "995")
    assert (dialog.values["imap.host"], dialog.values["imap.port"]) == (imap, "993")
    assert dialog.values["protocol"] == ("pop3" if host else "imap")
    assert told in text(page)


TOKENS = {
    "method": "other",
    "password": "",
    "oauth.client_id": "us",
    "oauth.client_secret": "secret-of-client",
    "oauth.issuer.token_url": "https://login.example/token",
    "oauth.issuer.scope": "mail",
    "oauth.issuer.device_url": "https://login.example/device",
}


def test_every_field_of_access_tokens_is_typed_shown_and_changed(browser: Browser, store: str) -> None:
    # given the fields of another provider, with a mistake first
    page = browser.post("/external/new", external(**TOKENS | {"oauth.issuer.token_url": "nowhere"}))
    assert (
        "Token endpoint: an endpoint is an https URL" in text(page)
        and "nowhere&#39;" not in page.text
        and "secret-of-client" not in page.text
    )
    [kept] = re.findall(r'name="oauth.kept" value="([^"]+)"', page.text)
    # when
    page = browser.post("/external/new", external(**TOKENS | {"oauth.client_secret": "", "oauth.kept": kept}))
    # then
    assert "added" in text(page) and "secret-of-client" not in page.text
    [(oauth, sealed)] = stored(store, "select oauth, password from external_accounts")
    issuer = {"token_url": "https://login.example/token", "scope": "mail", "device_url": "https://login.example/device"}
    nothing = {"tenant": None, "same_as": None}
    issuer_stored = issuer | {"authorize_url": None}
    assert oauth == {"name": "", "issuer": issuer_stored, "client_id": "us", "grant": "authorization"} | nothing
    assert Grant.open(Vault(KEY), sealed).client_secret == "secret-of-client"
    for name in issuer:
        assert f'name="oauth.issuer.{name}" type="text" value="{issuer[name]}"' in page.text
    # and saving the shown form changes nothing, and the password does not become the client's secret
    again = external(**TOKENS | {"oauth.client_secret": "", "password": "typed-before"})
    assert "Nothing was changed" in text(browser.post(f"/external/{SUPPORT}", again))
    # when it is one that is known by name
    page = browser.post(f"/external/{SUPPORT}", external(**TOKENS | {"method": "google"}))
    # then
    assert "Log in with: https://login.example (client us) -> google (client us)" in text(page)
    assert re.search(r'<option value="google" selected', page.text)
    assert "not reachable now: nobody has authorized it" in text(page)


APPLICATION = {
    "method": "microsoft-app",
    "password": "",
    "oauth.client_id": "us",
    "oauth.tenant": "company.onmicrosoft.com",
}


def test_an_application_s_key_is_pasted_kept_and_never_shown(browser: Browser, store: str) -> None:
    # given a key as a browser sends it, and a mistake
    key = client_key(certified=True).pem
    pasted = key.replace("\n", "\r\n")
    page = browser.post("/external/new", external(**APPLICATION | {"oauth.client_key": pasted, "oauth.tenant": ""}))
    assert "Tenant: is missing: the name or id of your organisation" in text(page)
    assert "PRIVATE KEY" not in page.text and "The one you typed is kept" in text(page)
    [kept] = re.findall(r'name="oauth.kept_key" value="([^"]+)"', page.text)
    # when
    page = browser.post("/external/new", external(**APPLICATION | {"oauth.kept_key": kept}))
    # then nobody is asked to authorize it
    assert "added" in text(page) and "PRIVATE KEY" not in page.text
    assert "authorized this account yet" not in text(page) and "nobody has to agree" in text(page)
    assert re.search(r'<option value="microsoft-app" selected', page.text)
    assert "nobody has to authorize" in text(browser.get(f"/external/{SUPPORT}/authorize")).lower()
    [(oauth, sealed)] = stored(store, "select oauth, password from external_accounts")
    assert (oauth["grant"], oauth["tenant"]) == ("client_credentials", "company.onmicrosoft.com")
    assert "/company.onmicrosoft.com/" in oauth["issuer"]["token_url"]
    assert Grant.open(Vault(KEY), sealed) == Grant(client_key=key)
    # and saving the shown form changes nothing; a secret replaces the key, also one that was typed and not saved
    assert "Nothing was changed" in text(browser.post(f"/external/{SUPPORT}", external(**APPLICATION)))
    typed = APPLICATION | {"oauth.client_secret": "secret-of-client", "oauth.kept_key": kept}
    assert "changed Login password" in text(browser.post(f"/external/{SUPPORT}", external(**typed)))
    [(sealed,)] = stored(store, "select password from external_accounts")
    assert Grant.open(Vault(KEY), sealed) == Grant(client_secret="secret-of-client")
    # and neither is in the audit
    assert not re.search("secret-of-client|PRIVATE", str(stored(store, "select * from audit")))


def test_an_account_uses_the_tokens_of_another_one_as_long_as_it_is_there(browser: Browser, store: str) -> None:
    # given
    browser.post("/external/new", external(**APPLICATION | {"oauth.client_secret": "secret-of-client"}))
    shared = {"address": "b@pages.example", "method": "same", "password": ""}
    page = browser.post("/external/new", external(**shared | {"oauth.same_as": "c@pages.example"}))
    assert "Account with the access tokens: 'c@pages.example': there is no such external account" in text(page)
    # when
    page = browser.post("/external/new", external(**shared | {"oauth.same_as": SUPPORT}))
    # then
    assert "added" in text(page) and f"This account uses the access tokens of {SUPPORT}" in text(page)
    assert re.search(r'<option value="same" selected', page.text)
    assert f"uses the access tokens of {SUPPORT}" in text(browser.get("/external/b@pages.example/authorize"))
    page = browser.post(f"/external/{SUPPORT}/remove")
    assert f"b@pages.example use the access tokens of {SUPPORT}" in text(page)
    browser.agree("/external/b@pages.example/remove")
    assert "removed" in text(browser.agree(f"/external/{SUPPORT}/remove"))


def test_addresses_are_changed_in_the_dialogs_and_the_former_ones_kept(browser: Browser, store: str) -> None:
    # given
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    ids = stored(store, "select id from external_accounts union all select id from local_accounts")
    # when
    fields = external(address="help@pages.example", password="", keep_address="on")
    page = browser.post(f"/external/{SUPPORT}", fields)
    # then
    assert page.url.endswith("/external/help@pages.example")
    assert f"Email address: {SUPPORT} -> help@pages.example" in text(page)
    assert f"Further addresses of this mailbox: none -> {SUPPORT}" in text(page)
    assert browser.get(f"/external/{SUPPORT}").status_code == 404
    # and so it is with a person, whose former address is given up here
    page = browser.post("/local/alex@local.com", local("Alex", address="al@local.com", external="help@pages.example"))
    assert page.url.endswith("/local/al@local.com")
    assert stored(store, "select address, addresses from local_accounts") == [("al@local.com", [])]
    assert stored(store, "select id from external_accounts union all select id from local_accounts") == ids


def test_an_address_of_another_account_is_refused_in_the_dialog(browser: Browser, store: str) -> None:
    browser.post("/external/new", external())
    browser.post("/external/new", external(address="b@pages.example"))
    page = browser.post(f"/external/{SUPPORT}", external(address="b@pages.example", password=""))
    assert page.status_code == 422 and "two accounts cannot become one" in text(page)
    assert 'value="b@pages.example"' in page.text  # as it was typed
    assert len(stored(store, "select from external_accounts")) == 2


def test_no_part_of_an_endpoint_but_its_host_is_in_the_audit(browser: Browser, store: str) -> None:
    # given endpoints whose path and query are keys
    url = "https://login.example/hush-path/token?key=hush-key"
    browser.post("/external/new", external(**TOKENS))
    page = browser.post(f"/external/{SUPPORT}", external(**TOKENS | {"oauth.issuer.token_url": url}))
    assert "Log in with: https://login.example (client us) -&gt; https://login.example (client us)" in page.text
    browser.post(f"/external/{SUPPORT}", external(**TOKENS))
    # then neither the audit nor an error tells them
    assert "hush" not in str(stored(store, "select * from audit"))
    for wrong in (
        "https://user:hush@login.example/token",
        "ftp://login.example/hush",
        "https://login.example/hush key",
    ):
        typed = TOKENS | {"address": "b@pages.example", "oauth.issuer.token_url": wrong}
        page = browser.post("/external/new", external(**typed))
        assert page.status_code == 422
        [problem] = re.findall(r'role="alert">\s*<p>(.*?)</p>', page.text)
        assert problem.startswith("Token endpoint: an endpoint is an https URL") and "hush" not in problem


@pytest.fixture(scope="module")
def mailbox(provider: DemoProvider) -> DemoProvider:
    provider.add_mailbox(SUPPORT, "secret")
    provider.put(SUPPORT, b"To: support@pages.example\nSubject: lies there\n\nHi\n")
    return provider


def at(provider: DemoProvider, **fields: Any) -> dict[str, Any]:
    servers_ = {
        "pop3.host": provider.host,
        "pop3.port": str(provider.pop3_port),
        "smtp.host": provider.host,
        "smtp.port": str(provider.smtp_port),
    }
    return external(password="secret", do="test", **servers_) | fields


def steps(page: Any) -> list[str]:
    found = re.findall(r'<li class="(done|failed)"><strong>(.*?)</strong>.*?<br>(.*?)</li>', page.text, re.S)
    return [f"{state} {name}: {what.strip()}" for state, name, what in found]


def test_the_check_shows_each_step_of_both_ways_and_changes_nothing(
    browser: Browser, store: str, mailbox: DemoProvider
) -> None:
    page = browser.post("/external/new", at(mailbox))
    assert [step.partition(":")[0] for step in steps(page)] == ["done POP3"] * 6 + ["done SMTP"] * 5
    told = "\n".join(steps(page))
    assert "POP3: find the server: 127.0.0.1" in told
    assert "1 mail" in told
    assert "1 of them will be delivered once everybody is there and the account is started" in told
    assert "the same in a second session" in told
    assert "may send here; taken back, nothing was sent" in told
    assert re.search(r"\d+ ms", text(page))
    assert stored(store, "select * from external_accounts") == []
    assert stored(store, "select * from inbound") == []


@pytest.mark.parametrize(
    ("fields", "failed", "advice"),
    [
        ({"password": "wrong"}, "POP3: log in", "check login name and password"),
        ({"password": "wrong"}, "SMTP: log in", "check login and password"),
        ({"pop3.port": "1"}, "POP3: connect", "check host and port"),
        ({"pop3.host": "nowhere.invalid"}, "POP3: find the server", "check the host&#39;s name"),
        ({"pop3.tls": "implicit"}, "POP3: encrypt (TLS)", "check port and tls"),
        ({"smtp.tls": "starttls"}, "SMTP: encrypt (TLS)", "certificate is not trusted"),
        ({"address": "nobody@pages.example", "login": SUPPORT}, "", ""),
    ],
)
def test_each_failure_of_the_check_is_at_its_step_and_says_what_to_change(
    browser: Browser, mailbox: DemoProvider, fields: dict[str, str], failed: str, advice: str
) -> None:
    found = [step for step in steps(browser.post("/external/new", at(mailbox, **fields))) if step.startswith("failed")]
    if not failed:
        assert found == []
        return
    assert any(step.startswith(f"failed {failed}") and advice in step for step in found), found


def test_the_check_contacts_no_private_host_without_permission(databases: servers.Databases) -> None:
    with databases.fresh() as database, console.running(database, allow_private_upstream=False) as url:
        browser = console.signed_in(url)
        told = "\n".join(steps(browser.post("/external/new", external(do="test"))))
        assert told.count("failed") == 2
        assert "127.0.0.1 is a private address, and those are not allowed" in told


def test_a_changed_host_asks_for_the_password_again(browser: Browser, store: str) -> None:
    # given an account with a stored password, and a server that records what it is sent
    browser.post("/external/new", external())
    sent: list[bytes] = []
    with scripted_pop3(sent) as port:
        moved = external(password="", **{"pop3.host": "localhost", "pop3.port": str(port)})
        # when somebody points the account at that server, to save or to test it
        for do in ("save", "test"):
            page = browser.post(f"/external/{SUPPORT}", moved | {"do": do})
            # then the field is named, and the password goes nowhere
            assert page.status_code == 422
            assert "Login password: has to be given again, because the stored one is for another server" in text(page)
            assert "127.0.0.1 -> localhost" in text(page) and "pop3.host 127" not in text(page)
            assert 'value="localhost"' in page.text
        fields: dict[str, Any] = {
            "address": SUPPORT,
            "pop3": {"host": "localhost", "port": port, "tls": "none"},
            "smtp": {"host": "127.0.0.1", "port": 1, "tls": "none"},
        }
        api = browser.session.put(
            f"{browser.url}/api/v1/external-accounts",
            json=fields,
            headers={"Origin": browser.url},
        )
        assert api.status_code == 422 and "password: has to be given again" in api.json()["detail"]
    assert sent == []
    assert stored(store, "select pop3_host from external_accounts") == [("127.0.0.1",)]
    # and with the password it is saved
    assert "POP3 server: 127.0.0.1:1" in text(browser.post(f"/external/{SUPPORT}", moved | {"password": "again"}))


@contextmanager
def scripted_pop3(sent: list[bytes]) -> Iterator[int]:
    """A server that greets, and keeps what it is sent; its port."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"+OK\r\n")
            sent.append(self.rfile.readline())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def skip(store: str) -> int:
    """A mail that could not be fetched, as the fetcher writes it down."""
    with psycopg.connect(store) as connection:
        row = connection.execute(
            """insert into uidl_ledger (external_id, uidl, state, octets, reason, tries)
               select id, 'u-' || gen_random_uuid(), 'skipped', 60000000, 'larger than 50 MB', 3 from external_accounts
               returning id"""
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_skipped_mails_are_shown_acknowledged_and_retried(browser: Browser, store: str) -> None:
    # given
    browser.post("/external/new", external())
    page, api = f"/external/{SUPPORT}", f"/api/v1/external-accounts/{SUPPORT}/skipped-mails"
    assert "Not fetched" not in text(browser.get(page))
    known, tried = skip(store), skip(store)
    assert "Not fetched: 2" in text(browser.get(page))
    assert "larger than 50 MB, 57.2 MB" in text(browser.get(page))
    assert [mail["id"] for mail in browser.get(api).json()] == [known, tried]
    # when
    told = text(browser.post(f"{page}/skipped", {"do": "acknowledge", "id": str(known)}))
    # then
    assert "1 mail is acknowledged" in told and "3 tries; acknowledged" in told
    assert "1 mail is tried again" in text(browser.post(f"{page}/skipped", {"do": "retry", "id": str(tried)}))
    assert stored(store, f"select acknowledged_at is not null from uidl_ledger where id = {known}") == [(True,)]
    assert stored(store, f"select next_try_at <= now() from uidl_ledger where id = {tried}") == [(True,)]
    # and by a script
    for way in ("retry", "acknowledge"):
        done = browser.session.post(
            f"{browser.url}{api}/{way}", json={"ids": [known, 999_999]}, headers={"Origin": browser.url}
        ).json()
        assert done == {"done": [known], "left": [999_999]}
    did = stored(store, "select did from audit where did like '%not fetched' order by id")
    assert [words.split()[0] for (words,) in did] == ["acknowledged", "tries", "tries", "acknowledged"]


def test_a_local_account_is_added_shown_changed_removed_and_brought_back(browser: Browser, store: str) -> None:
    browser.post("/external/new", external())
    assert "added" in text(browser.post("/local/new", local("Alex")))
    page = browser.post(
        "/local/alex@local.com", local("Alexander", address="alex@local.com", password="", aliases="Al\nLex")
    )
    assert "User name: Alex -&gt; Alexander" in page.text
    assert "Al" in text(browser.get("/local?q=alexander"))
    assert SUPPORT in text(browser.get("/local"))
    assert "Alexander" in text(browser.get(f"/external/{SUPPORT}"))
    # and the person's page leads to the form of the next person, who shares the same account
    [form] = re.findall(r'href="(/local/new[^"]*)"', page.text)
    assert console.forms(browser.get(form))[-1].values["external"] == SUPPORT
    gone = browser.agree("/local/alex@local.com/remove")
    assert "is removed" in text(gone)
    assert browser.get("/local/alex@local.com").status_code == 404
    assert "alex@local.com" in text(browser.get("/local/removed"))
    assert "is back" in text(browser.post("/local/removed", {"address": "alex@local.com"}))
    assert [row[0] for row in stored(store, "select did from audit where did <> 'signed in' order by id")] == [
        "changed external account",
        "changed local account",
        "changed local account",
        "removed local account",
        "restored local account",
    ]


def test_a_german_page_says_in_german_what_was_done_and_will_be(browser: Browser, store: str) -> None:
    browser.session.headers["Accept-Language"] = "de"
    browser.post("/external/new", external())
    for name in ("Alex", "Jim"):
        browser.post("/local/new", local(name))
    # an account is started; the record of it is English, for readers of any language
    page = text(browser.agree(f"/external/{SUPPORT}/start"))
    assert f"externes Konto {SUPPORT}: für 2 Personen gestartet; 0 zurückgehaltene Mails werden jetzt" in page
    said = f"external account {SUPPORT}: started for 2 people; 0 mails on hold are routed now"
    assert stored(store, "select detail from audit where did = 'started external account'") == [(said,)]
    # a user is added, and a token revoked
    user = {"do": "add", "name": "olga", "role": "observer", "password": "long enough"}
    assert "Benutzer olga: hinzugefügt als Beobachter." in text(browser.post("/users", user))
    browser.post("/users", {"do": "token", "name": "backup", "role": "observer", "days": "9"})
    [(token,)] = stored(store, "select id from api_tokens where name = 'backup'")
    revoked = browser.agree("/users", {"do": "end-token", "id": str(token)})
    assert "Token backup: widerrufen." in text(revoked)
    [(olga,)] = stored(store, "select id from console_users where name = 'olga'")
    browser.agree("/users", {"do": "remove", "id": str(olga)})
    # an account was changed meanwhile
    refused = text(browser.post("/local/jim@local.com", local("Jim", version="of an earlier state")))
    assert "jim@local.com wurde inzwischen geändert, und es ist noch nichts gespeichert" in refused
    assert "admin: hinzugefügt" in refused
    browser.post("/local/alex@local.com", local("Alex", password="", aliases="Lex"))
    entries = text(browser.get("/audit"))
    assert "lokales Konto geändert alex@local.com Weitere Namen: keine -> Lex" in entries
    # a person leaves
    shown = console.forms(browser.get("/local/jim@local.com/retire"))[-1].pairs
    leaves = shown | {"mailbox_to": "alex@local.com", "delegate": "alex@local.com", "then": "remove"}
    asked = text(browser.post("/local/jim@local.com/retire", leaves))
    assert "Kopien von 0 Mails kommen als neue Mail in das Postfach von alex@local.com." in asked
    assert "Mails an Jim, die von jetzt an kommen, gehen an alex@local.com." in asked
    assert "jim@local.com wird entfernt." in asked and "are removed" not in asked
    done = text(browser.agree("/local/jim@local.com/retire", leaves))
    assert "lokales Konto jim@local.com: 0 Mails zu alex@local.com kopiert" in done


def test_a_person_whose_name_a_colleague_has_now_is_not_brought_back(browser: Browser) -> None:
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    browser.agree("/local/alex@local.com/remove")
    browser.post("/local/new", local("Alex", address="other@local.com"))
    # the page says so as an error, and still lists the account
    refused = browser.post("/local/removed", {"address": "alex@local.com"})
    assert refused.status_code == 422 and 'role="alert"' in refused.text
    assert "alex@local.com cannot be brought back: 'Alex': other@local.com has this name" in text(refused)
    assert console.forms(refused)[-1].values == {"address": "alex@local.com"}
    # until the colleague gives it up
    browser.agree("/local/other@local.com/remove")
    assert "is back" in text(browser.post("/local/removed", {"address": "alex@local.com"}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"user_name": "alex"}, "alex@local.com has this name in the same share"),
        ({"address": "alex@local.com"}, "Email address: alex@local.com is there already"),
        ({"address": "jim@gmail.com"}, "gmail.com is a public mail provider's domain"),
        ({"delegate": "nobody@local.com"}, "there is no such local account"),
        ({"external": "none@pages.example"}, "there is no such external account"),
        ({"user_name": ""}, "User name: fill this in"),
    ],
)
def test_a_person_who_would_collide_is_refused_with_the_reason(
    browser: Browser, store: str, fields: dict[str, str], said: str
) -> None:
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    page = browser.post("/local/new", local("Jim") | fields)
    assert page.status_code == 422
    assert said in text(page)
    assert len(stored(store, "select * from local_accounts")) == 1


def test_a_weak_password_is_refused_and_a_stored_one_counted(browser: Browser, store: str) -> None:
    browser.post("/external/new", external())
    page = browser.post("/local/new", local("Alex", password="nine char"))
    assert page.status_code == 422
    assert "Login password: at least 10 characters are needed" in text(page)
    assert stored(store, "select * from local_accounts") == []
    assert browser.post("/local/new", local("Alex", password="ten  chars")).ok
    assert browser.post("/local/alex@local.com", local("Alex", password="nine char")).status_code == 422
    # a file may have one, and the page says so
    entry = f"{{address: alex@local.com, user_name: Alex, external: {SUPPORT}, password: short}}"
    file = {"file": ("accounts.yaml", f"local_accounts: [{entry}]")}
    tried = browser.post("/accounts-file", files=file)
    assert "Warning: 1 local account has a password of fewer than 10 characters." in text(tried)
    [question] = [form for form in forms(tried) if form.values.get("confirmed")]
    page = browser.post(question.action, question.pairs)
    assert "Warning: 1 local account has a password of fewer than 10 characters." in text(page)
    assert stored(store, "select weak_password from local_accounts") == [(True,)]
    # it stays weak until it is changed
    fields = local("Sascha", address="alex@local.com")
    assert browser.post("/local/alex@local.com", fields | {"password": ""}).ok
    assert stored(store, "select weak_password from local_accounts") == [(True,)]
    assert "changed Login password" in text(browser.post("/local/alex@local.com", fields))
    assert stored(store, "select weak_password from local_accounts") == [(False,)]


def test_a_taken_name_and_a_weak_password_are_shown_at_once(browser: Browser, store: str) -> None:
    browser.post("/external/new", external())
    assert browser.post("/local/new", local("Alex")).ok
    page = browser.post("/local/new", local("Alex", address="kim@local.com", password="nine char"))
    assert page.status_code == 422
    assert "User name: 'Alex': alex@local.com has this name in the same share" in text(page)
    assert "Login password: at least 10 characters are needed" in text(page)
    assert "<details open" not in page.text  # no field in there is wrong
    assert stored(store, "select address from local_accounts") == [("alex@local.com",)]
    # the mistakes of a hidden field show it
    page = browser.post("/local/new", local("Kim", delegate="nobody@local.com"))
    assert page.status_code == 422 and "<details open" in page.text


def test_an_account_that_is_not_started_is_on_hold_on_every_page(browser: Browser, store: str) -> None:
    browser.post("/external/new", external())
    assert browser.post("/local/new", local("Alex")).ok
    [(external_id,)] = stored(store, "select id from external_accounts")
    with psycopg.connect(store, autocommit=True) as connection:
        connection.execute(
            "insert into polls (external_id, last_success_at) values (%s, now()) "
            "on conflict (external_id) do update set last_success_at = now()",
            (external_id,),
        )
        connection.execute(
            "with b as (insert into blobs (octets, sha256, head) values (3, '', 'x') returning id) "
            "insert into inbound (source, external_id, blob_id, state) select 'fetched', %s, id, 'held' from b",
            (external_id,),
        )
    row = text(browser.get("/external"))
    assert "on hold" in row and "not started yet" in row and "works" not in row
    assert "the account is not started" in text(browser.get("/local/alex@local.com"))
    browser.post(f"/external/{SUPPORT}/start", {"people": "1"})
    assert "works" in text(browser.get("/external"))


def test_an_external_account_is_not_removed_while_it_has_sharers(browser: Browser) -> None:
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    refused = browser.post(f"/external/{SUPPORT}/remove")
    assert "is shared by alex@local.com" in text(refused)
    browser.agree("/local/alex@local.com/remove")
    assert browser.agree(f"/external/{SUPPORT}/remove").url.endswith("/external")


def test_an_observer_sees_and_changes_nothing(browser: Browser, observer: Browser) -> None:
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    for path in ("/", "/external", f"/external/{SUPPORT}", "/local", "/local/alex@local.com", "/local/removed"):
        assert observer.get(path).ok
    for path in ("/external/new", "/local/new"):
        assert observer.get(path).status_code == 403
    for path in (f"/external/{SUPPORT}", f"/external/{SUPPORT}/remove", "/local/alex@local.com", "/local/removed"):
        assert observer.post(path, external()).status_code == 403


@pytest.mark.parametrize(
    "path", ["/external/nobody@x.example", "/local/nobody@x.example", "/local/%00", "/external/a%2Fb"]
)
def test_an_account_that_does_not_exist_is_not_found(browser: Browser, path: str) -> None:
    assert browser.get(path).status_code == 404


@pytest.mark.parametrize("page", ["/external", "/local"])
def test_a_list_can_be_searched_for_any_text(browser: Browser, page: str) -> None:
    assert browser.get(page, params={"q": "\x00%'", "after": "\x00"}).ok


def hidden(page: Any, name: str) -> str:
    [value] = re.findall(rf'name="{name}" value="([^"]*)"', page.text)
    return str(value)


def test_of_two_tabs_the_later_one_is_told_who_changed_what(browser: Browser, store: str) -> None:
    # given the dialog of an account in two tabs
    browser.post("/external/new", external())
    first = second = hidden(browser.get(f"/external/{SUPPORT}"), "version")
    other = console.signed_in(browser.url)
    # when one is saved
    assert other.post(f"/external/{SUPPORT}", external(password="", version=first, poll_seconds="30")).ok
    # then the other one is not, and says why, with all that was typed
    typed = external(password="typed-secret", version=second, poll_seconds="90", login="typed-login")
    page = browser.post(f"/external/{SUPPORT}", typed)
    assert page.status_code == 409
    assert "was changed meanwhile, and nothing is saved yet" in text(page)
    assert "admin: Check for new mail every … seconds: 60 -> 30" in text(page) and "poll_seconds 60" not in text(page)
    beside = dict(re.findall(r'id="([\w.]+)-error">(.+?)</p>', page.text))
    assert beside == {"poll_seconds": "Stored now: 30.", "login": f"Stored now: {SUPPORT}."}
    # and of the other protocol only its choice
    page = browser.post(f"/external/{SUPPORT}", typed | IMAP | {"imap.host": "h"})
    told = dict(re.findall(r'id="([\w.]+)-error">(.+?)</p>', page.text))
    assert told["protocol"] == "Stored now: pop3." and "pop3.host" not in told
    assert 'value="typed-login"' in page.text and 'value="90"' in page.text and "typed-secret" not in page.text
    assert stored(store, "select poll_seconds from external_accounts") == [(30,)]
    # and saved again, it replaces the other change knowingly
    again = typed | {"password": "", "version": hidden(page, "version"), "kept": hidden(page, "kept")}
    assert "Check for new mail every … seconds: 30 -> 90" in text(browser.post(f"/external/{SUPPORT}", again))
    # but what no person sets is no change
    version = hidden(browser.get(f"/external/{SUPPORT}"), "version")
    with psycopg.connect(store) as connection:
        connection.execute("update relays set size = 1000, refused = 2000")
    assert hidden(browser.get(f"/external/{SUPPORT}"), "version") == version


def test_a_person_who_was_changed_or_removed_meanwhile_is_not_saved(browser: Browser, store: str) -> None:
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    version = hidden(browser.get("/local/alex@local.com"), "version")
    # when the password is changed in another tab, the later form is not saved, although it shows no other field
    assert browser.post("/local/alex@local.com", local("Alex", password="another secret", version=version)).ok
    page = browser.post("/local/alex@local.com", local("Alexa", password="", version=version))
    assert page.status_code == 409 and "admin: Login password" in text(page)
    assert 'value="Alexa"' in page.text
    # when the account is removed meanwhile, the form does not bring it back
    version = hidden(page, "version")
    with psycopg.connect(store) as connection:
        connection.execute("update local_accounts set removed_at = now()")
    assert browser.post("/local/alex@local.com", local("Alexa", version=version)).status_code == 404
    assert stored(store, "select count(*) from local_accounts where removed_at is null") == [(0,)]


def test_the_api_saves_the_version_that_was_read_and_no_other(browser: Browser) -> None:
    browser.post("/external/new", external())
    browser.post("/local/new", local("Alex"))
    url, headers = f"{browser.url}/api/v1/local-accounts", {"Origin": browser.url}
    read = browser.get("/api/v1/local-accounts/alex@local.com")
    fields = {"address": "alex@local.com", "user_name": "Alex", "external": SUPPORT}
    # when two scripts save what they have read
    answers = [
        browser.session.put(
            url, json=fields | {"aliases": [name]}, headers=headers | {"If-Match": read.headers["ETag"]}
        )
        for name in ("First", "Second")
    ]
    # then the later one is refused, and without the header it is not
    assert [answer.status_code for answer in answers] == [200, 412]
    assert "changed meanwhile" in answers[1].json()["detail"]
    assert browser.get("/api/v1/local-accounts/alex@local.com").json()["aliases"] == ["First"]
    assert browser.get(f"/api/v1/external-accounts/{SUPPORT}").headers["ETag"].startswith('"')
    assert browser.session.put(url, json=fields, headers=headers).ok


def test_changes_at_the_same_time_lose_nothing(browser: Browser) -> None:
    browser.post("/external/new", external())
    for name in ("Alex", "Jim"):
        browser.post("/local/new", local(name))
    names = [f"Name {number}" for number in range(12)]

    def add(name: str, person: str = "alex") -> int:
        url = f"{browser.url}/api/v1/local-accounts/{person}@local.com/names"
        return browser.session.post(url, json={"name": name}, headers={"Origin": browser.url}).status_code

    # when many names are added at once, all are there
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(add, names)) == {200}
    assert sorted(browser.get("/api/v1/local-accounts/alex@local.com").json()["aliases"]) == sorted(names)
    # and of two who want the same name, one has it
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(add, ["Same", "Same"], ["alex", "jim"])) == [200, 422]
