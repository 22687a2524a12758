"""The console in a real browser on the whole system: the manual's chapter 4 by mouse and keyboard, and every page on a
phone and on a desktop without a serious finding of an accessibility checker."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.system import PASSWORD, System, until
from tests.token_server import account_fields, device_code, token_server

expect.set_options(timeout=30_000)  # milliseconds; no test fails because a machine is slow
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
)
CUSTOMER = "anna@customer.example"
ADMIN_PASSWORD = "the console's password"
STRONG = "correct horse"
"""A password that the console accepts for a local account."""
PHONE, DESKTOP = 390, 1280
SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""Folder for the screenshots (``make screenshots``); None: no screenshots are taken."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, system: System) -> Iterator[Page]:
    """A new browser that shows the sign-in page of an empty system's console."""
    context = chromium.new_context(viewport={"width": DESKTOP, "height": 900})
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(system.instance.urls()["console"])
    yield page
    context.close()
    assert [fault for fault in faults if "status of 4" not in fault] == []  # a refused form has a 4xx status


def sign_in(page: Page, system: System) -> None:
    """Sign in by keyboard only."""
    expect(page.get_by_label("Name or email address")).to_be_focused()
    page.keyboard.type("admin")
    page.keyboard.press("Tab")
    page.keyboard.type(system.settings.admin_password or "")
    page.keyboard.press("Enter")
    expect(page.get_by_role("navigation", name="Pages")).to_be_visible()


def open_page(page: Page, name: str) -> None:
    """Open a page by the menu. Behind its name may stand how many things need attention."""
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=re.compile(f"^{name}")).click()


def add_external(page: Page, system: System, address: str, existing: str | None = "They are delivered, too") -> None:
    """Fill in the form of a new external account (manual 4.1 and figure 4-3-1-1).

    :param existing: the answer what is to happen to existing mail.
    """
    open_page(page, "External accounts")
    page.get_by_role("link", name="Add external account").click()
    page.get_by_label("Email address").fill(address)
    page.get_by_label("Login password", exact=True).fill(PASSWORD)
    for protocol, port in (("POP3", system.provider.pop3_port), ("SMTP", system.provider.smtp_port)):
        page.get_by_label(f"{protocol} server", exact=True).fill(system.provider.host)
        page.get_by_label(f"{protocol} port", exact=True).fill(str(port))
        page.get_by_label(f"{protocol} security", exact=True).select_option("None")
    if existing:
        page.get_by_role("radio", name=existing).check()
    page.get_by_text("More: interval").click()
    page.get_by_label("Check for new mail every").fill("1")


def add_local(page: Page, name: str, external: str) -> None:
    """Add a local account (manual 4.2 and figures 4-3-2-1 to 4-3-2-4)."""
    open_page(page, "Local accounts")
    page.get_by_role("link", name="Add local account").click()
    page.get_by_label("Email address", exact=True).fill(f"{name.lower()}@local.com")
    page.get_by_label("Login password", exact=True).fill(STRONG)
    page.get_by_label("User name", exact=True).fill(name)
    page.get_by_label("External email address").select_option(external)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("added")


def customer_writes(system: System, to: str, subject: str, answers: str | None = None) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = f"Anna Customer <{CUSTOMER}>", to, subject
    message["Message-ID"] = f"<{subject.replace(' ', '-')}@customer.example>"
    if answers:
        message["In-Reply-To"] = answers
    message.set_content("Hello\n")
    system.provider.put(re.findall(r"[\w.]+@[\w.]+", to)[-1], message.as_bytes())


def _is_welcome(page: Page) -> bool:
    page.reload()
    return page.get_by_role("heading", name="Welcome").is_visible()


def test_chapter_4_from_an_empty_system_to_the_reply_that_only_alex_gets(page: Page, system: System) -> None:
    for address in ("support@company.com", "sales@company.com"):
        system.provider.add_mailbox(address, PASSWORD)
    # given an empty system, whose first page says how to begin
    sign_in(page, system)
    until(lambda: _is_welcome(page))  # the first page is cached for a few seconds
    expect(page.get_by_text("No mail flows yet, until the steps above are done")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("and mail flows")).to_have_count(0)
    _look(page, system, "/")
    # when the accounts of 4.3.1 and 4.3.2 are added in the console and tested before they are saved
    for address in ("support@company.com", "sales@company.com"):
        add_external(page, system, address)
        page.get_by_role("button", name="Test").click()
        expect(page.locator("#test")).to_contain_text("works")
        expect(page.locator("#test")).to_contain_text("Nothing was fetched and nothing was sent")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(address)
    system.password = STRONG
    for name, external in (("Alex", "support"), ("Jim", "support"), ("Kim", "sales"), ("Tom", "sales")):
        add_local(page, name, f"{external}@company.com")
    # and everybody is here
    for _ in range(2):
        open_page(page, "Overview")
        page.get_by_role("button", name="Everybody is here, start").first.click()
        expect(page.get_by_role("status").first).to_contain_text("started for 2 people")
    # then the page of an external account lists the people who share it
    page.goto(f"{system.instance.urls()['console']}/external/support@company.com")
    expect(page.locator(".people li")).to_have_text([re.compile("Alex"), re.compile("Jim")])
    # and a new customer's mail reaches both, and the customer's reply to Alex reaches only Alex
    people = [f"{name}@local.com" for name in ("alex", "jim", "kim", "tom")]
    customer_writes(system, "support@company.com", "printer smokes")
    until(lambda: system.who_has("printer smokes", people) == people[:2])
    system.submit(
        "alex@local.com",
        [CUSTOMER],
        b"From: alex@local.com\r\nTo: anna@customer.example\r\nSubject: Re: printer smokes\r\n"
        b"Message-ID: <answer@local.com>\r\nIn-Reply-To: <printer-smokes@customer.example>\r\n\r\nSwitch it off\r\n",
    )
    customer_writes(system, '"Alex" <support@company.com>', "it is off", "<answer@local.com>")
    until(lambda: system.who_has("it is off", people) == people[:1])
    # and the console shows why, and who answered
    open_page(page, "Find mail")
    until(lambda: _search(page, "off"))
    page.get_by_role("link", name="it is off").click()
    expect(page.locator(".sentences")).to_contain_text("Alex got this because To names Alex")
    open_page(page, "Who answered")
    page.get_by_role("link", name="Answered", exact=True).click()
    expect(page.locator("tbody")).to_contain_text("printer smokes")
    expect(page.locator("tbody")).to_contain_text("Alex after")
    _look_at_every_page(page, system)


def test_old_mail_waits_until_everybody_is_said_to_be_here(page: Page, system: System) -> None:
    # given two mails at the provider, and the form of a new account
    system.provider.add_mailbox("support@company.com", PASSWORD)
    for subject in ("old one", "old two"):
        customer_writes(system, "support@company.com", subject)
    sign_in(page, system)
    add_external(page, system, "support@company.com", existing=None)
    # when it is tested, the question shows how many there are, and has no answer
    page.get_by_role("button", name="Test").click()
    expect(page.locator("#history")).to_contain_text("Test found 2 mails there")
    expect(page.locator("#test")).not_to_contain_text("will be delivered")
    answers = page.get_by_role("radio")
    expect(answers).to_have_count(2)
    for answer in answers.all():
        expect(answer).not_to_be_checked()
    # then it is not added without one
    page.get_by_role("button", name="Add", exact=True).click()
    assert page.evaluate("document.querySelector('[name=history]').validity.valueMissing")
    assert system.json("external", "list") == []
    page.get_by_role("radio", name="They are delivered, too").check()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("on hold until it is started")
    # and the person who is added first gets nothing
    system.password = STRONG
    add_local(page, "Alex", "support@company.com")
    until(lambda: len(system.json("held", "list")) == 2)
    assert system.mails("alex@local.com") == []
    add_local(page, "Jim", "support@company.com")
    open_page(page, "Overview")
    expect(page.locator("form.start")).to_contain_text("support@company.com: 2 people; 2 mails on hold")
    # until everybody is said to be here
    page.get_by_role("button", name="Everybody is here, start").click()
    expect(page.get_by_role("status").first).to_contain_text("started for 2 people; 2 mails on hold are routed now")
    people = ["alex@local.com", "jim@local.com"]
    until(lambda: system.who_has("old one", people) == people == system.who_has("old two", people))


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_the_dialog_shows_one_protocol_and_the_usual_port(chromium: Browser, system: System, script: bool) -> None:
    context = chromium.new_context(java_script_enabled=script)
    page = context.new_page()
    page.goto(system.instance.urls()["console"])
    sign_in(page, system)
    page.goto(f"{system.instance.urls()['console']}/external/new")
    # given the dialog, which asks for a POP3 server
    pop3, imap, folders = (page.get_by_label(name) for name in ("POP3 server", "IMAP server", "Folders"))
    port, security = page.get_by_label("IMAP port"), page.get_by_label("IMAP security")
    expect(pop3).to_be_visible()
    expect(imap).to_be_hidden()
    # when IMAP is chosen, then it asks for an IMAP server and its folders
    page.get_by_label("Fetch by").select_option("IMAP")
    expect(pop3).to_be_hidden()
    expect(imap).to_be_visible()
    expect(folders).to_have_value("INBOX")
    expect(port).to_have_value("993")
    # and the port follows the encryption: at once, or when the form is sent
    security.select_option("None")
    if script:
        expect(port).to_have_value("143")
        port.fill("1143")
        security.select_option("STARTTLS")
        expect(port).to_have_value("1143")
        port.fill("143")
        security.select_option("SSL/TLS")
        expect(port).to_have_value("993")
    else:
        page.get_by_label("Email address").fill("support@company.com")
        page.get_by_label("SMTP server", exact=True).fill("127.0.0.1")
        page.get_by_role("radio", name="They stay there").check()
        page.get_by_role("button", name="Add", exact=True).click()
        # then what is wrong is beside the field of this protocol
        expect(page.locator("[id='imap.host-error']")).to_have_text("Fill this in.")
        expect(pop3).to_be_hidden()
        expect(port).to_have_value("143")
    context.close()


def _of_tokens(*more: str) -> set[str]:
    return {"Client id", *more}


_ENDPOINTS = ("Token endpoint", "Scope")
LOGIN_FIELDS = {
    "password": {"Login password"},
    "google": _of_tokens("Client secret"),
    "google-service": _of_tokens("Private key"),
    "microsoft": _of_tokens("Client secret", "Private key", "Tenant"),
    "microsoft-app": _of_tokens("Client secret", "Private key", "Tenant"),
    "other": _of_tokens("Client secret", "Private key", *_ENDPOINTS, "Device endpoint", "Authorization page"),
    "other-app": _of_tokens("Client secret", "Private key", *_ENDPOINTS),
    "other-signed": _of_tokens("Private key", *_ENDPOINTS),
    "same": {"Account with the access tokens"},
}
"""The fields that each way to log in shows."""


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_the_dialog_shows_the_fields_of_the_way_to_log_in(chromium: Browser, system: System, script: bool) -> None:
    context = chromium.new_context(java_script_enabled=script)
    page = context.new_page()
    page.goto(system.instance.urls()["console"])
    sign_in(page, system)
    page.goto(f"{system.instance.urls()['console']}/external/new")
    method = page.get_by_label("Log in with")
    for chosen, shown in LOGIN_FIELDS.items():
        method.select_option(chosen)
        for label in set[str]().union(*LOGIN_FIELDS.values()):
            field = page.get_by_label(label, exact=True)
            (expect(field).to_be_visible if label in shown else expect(field).to_be_hidden)()
    context.close()


def _search(page: Page, words: str) -> bool:
    page.get_by_role("searchbox", name="Address, words").fill(words)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    return page.get_by_role("link", name="it is off").count() > 0


PAGES = (
    "/",
    "/external",
    "/external/new",
    "/external/support@company.com",
    "/local",
    "/local/new",
    "/local/alex@local.com",
    "/local/alex@local.com/deleted",
    "/local/alex@local.com/retire",
    "/local/removed",
    "/names",
    "/mail",
    "/answers",
    "/queue",
    "/audit",
    "/users",
    "/accounts-file",
    "/nothing",
)


def _look_at_every_page(page: Page, system: System) -> None:
    """Check each page on a phone and on a desktop, light and dark: it fits the screen and has no serious fault."""
    mail = re.search(r"/mail/\d+", page.content())
    paths = [*PAGES, *([mail[0]] if mail else [])]
    for path in paths:
        _look(page, system, path)
    page.get_by_role("button", name="Sign out").click()
    _look(page, system, "/sign-in")
    page.get_by_label("Name or email address").fill("alex@local.com")
    page.get_by_label("Password").fill(STRONG)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Alex")
    for path in ("/mine", "/mine/deleted"):
        _look(page, system, path)


def _look(page: Page, system: System, path: str) -> None:
    faults: list[Any] = []
    for width, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # one of its words
        page.goto(system.instance.urls()["console"] + path)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} is {wide} pixels too wide at {width}"
        bare = page.evaluate(
            """[...document.querySelectorAll(".card:not(details > .card)")]
                .filter((card) => parseFloat(getComputedStyle(card).paddingLeft) < 8).length"""
        )
        assert bare == 0, f"{path} has {bare} cards without padding at {width}"
        if SCREENSHOTS:
            name = re.sub(r"[^a-z0-9]+", "-", re.sub(r"/mail/\d+", "/mail-story", path)).strip("-") or "overview"
            picture = Path(SCREENSHOTS) / f"system-{name}-{width}-{scheme}.png"
            page.screenshot(path=picture, full_page=True, animations="disabled")
        for found in Axe().run(page).response["violations"]:
            if found["impact"] in ("serious", "critical"):
                faults.append((path, width, found["id"], [node["target"] for node in found["nodes"]]))
    assert faults == []
    page.set_viewport_size({"width": DESKTOP, "height": 900})


def test_a_refused_form_says_why_and_keeps_what_was_typed(page: Page, system: System) -> None:
    sign_in(page, system)
    add_external(page, system, "support@company.com")
    page.get_by_label("POP3 port").fill("many")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("POP3 port: 'many' is not a number from 1 to 65535")
    expect(page.get_by_label("POP3 port")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Email address")).to_have_value("support@company.com")


def test_a_password_is_long_enough_or_made_by_the_page(page: Page, system: System) -> None:
    # given the form of a new person
    system.apply(system.company())
    sign_in(page, system)
    page.goto(f"{system.instance.urls()['console']}/local/new")
    page.get_by_label("Email address", exact=True).fill("eve@local.com")
    page.get_by_label("User name", exact=True).fill("Eve")
    page.get_by_label("External email address").select_option("support@company.com")
    # when the password is too short
    page.get_by_label("Login password", exact=True).fill("nine char")
    page.get_by_role("button", name="Add", exact=True).click()
    # then the page says so
    expect(page.get_by_role("alert")).to_contain_text("Login password: at least 10 characters are needed")
    # and its button makes one and shows it
    page.get_by_role("button", name="Suggest one").click()
    expect(page.get_by_label("Login password", exact=True)).to_have_attribute("type", "text")
    made = page.get_by_label("Login password", exact=True).input_value()
    assert re.fullmatch(r"[a-zA-Z2-9]{16}", made)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("added")
    assert system.mails("eve@local.com", made) == []
    # on the person's own page it fills both fields
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Name or email address").fill("eve@local.com")
    page.get_by_label("Password").fill(made)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Current password").fill(made)
    page.get_by_role("button", name="Suggest one").click()
    second = page.get_by_label("New password").input_value()
    assert second != made and page.get_by_label("Once more").input_value() == second
    page.get_by_role("button", name="Change", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("Your password is changed")
    assert system.mails("eve@local.com", second) == []


def test_the_page_of_an_account_shows_an_authorization_without_a_reload(page: Page, system: System) -> None:
    with token_server() as server:
        # given an account that needs access tokens
        server.agreeing = False
        server.answers = [device_code(interval=0.5), (200, {"access_token": "first", "refresh_token": "again"})]
        system.apply({"external_accounts": [account_fields(server)]})
        sign_in(page, system)
        page.goto(f"{system.instance.urls()['console']}/external/support@company.com")
        # when it is authorized
        page.get_by_role("button", name="Authorize", exact=True).click()
        # then the page shows what to do
        expect(page.get_by_text("ABCD")).to_be_visible()
        expect(page.get_by_role("link", name="https://x.example/device")).to_be_visible()
        _look(page, system, "/external/support@company.com/authorize")
        # and when the user has agreed at the provider, the page says so
        server.agreeing = True
        expect(page.get_by_text("Authorized.", exact=True)).to_be_visible()


def test_the_first_page_shows_a_new_state_without_a_reload(page: Page, system: System) -> None:
    system.apply(system.company())
    sign_in(page, system)
    expect(page.get_by_text("Every service runs and mail flows")).to_be_visible(timeout=60_000)
    system.run("local", "disable", "alex@local.com")
    system.run("local", "disable", "jim@local.com")
    customer_writes(system, "support@company.com", "for nobody")
    expect(page.get_by_text("mail is on hold")).to_be_visible(timeout=60_000)


def test_check_now_says_how_the_check_went(page: Page, system: System) -> None:
    # given an account that is checked once an hour
    company = system.company()
    company["external_accounts"][0]["poll_seconds"] = 3600
    system.apply(company)
    sign_in(page, system)
    open_page(page, "External accounts")
    page.get_by_role("link", name="support@company.com").click()
    # when it is checked now, then the page says that this was successful, and a mail that waited there has come
    customer_writes(system, "support@company.com", "waited for the check")
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_role("status").first).to_have_text("support@company.com was checked for new mail, successfully.")
    people = ["alex@local.com", "jim@local.com"]
    until(lambda: system.who_has("waited for the check", people) == people)
    # and when the provider refuses the login, then it says that, and why
    system.run("external", "set", "support@company.com", "password=-", stdin="a wrong one\n")
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_role("status").first).to_contain_text("checked for new mail, without success")
    expect(page.locator("main .problem")).to_contain_text("the login was refused")
