"""A reload of the page that answers a form sends nothing again, whatever the answer is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
import requests

from services.admin.web import kept_pages
from services.admin.web.page_context import KEPT_PAGE
from tests import console, servers
from tests.console import Browser, forms, text
from tests.integration.console.test_forms import contents, every_form, ids_of, routes, seeded, typed_values


@pytest.fixture(scope="module")
def store(databases: servers.Databases) -> Iterator[str]:
    yield from seeded(databases)


def sent(browser: Browser, path: str, fields: dict[str, list[str]], page: str) -> requests.Response:
    return browser.post(path, fields, headers={"Referer": urljoin(browser.url, page)}, allow_redirects=False)


def is_file(answer: requests.Response) -> bool:
    """Whether the browser stores the answer, and stays on the page."""
    return answer.headers.get("content-disposition", "").startswith("attachment")


def check_reload(browser: Browser, store: str, answer: requests.Response, what: str) -> None:
    """The page that follows is requested with GET, and again shows the same and changes nothing."""
    assert answer.status_code == 303, f"{what}: {answer.status_code}"
    place = answer.headers["location"]
    if KEPT_PAGE not in place:
        return  # the answer of a form that did what it is for
    first, before = browser.get(place), contents(store)
    again = browser.get(place)
    assert (again.status_code, again.text) == (first.status_code, first.text), what
    assert first.headers["content-type"].startswith("text/html") and "typed-secret" not in first.text, what
    assert contents(store) == before, what


def test_no_route_answers_a_form_with_a_page_of_its_own(url: str, store: str) -> None:
    for route in routes("POST"):
        browser = console.signed_in(url)
        for part in ("0", "no-such@local.com"):
            path = re.sub(r"\{\w+\}", part, route)
            for values in ({}, {"do": ["nothing"], "confirmed": ["on"], "id": ["0"]}):
                check_reload(browser, store, sent(browser, path, values, "/"), path)


def test_a_kept_page_is_for_its_browser_and_its_session_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a form that is refused
    browser = console.signed_in(url)
    page = browser.post("/local/new", {"user_name": "Only Mine", "password": "typed-secret"})
    assert page.status_code == 422 and page.url.startswith(f"{url}/local/new?shown=")
    assert "Only Mine" in page.text and "Only Mine" in browser.get(page.url).text
    # then others see the page with the form
    assert "Only Mine" not in console.signed_in(url).get(page.url).text
    # and so does the same browser in another session, and without one
    cookies = browser.session.cookies
    session = cookies["mailgroup_session"]
    browser.sign_in()
    assert "Only Mine" not in browser.get(page.url).text
    del cookies["mailgroup_session"]
    assert "/sign-in" in browser.get(page.url).url
    cookies["mailgroup_session"] = session
    assert "Only Mine" in browser.get(page.url).text
    # and after the time it is the page with the form
    monkeypatch.setattr(kept_pages, "KEPT_SECONDS", 0.0)
    late = browser.post("/local/new", {"user_name": "Only Mine"})
    assert late.ok and "shown=" in late.url and "Only Mine" not in late.text and forms(late)


def test_the_language_of_a_kept_page_is_changed_on_the_page_of_the_form(url: str) -> None:
    browser = console.signed_in(url)
    headers = {"Referer": f"{url}/local/new?external=a%40b.c"}
    page = browser.post("/local/new", {"user_name": "x"}, headers=headers)
    assert "external=a%40b.c&shown=" in page.url
    [language] = [form for form in forms(page) if form.action == "/language"]
    assert language.values["next"] == "/local/new?external=a%40b.c"
    # and what is sent from a kept page leads to the same page
    page = browser.post("/local/new", {"user_name": "x"}, headers={"Referer": page.url})
    assert page.url.count("shown=") == 1 and "external=a%40b.c" in page.url


def test_a_wrong_password_is_not_sent_again_by_a_reload(url: str) -> None:
    browser = Browser(url)
    page = browser.post("/sign-in", {"name": "admin", "password": "typed-secret", "next": "/queue"})
    assert page.status_code == 401 and "/sign-in?shown=" in page.url and "typed-secret" not in page.text
    assert forms(page)[0].values["name"] == "admin" and forms(page)[0].values["next"] == "/queue"
    assert "do not belong together" in text(browser.get(page.url))


# ------------------------------------------------- last: it changes passwords and accounts


def test_no_form_of_any_page_is_answered_with_a_page_of_its_own(url: str, store: str) -> None:
    # given every form, sent with and without values, by users with and without a session
    kept, found = 0, every_form(url, ids_of(store))
    administrator, person, nobody = console.signed_in(url), Browser(url), Browser(url)
    person.sign_in("tom@local.com", "secret")
    for path, form in found:
        if form.method != "post":
            continue
        own = person if path.startswith("/mine") else administrator
        for browser in (nobody, own):
            if browser is own and form.action == "/sign-out":
                continue  # its answer is the page of the sign-in: the test of routes sends it
            for values in ({}, form.pairs, typed_values(form))[2 if browser is nobody else 0 :]:
                for button in form.buttons:
                    pressed = {button["name"]: [button["value"]]} if "name" in button else {}
                    answer = sent(browser, form.action or path, values | pressed, path)
                    if not is_file(answer):
                        check_reload(browser, store, answer, f"{path}: {form.action} {pressed}")
                        kept += KEPT_PAGE in answer.headers["location"]
    assert kept > 50
