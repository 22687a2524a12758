"""The language of a person: in the accounts file, on the pages, and in the REST API."""

from __future__ import annotations

import re

import psycopg
import pytest

from tests import console
from tests.console import Browser, text
from tests.integration.console.test_dialogs import SUPPORT, empty, external, local

ENTRY = "{address: alex@local.com, user_name: Alex, external: support@pages.example%s}"


@pytest.fixture
def browser(url: str, store: str) -> Browser:
    """An administrator, and Alex, for whom no language is chosen."""
    empty(store)
    found = console.signed_in(url)
    found.post("/external/new", external())
    found.post("/local/new", local("Alex"))
    assert stored(store) is None
    return found


def stored(store: str) -> str | None:
    with psycopg.connect(store) as connection:
        row = connection.execute("select language from local_accounts").fetchone()
    assert row is not None
    return None if row[0] is None else str(row[0])


def apply(browser: Browser, more: str = "") -> tuple[int, str]:
    """Apply an accounts file. :param more: of Alex's entry."""
    file = f"local_accounts: [{ENTRY % more}]"
    url = f"{browser.url}/api/v1/accounts-file"
    answer = browser.session.put(url, data=file, headers={"Origin": browser.url})
    return answer.status_code, answer.text


def test_an_operator_chooses_the_language_in_the_dialog(browser: Browser, store: str) -> None:
    page = browser.post("/local/alex@local.com", local("Alex", password="", language="de"))
    assert "Language of notices: none -> de" in text(page) and stored(store) == "de"
    assert re.search(r'<option value="de" selected>Deutsch</option>', browser.get("/local/alex@local.com").text)
    page = browser.post("/local/alex@local.com", local("Alex", password="", language=""))
    assert "Language of notices: de -> none" in text(page) and stored(store) is None


def test_an_accounts_file_without_a_language_keeps_the_chosen_one(browser: Browser, store: str) -> None:
    # when the file names a language, then it is stored, and exported
    assert apply(browser, ", language: de")[0] == 200 and stored(store) == "de"
    assert "language: de" in browser.session.get(f"{browser.url}/api/v1/accounts-file").text
    assert browser.session.get(f"{browser.url}/api/v1/local-accounts/alex@local.com").json()["language"] == "de"
    # when it has no such field, then the stored one is kept
    assert apply(browser)[0] == 200 and stored(store) == "de"
    # when it says null, then the operator's default applies again
    assert apply(browser, ", language: null")[0] == 200 and stored(store) is None


@pytest.mark.parametrize(("value", "words"), [("fr", "'fr' is not one of en, de"), ("5", "5 is not text")])
def test_a_language_that_there_is_not_is_refused(browser: Browser, store: str, value: str, words: str) -> None:
    status, answer = apply(browser, f", language: {value}")
    assert status == 422 and f"local account alex@local.com: language: {words}" in answer
    assert stored(store) is None


def test_a_person_chooses_the_language_of_the_notices(browser: Browser, url: str, store: str) -> None:
    # given Alex, signed in
    alex = console.signed_in(url, "alex@local.com", "a long secret")
    assert "As the operator has set it: English" in text(alex.get("/mine"))
    # when Alex chooses German
    page = alex.post("/mine/language", {"language": "de"})
    # then it is stored and shown, and the audit says so
    assert page.url.endswith("/mine") and stored(store) == "de"
    assert re.search(r'<option value="de" selected>Deutsch</option>', page.text)
    assert "changed their language" in text(browser.get("/audit"))
    # and a language that is not offered is refused
    assert alex.post("/mine/language", {"language": "fr"}).status_code == 422 and stored(store) == "de"
    assert alex.post("/mine/language", {"language": ""}).ok and stored(store) is None
    assert SUPPORT in text(alex.get("/mine"))


def test_the_errors_of_a_form_are_in_the_language_of_the_browser(browser: Browser, store: str) -> None:
    # given a browser that asks for German
    browser.session.headers["Accept-Language"] = "de-AT,de;q=0.9"
    # when a form has mistakes
    page = browser.post("/external/new", external(**{"address": "support", "pop3.port": "70000", "smtp.host": ""}))
    # then it says so in German, beside the fields
    assert page.status_code == 422
    said = text(page)
    assert "eine Adresse hat die Form name@domain und höchstens 200 Byte" in said.replace("Eine", "eine")
    assert "70000 ist keine Zahl von 1 bis 65535" in said and "bitte ausfüllen" in said.replace("Bitte", "bitte")
    # and what the audit keeps is English
    browser.post("/local/alex@local.com", local("Alex", password="", language="de"))
    with psycopg.connect(store) as connection:
        [detail] = connection.execute("select detail from audit order by id desc limit 1").fetchone() or [""]
    assert "changed language none -> de" in detail


def test_a_test_of_the_servers_is_told_in_the_language_of_the_browser(browser: Browser) -> None:
    browser.session.headers["Accept-Language"] = "de"
    said = text(browser.post("/external/new", external(do="test")))
    assert "POP3: Server finden" in said and "Verbindung abgelehnt; prüfen Sie Server und Port" in said
    # and a program gets it in English
    url = f"{browser.url}/api/v1/external-accounts/{SUPPORT}/test"
    steps = browser.session.post(url, headers={"Origin": browser.url}).json()
    assert [step["step"] for step in steps if not step["ok"]] == ["POP3: connect", "SMTP: connect"]
    assert steps[1]["result"] == "connection refused; check host and port"
