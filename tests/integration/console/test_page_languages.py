"""Every page in the language of its reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser

import pytest
import requests

from tests import console, servers
from tests.company import SUPPORT
from tests.console import Browser, forms, text
from tests.integration.console.test_forms import ids_of, pages, seeded

SHOWN = ("title", "alt", "placeholder", "aria-label", "data-label")
"""Attributes that a reader sees or hears."""
DATA = re.compile(
    r"""\S*[@/.:_+=\d]\S*                             # addresses, hosts, paths, numbers, times
      | mailgroup | UTC | kB | MB | GB | English | Deutsch | Esperanto | Alex | Jim | Kim | Tom | Alexander | Ann\w*
      | fetcher | router | mailbox | sender | OpenAPI | To | Cc  # names of services, header fields, formats
      | admin | second | script | observer | administrator | person
      | Printer | smokes | Hello | there | Bob | Für | no | such | user | it | broke | router  # of the sample mails
      | Hotmail | Live | MSN | or | own | domain | MX | Plan | Mail                         # in providers' names
      | Message-ID | larger | than
      | TLS | IMAP | POP3 | SMTP | STARTTLS | SSL | Google | Microsoft | Gmail | GMX | WEB | iCloud | Yahoo | Zoho
      | OVH\w* | IONOS | STRATO | Fastmail | Proton | Bridge | Workspace | Exchange | Outlook
      | cPanel | Apple | INBOX | YAML
    """,
    re.VERBOSE,
)


class _Reader(HTMLParser):
    """The texts of a page: of its elements, and of attributes that are shown."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._silent = 0
        self.language: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "html":
            self.language = values.get("lang")
        self._silent += tag in ("script", "style", "pre", "code", "textarea")
        self.texts += [f" {values[name]} " for name in SHOWN if values.get(name)]

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style", "pre", "code", "textarea")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.texts.append(data)


def untranslated(page: str) -> list[str]:
    """The words of a page that stand in no translated text and are no data."""
    reader = _Reader()
    reader.feed(page)
    rest = " ".join("".join(f"{each}\n" for each in reader.texts).split(" "))
    while (shorter := re.sub(r"⟦[^⟦⟧]*⟧", " ", rest)) != rest:
        rest = shorter
    words = [word.strip("(),;…–·") for word in rest.split()]
    return [word for word in words if re.search(r"[^\W\d_]{2}", word) and not DATA.fullmatch(word)]


@pytest.fixture(scope="module")
def store(databases: servers.Databases) -> Iterator[str]:
    yield from seeded(databases)


@pytest.fixture
def ids(store: str) -> dict[str, str]:
    return ids_of(store)


def in_language(url: str, code: str, person: bool = False) -> Browser:
    browser = Browser(url)
    browser.session.headers["Accept-Language"] = code
    if person:
        browser.sign_in("tom@local.com", "secret")
    else:
        browser.sign_in("admin", console.PASSWORD)
    return browser


def test_no_text_of_a_page_is_left_behind(url: str, ids: dict[str, str], marked_language: None) -> None:
    administrator, person, nobody = in_language(url, "eo"), in_language(url, "eo", person=True), Browser(url)
    nobody.session.headers["Accept-Language"] = "eo"
    left = {}
    for path in pages(ids):
        browser = person if path.startswith("/mine") else nobody if path == "/sign-in" else administrator
        page = browser.get(path)
        assert page.ok and '<html lang="eo">' in page.text, path
        if words := untranslated(page.text):
            left[path] = words
    assert not left, "\n".join(f"{path}: {' '.join(words)}" for path, words in left.items())


def headline(page: requests.Response) -> str:
    found = re.search(r"<h1[^>]*>(.*?)</h1>", page.text, re.DOTALL)
    assert found is not None
    return unescape(re.sub(r"<[^>]+>", "", found[1])).strip()


def test_the_browser_chooses_the_language_and_the_user_another(url: str, ids: dict[str, str]) -> None:
    german = in_language(url, "de-AT,de;q=0.9,en;q=0.5")
    page = german.get("/queue")
    assert '<html lang="de">' in page.text and headline(page) == "Warteschlange"
    # when the user chooses another one, then it stays, for this browser
    page = german.post("/language", {"language": "en", "next": "/queue?x=1"})
    assert page.url == f"{url}/queue?x=1" and headline(page) == "Queue and stuck mail"
    assert headline(german.get("/queue")) == "Queue and stuck mail"
    # also on a page that answers a form
    asked = german.post(f"/external/{SUPPORT}/remove", headers={"Referer": f"{url}/external/{SUPPORT}"})
    [choice] = [form for form in forms(asked) if form.action == "/language"]
    assert german.post("/language", choice.values).url == f"{url}/external/{SUPPORT}"
    assert german.post("/language", {"language": "en", "next": "//x.example"}).url == f"{url}/"
    # and a language that there is not leads back to that of the browser
    assert '<html lang="de">' in german.post("/language", {"language": "xx"}).text


@pytest.mark.parametrize("accepted", ["", "fr", "*", "en-GB,de;q=0.1", "de;q=0", ";;;,=", "x" * 10_000])
def test_any_other_wish_is_english(url: str, accepted: str) -> None:
    page = requests.get(f"{url}/sign-in", headers={"Accept-Language": accepted}, timeout=300)
    assert '<html lang="en">' in page.text and "Sign in" in text(page)


def test_the_rest_api_is_english(url: str, ids: dict[str, str]) -> None:
    german = in_language(url, "de")
    answer = german.get("/api/v1/local-accounts/nobody@local.com")
    assert answer.status_code == 404 and "there is no such local account" in answer.json()["detail"]


def test_an_error_of_a_form_is_german(url: str, ids: dict[str, str]) -> None:
    german = in_language(url, "de")
    page = german.post("/local/new", {"address": "x", "user_name": "", "external": "none@x.example"})
    assert page.status_code == 422
    assert "there is" not in text(page) and "an address" not in text(page)


WRONG_FILES = (
    "a: [1",
    "a: b: c",
    "a:\n\tb: 1",
    "a: 'x",
    "*x",
    "a: &b 1",
    "{",
    "- a\nb: 1",
    "a: @x",
    "a: 1\na: 2",
    "%YAML 9",
    'a: "\\q"',
    'a: "\\xq"',
    "]",
    "!!python/x 1",
    "!x!y 1",
    "<<: 1",
    "a: 2026-99-99",
    "a: 2026-02-31",
    "a: {b}}",
    "--- a\n--- b",
    "? [a]: b",
    "a: \1",
    "a: |0",
    "a: |x",
    "[" * 50,
    "a: b\nc",
    "external_accounts: 5",
    "local_accounts: [{address: a@b, user_name: '', external: q@q.example}]",
)
OF_FILES = re.compile(
    r"""'[^']*'?|"[^"]*"?|external_accounts\W*|local_accounts\W*|user_name:?|address|scalar|end>'|x|y|file"""
)


def test_an_error_of_an_accounts_file_is_translated(url: str, marked_language: None) -> None:
    browser = in_language(url, "eo")
    left = {}
    for content in WRONG_FILES:
        page = browser.post("/accounts-file", files={"file": ("accounts.yaml", content.encode())})
        assert page.status_code == 422, content
        if words := [word for word in untranslated(page.text) if not OF_FILES.fullmatch(word)]:
            left[content] = words
    assert not left, "\n".join(f"{content!r}: {' '.join(words)}" for content, words in left.items())
