"""Every page and state of the console in a browser, with many people and mails: it fits a phone, a desktop and a wide
screen, light and dark, a row is one line, and an accessibility checker finds nothing serious.

``make screenshots`` takes a picture of each into the folder SCREENSHOTS."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests import console, servers
from tests.company import SUPPORT
from tests.e2e.test_console import chromium
from tests.integration.console.test_forms import SEEDS
from tests.integration.console.test_mail_pages import fill

__all__ = ["chromium"]  # a fixture

SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""Folder for the pictures; None: none is taken."""
SIZES = {390: 844, 1280: 900, 1920: 1080}
"""Width and height of a phone, a desktop and a wide screen: pixels."""
FEW, MANY = ((390, "dark"), (1280, "light")), tuple((w, s) for w in SIZES for s in ("light", "dark"))
"""Widths and colour schemes of the checks, and of the pictures."""
ROW = 29
"""Largest height of a row on a desktop: pixels; fifty rows are a screen and a half at 1080."""
PEOPLE, MAILS = 202, 60
MORE = f"""
insert into local_accounts (address, password_hash, user_name, external_id)
    select 'colleague' || n || '@a-rather-long-domain-name.example', 'x', 'Colleague ' || n, e.id
    from generate_series(1, {PEOPLE - 2}) n, external_accounts e where e.address = '{SUPPORT}';
insert into deliveries (inbound_id, local_id, rule, reason)
    select i.id, l.id, 5, 'To names nobody, so everyone who shares it gets it'
    from local_accounts l join external_accounts e on e.id = l.external_id, inbound i
    where i.message_id = 'q@customer.example' and e.address = '{SUPPORT}' on conflict do nothing;
update inbound set state = 'delivered' where message_id = 'q@customer.example';
insert into maillog (event, inbound_id, who, reply)
    select 'delivered', i.id, l.address, 'To names nobody'
    from local_accounts l, inbound i where i.message_id = 'q@customer.example';
insert into inbound (source, external_id, blob_id, message_id, state, rule, reason)
    select 'fetched', external_id, blob_id, n || '@many.example', 'delivered', 5, 'everyone'
    from generate_series(1, {MAILS}) n, inbound where message_id = 'n@customer.example';
insert into search_index (mail_id, at, external_id, sender, subject, terms)
    select id, now() - id * interval '7 minutes', external_id, 'Anna Customer of the Long Name Company',
        'Question number ' || id || ' about a printer that smokes, beeps and prints one page in four only',
        '{{question}}'
    from inbound where message_id like '%@many.example';
insert into deliveries (inbound_id, local_id, rule, reason)
    select i.id, l.id, 5, 'everyone' from inbound i, local_accounts l
    where i.message_id like '%@many.example' and l.address in ('alex@local.com', 'jim@local.com');
update submissions set state = 'queued', error = '451 4.3.0 The server is busy, please try again later or ask support',
    tries = 1, next_try_at = now() + interval '1 hour';
update submission_recipients set state = 'waiting' where position = 0;
insert into audit (who, did, target, detail)
    select 'admin', 'changed local account', 'colleague' || n || '@a-rather-long-domain-name.example',
        'changed further names from empty to ' || repeat('Colly, ', 30) from generate_series(1, 40) n;
insert into unknown_names (external_id, name, shown, mails, last_mail_id, last_at)
    select e.id, 'alexander', 'Alexander', 4, i.id, now() from external_accounts e, inbound i
    where e.address = '{SUPPORT}' and i.message_id = 's@customer.example' on conflict do nothing;
"""
"""As many people and mails as a company has, with long names."""


@dataclass(frozen=True, slots=True)
class State:
    """A page in a state. act: what is done on the page before it is looked at."""

    name: str
    path: str
    act: Callable[[Page], None] = lambda page: None


def _press(name: str, fields: dict[str, str] | None = None) -> Callable[[Page], None]:
    def act(page: Page) -> None:
        for label, value in (fields or {}).items():
            page.get_by_label(label, exact=True).fill(value)
        with page.expect_navigation():
            page.get_by_role("button", name=name, exact=True).first.click()

    return act


def _type_search(page: Page) -> None:
    page.get_by_label("Address, words").press_sequentially("quest")
    expect(page.locator("#results")).to_contain_text("Question number")
    expect(page.locator("#results")).not_to_contain_text("Re: Printer smokes")
    expect(page.locator("#results:not([aria-busy])")).to_be_visible()


def _open_folds(page: Page) -> None:
    for fold in page.locator("details").all():
        fold.evaluate("fold => { fold.open = true; }")


def _discard(page: Page) -> None:
    page.get_by_role("checkbox", name="Mail ").last.check()
    page.get_by_label("What to do with the ticked mails").last.select_option("discard")
    with page.expect_navigation():
        page.get_by_role("button", name="Continue").last.click()


STATES = (
    State("overview", "/"),
    State("external", "/external"),
    State("external-none-found", "/external?q=nobody"),
    State("external-new", "/external/new"),
    State("external-new-refused", "/external/new", _press("Test")),
    State("external-one", f"/external/{SUPPORT}"),
    State("external-one-open", f"/external/{SUPPORT}", _open_folds),
    State("external-checked", f"/external/{SUPPORT}", _press("Check now")),
    State("external-remove", "/external/sales@company.com", _open_folds),
    State("authorize", "/external/sales@company.com/authorize"),
    State("local", "/local"),
    State("local-sharers", f"/local?external={SUPPORT}"),
    State("local-none-found", "/local?q=nobody"),
    State("local-new", "/local/new"),
    State("local-new-refused", "/local/new", _press("Add", {"Email address": "x@y", "User name": "X"})),
    State("local-one", "/local/alex@local.com", _open_folds),
    State("local-deleted", "/local/tom@local.com/deleted"),
    State("local-deleted-none", "/local/jim@local.com/deleted"),
    State("local-retire", "/local/alex@local.com/retire"),
    State("local-retire-question", "/local/alex@local.com/retire", _press("Continue")),
    State("local-removed", "/local/removed"),
    State("names", "/names"),
    State("mail", "/mail"),
    State("mail-typed", "/mail", _type_search),
    State("mail-none-found", "/mail?q=nothing-has-this"),
    State("mail-day", "/mail?day=2020-01-01"),
    State("mail-one", "/mail/{n@customer.example}"),
    State("mail-to-many", "/mail/{q@customer.example}"),
    State("mail-parked", "/mail/{s@customer.example}"),
    State("mail-sent", "/mail/{answer@local.com}"),
    State("answers", "/answers"),
    State("answers-done", "/answers?done=true"),
    State("queue", "/queue"),
    State("queue-question", "/queue", _discard),
    State("audit", "/audit"),
    State("audit-none-found", "/audit?q=nobody"),
    State("users", "/users"),
    State("users-token", "/users", lambda page: _make_token(page)),
    State("users-open", "/users", _open_folds),
    State("accounts-file", "/accounts-file"),
    State("not-found", "/nothing"),
    State("not-found-account", "/external/nobody@company.com"),
)


def _make_token(page: Page) -> None:
    page.locator("#token-name").fill("backup script")
    with page.expect_navigation():
        page.get_by_role("button", name="Create a token").click()
    expect(page.locator("#new-token")).to_contain_text("mg_")


@pytest.fixture(scope="module")
def store(databases: servers.Databases) -> Iterator[str]:
    with databases.fresh() as url:
        with ThreadPoolExecutor(1) as thread:  # the browser's event loop runs in this one
            thread.submit(asyncio.run, fill(url)).result()
        with psycopg.connect(url) as connection:
            connection.execute(SEEDS.encode())
            connection.execute(MORE.encode())
        yield url


@pytest.fixture(scope="module")
def url(store: str) -> Iterator[str]:
    with console.running(store) as found:
        yield found


@pytest.fixture(scope="module")
def page(chromium: Browser, url: str) -> Iterator[Page]:
    """A page of an administrator who is signed in."""
    context = chromium.new_context(timezone_id="Europe/Berlin", locale="en-GB")
    page = context.new_page()
    sign_in(page, url, "admin", console.PASSWORD)
    yield page
    context.close()


def sign_in(page: Page, url: str, name: str, password: str) -> None:
    page.goto(f"{url}/sign-in")
    page.get_by_label("Name or email address").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("navigation", name="Pages")).to_have_count(1)


def filled(store: str, path: str) -> str:
    """The path with the id of the mail instead of its Message-ID."""
    before, _, rest = path.partition("{")
    if not rest:
        return path
    [(id_,)] = console.stored(
        store,
        f"select id from inbound where message_id = '{rest[:-1]}' "
        f"union select id from submissions where message_id = '{rest[:-1]}'",
    )
    return f"{before}{id_}"


def look(page: Page, name: str) -> None:
    """Check the page that is shown at each size; take its picture if pictures are wanted."""
    faults: list[object] = []
    for width, scheme in MANY if SCREENSHOTS else FEW:
        page.set_viewport_size({"width": width, "height": SIZES[width]})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # one of its words
        if SCREENSHOTS:  # of the whole page, with what stays at its bottom there
            high = page.evaluate("document.documentElement.scrollHeight")
            page.set_viewport_size({"width": width, "height": max(high, SIZES[width])})
            page.screenshot(path=Path(SCREENSHOTS) / f"{name}-{width}-{scheme}.png", animations="disabled")
            page.set_viewport_size({"width": width, "height": SIZES[width]})
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if wide > 0:
            faults.append(f"{wide} pixels too wide at {width}")
        if width > 1000:
            high = page.evaluate(
                """[...document.querySelectorAll("table.wide tbody tr")].filter((row) => !row.querySelector(".free"))
                    .map((row) => row.getBoundingClientRect().height).reduce((a, b) => Math.max(a, b), 0)"""
            )
            if high > ROW:
                faults.append(f"a row has {high} pixels at {width}")
        for found in Axe().run(page).response["violations"]:
            if found["impact"] in ("serious", "critical"):
                faults.append((width, scheme, found["id"], [node["target"] for node in found["nodes"]]))
    assert faults == [], name


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_a_page_fits_every_screen_and_is_accessible(page: Page, url: str, store: str, state: State) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(url + filled(store, state.path))
    state.act(page)
    look(page, state.name)


def test_fifty_mails_are_a_screen_and_a_half(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 1920, "height": 1080})
    page.goto(f"{url}/mail")
    expect(page.locator("#results tbody tr")).to_have_count(50)
    assert page.evaluate("document.documentElement.scrollHeight") <= 1080 * 1.5
    assert page.evaluate("document.querySelector('#results').getBoundingClientRect().width") > 1500


def test_a_mail_to_202_people_is_one_sentence_and_a_fold(page: Page, url: str, store: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(url + filled(store, "/mail/{q@customer.example}"))
    expect(page.locator(".sentences > li")).to_contain_text([f"{PEOPLE} people got this because To names nobody"])
    assert page.evaluate("document.documentElement.scrollHeight") < 1500
    page.get_by_text("people, by name").first.click()
    expect(page.locator(".columns li").filter(has_text="Colleague 200 (")).to_be_visible()


def test_actions_stay_on_a_desktop_and_cover_no_row_on_a_phone(page: Page, url: str) -> None:
    position = "getComputedStyle(document.querySelector('.actions.sticky')).position"
    page.goto(f"{url}/queue")
    for width, ticked, expected in ((390, True, "static"), (1280, False, "static"), (1280, True, "sticky")):
        page.set_viewport_size({"width": width, "height": SIZES[width]})
        page.get_by_role("checkbox", name="Mail ").first.set_checked(ticked)
        assert page.evaluate(position) == expected, (width, ticked)


def test_times_are_those_of_the_browser_the_chart_too(page: Page, url: str) -> None:
    page.goto(f"{url}/")
    expect(page.get_by_text("times are those of this device")).to_be_visible()
    label, hour = page.evaluate(
        """() => { const tick = document.querySelector(".chart text[data-hour]");
            return [tick.textContent, new Date(tick.dataset.hour).getUTCHours()]; }"""
    )
    assert int(label[:2]) == (hour + 1) % 24 or int(label[:2]) == (hour + 2) % 24  # Berlin, winter or summer
    page.goto(f"{url}/audit")
    assert "UTC" not in page.locator("#results").inner_text()


def test_a_reload_sends_no_form_again(page: Page, url: str, store: str) -> None:
    page.goto(f"{url}/local/new")
    _press("Add", {"Email address": "x@y", "User name": "X"})(page)
    expect(page.get_by_role("alert")).to_be_visible()
    # when the page is reloaded, where a browser would ask whether to send the form again, then it is requested again
    methods: list[str] = []
    page.on("request", lambda request: methods.append(request.method))
    page.reload()
    assert methods and set(methods) == {"GET"}
    # and shows the same: what was typed, and what is wrong with it
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Email address", exact=True)).to_have_value("x@y")


def test_the_colours_can_be_chosen_and_stay(page: Page, url: str) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(f"{url}/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for _ in range(2):
        page.locator("#theme button").click()
    assert page.evaluate(ground) != light
    page.goto(f"{url}/mail")
    assert page.evaluate(ground) != light
    expect(page.locator("#theme button")).to_have_text("Dark")
    page.locator("#theme button").click()
    assert page.evaluate(ground) == light


def test_pages_of_a_person_and_of_nobody(chromium: Browser, url: str) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{url}/sign-in")
    look(page, "sign-in")
    sign_in(page, url, "alex@local.com", "secret")
    for path in ("/mine", "/mine/deleted"):
        page.goto(url + path)
        look(page, path.strip("/").replace("/", "-"))
    context.close()


def test_an_empty_system_says_what_to_do(chromium: Browser, databases: servers.Databases) -> None:
    with databases.fresh() as store, console.running(store) as url:
        context = chromium.new_context()
        page = context.new_page()
        sign_in(page, url, "admin", console.PASSWORD)
        for path in ("/", "/external", "/local", "/names", "/mail", "/answers", "/queue", "/audit", "/users"):
            page.goto(url + path)
            look(page, f"empty{path.replace('/', '-')}")
        context.close()
