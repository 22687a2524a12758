"""The console by keyboard alone, in a real browser: the manual's chapter 4, and what Enter and lost pages do."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import EmailMessage

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.test_console import CUSTOMER, STRONG, chromium, customer_writes, page, sign_in
from tests.system import PASSWORD, System, until

__all__ = ["chromium", "page"]  # fixtures

SUPPORT = "support@company.com"
MAX_TABS = 150
"""Presses of Tab after which something cannot be reached."""
FOCUSED = """() => { const e = document.activeElement;
    const text = e.labels && e.labels.length ? e.labels[0].innerText : e.getAttribute("aria-label") || e.innerText;
    return (text || "").trim(); }"""
"""JavaScript: the name of the element that has the focus."""


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with this name, or with a name that begins so, has the focus."""
    for _ in range(MAX_TABS):
        page.keyboard.press("Tab")
        if str(page.evaluate(FOCUSED)).startswith(name):
            return
    raise AssertionError(f"{name}: cannot be reached by Tab on {page.url}")


def press(page: Page, name: str, key: str = "Enter") -> None:
    """Go to a link or button, and press it."""
    tab_to(page, name)
    page.keyboard.press(key)


def fill(page: Page, name: str, value: str) -> None:
    """Go to a field, and type a value instead of the present one."""
    tab_to(page, name)
    page.keyboard.press("Control+a")
    page.keyboard.type(value)


def choose(page: Page, name: str, words: str) -> None:
    """Go to a list, and type the beginning of an entry."""
    tab_to(page, name)
    page.keyboard.type(words)


def heading(page: Page, words: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(words)


def add_external(page: Page, system: System, address: str) -> None:
    press(page, "External accounts")
    heading(page, "External accounts")
    press(page, "Add external account")
    heading(page, "New external account")
    fill(page, "Email address", address)
    fill(page, "Login password", PASSWORD)
    for protocol, port in (("POP3", system.provider.pop3_port), ("SMTP", system.provider.smtp_port)):
        fill(page, f"{protocol} server", system.provider.host)
        fill(page, f"{protocol} port", str(port))
        choose(page, f"{protocol} security", "None")
    press(page, "They are delivered, too", "Space")
    press(page, "More: interval")
    fill(page, "Check for new mail every", "1")


def add_local(page: Page, name: str) -> None:
    press(page, "Local accounts")
    heading(page, "Local accounts")
    press(page, "Add local account")
    heading(page, "New local account")
    fill(page, "Email address", f"{name.lower()}@local.com")
    fill(page, "Login password", STRONG)
    fill(page, "User name", name)
    choose(page, "External email address", SUPPORT)
    page.keyboard.press("Tab")
    press(page, "Add")
    heading(page, name)


def submit(system: System, subject: str) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "alex@local.com", CUSTOMER, subject
    message.set_content("Hello\n")
    system.submit("alex@local.com", [CUSTOMER], message)


def states(system: System) -> list[str]:
    with psycopg.connect(str(system.settings.database_url)) as connection:
        rows = connection.execute("select state from submission_recipients order by submission_id desc limit 1")
        return [row[0] for row in rows.fetchall()]


def waiting(system: System) -> list[int]:
    return [mail["id"] for mail in system.json("queue", "list") if mail["why"]]


def test_chapter_4_needs_tab_enter_space_and_letters_only(page: Page, system: System) -> None:
    system.provider.add_mailbox(SUPPORT, PASSWORD)
    sign_in(page, system)
    # when an external account is tested and added (4.1, 4.3.1), and people who share it (4.2, 4.3.2)
    add_external(page, system, SUPPORT)
    press(page, "Test", "Space")
    expect(page.locator("#test")).to_contain_text("works")
    press(page, "Add")
    heading(page, SUPPORT)
    system.password = STRONG
    for name in ("Alex", "Jim"):
        add_local(page, name)
    press(page, "Overview")
    expect(page.get_by_role("button", name="Everybody is here, start")).to_be_visible()
    press(page, "Everybody is here, start")
    expect(page.get_by_role("status").first).to_contain_text("started for 2 people")
    # then they share it (">>")
    press(page, "External accounts")
    heading(page, "External accounts")
    press(page, SUPPORT)
    expect(page.locator(".people li")).to_have_count(2)
    # and a customer's mail is found, with who got it
    customer_writes(system, SUPPORT, "scanner beeps")
    until(
        lambda: (
            system.who_has("scanner beeps", ["alex@local.com", "jim@local.com"]) == ["alex@local.com", "jim@local.com"]
        )
    )
    press(page, "Find mail")
    heading(page, "Find mail")
    until(lambda: _search(page, "scanner"), 30)
    press(page, "scanner beeps")
    expect(page.locator(".sentences")).to_contain_text("Alex got this because")
    # when the provider cannot be reached, which Enter in a field saves, an answer waits in the queue
    press(page, "External accounts")
    heading(page, "External accounts")
    press(page, SUPPORT)
    heading(page, SUPPORT)
    fill(page, "SMTP port", "1")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("changed SMTP server")
    submit(system, "Re: scanner beeps")
    until(lambda: waiting(system))
    # then it is cancelled with a reason, after a question, and never sent
    press(page, "Queue and stuck mail")
    heading(page, "Queue and stuck mail")
    press(page, "Mail ", "Space")
    choose(page, "What to do with the ticked mails", "cancel")
    press(page, "Continue")
    heading(page, "Cancel 1 mail?")
    page.keyboard.type("wrong customer")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("1 mail: cancelled")
    assert states(system) == ["cancelled"]
    until(lambda: system.who_has("wrong customer", ["alex@local.com"]))  # the notice to the author
    press(page, "Sign out")
    expect(page.get_by_label("Password")).to_be_visible()


def _search(page: Page, words: str) -> bool:
    fill(page, "Address, words", words)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    return page.get_by_role("link", name="scanner beeps").count() > 0


def test_enter_in_the_queue_sends_and_cancels_nothing(page: Page, system: System) -> None:
    # given a mail that waits, and is ticked
    system.apply(system.company())
    system.run("external", "set", SUPPORT, "smtp.port=1")
    submit(system, "waits")
    [id_] = until(lambda: waiting(system))
    sign_in(page, system)
    press(page, "Queue and stuck mail")
    heading(page, "Queue and stuck mail")
    tries = system.json("queue", "list")[0]["tries"]
    press(page, f"Mail {id_}", "Space")
    # when Enter is pressed there, nothing is chosen and nothing happens
    page.keyboard.press("Enter")
    expect(page.locator("#do-waiting:invalid")).to_be_focused()
    # and where all are to be tried, a question says how many; the way back does nothing
    press(page, "Try all now")
    heading(page, "Try to send 1 mail now?")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.keyboard.press("Enter")
    heading(page, "Try to send 1 mail now?")
    press(page, "No, go back")
    heading(page, "Queue and stuck mail")
    assert waiting(system) == [id_] and system.json("queue", "list")[0]["tries"] >= tries
    assert system.run("queue", "cancel", str(id_)).exit_code == 0


def test_the_first_field_at_fault_has_the_focus_and_its_error_is_read(page: Page, system: System) -> None:
    sign_in(page, system)
    add_external(page, system, SUPPORT)
    fill_backwards = {"#smtp\\.port": "many", "#pop3\\.port": "0"}
    for field, value in fill_backwards.items():
        page.locator(field).focus()
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
    # when Enter is pressed in a field
    page.keyboard.press("Enter")
    # then the account is to be added, nothing is filled in, and the focus is where the first mistake is
    expect(page.get_by_role("alert")).to_contain_text("SMTP port: 'many' is not a number from 1 to 65535")
    expect(page.locator("#pop3\\.port")).to_be_focused()
    expect(page.locator("#pop3\\.port")).to_have_accessible_description("0 is not a number from 1 to 65535.")
    expect(page.locator("#pop3\\.host")).to_have_value(system.provider.host)
    # and after each correction it is saved, with the password that was typed at first
    page.keyboard.press("Control+a")
    page.keyboard.type(str(system.provider.pop3_port))
    page.locator("#smtp\\.port").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type(str(system.provider.smtp_port))
    page.keyboard.press("Enter")
    heading(page, SUPPORT)


def test_a_form_survives_the_end_of_its_session(page: Page, system: System) -> None:
    # given a form that is filled in
    system.apply(system.company())
    sign_in(page, system)
    page.goto(f"{system.instance.urls()['console']}/local/new")
    for name, value in (("Email address", "sam@local.com"), ("Login password", STRONG), ("User name", "Sam")):
        fill(page, name, value)
    choose(page, "External email address", SUPPORT)
    press(page, "More: further names")
    fill(page, "Further names", "Samuel")
    # when its session ends before it is saved
    with psycopg.connect(str(system.settings.database_url)) as connection:
        connection.execute("delete from console_sessions")
    press(page, "Add")
    expect(page.get_by_role("alert")).to_contain_text("Your session has ended")
    assert STRONG not in page.content()
    sign_in(page, system)
    # then everything but the password is there, and nothing is saved
    expect(page.get_by_label("User name", exact=True)).to_have_value("Sam")
    expect(page.get_by_label("Further names")).to_have_value("Samuel")
    expect(page.get_by_label("External email address")).to_have_value(SUPPORT)
    expect(page.get_by_role("status").nth(1)).to_have_text("Passwords are not kept: type them again.")
    assert "sam@local.com" not in system.run("local", "list").stdout
    # and a new press saves it
    fill(page, "Login password", STRONG)
    page.keyboard.press("Enter")
    heading(page, "Sam")


def test_the_later_of_two_tabs_is_told_what_changed(page: Page, chromium: Browser, system: System) -> None:
    # given a person in two tabs
    system.apply(system.company())
    sign_in(page, system)
    url = f"{system.instance.urls()['console']}/local/alex@local.com"
    page.goto(url)
    second = page.context.new_page()
    second.goto(url)
    # when both are saved
    fill(page, "User name", "Alexander")
    page.keyboard.press("Enter")
    heading(page, "Alexander")
    fill(second, "User name", "Alexa")
    second.keyboard.press("Enter")
    # then the later one sees who changed what, and its own input
    expect(second.get_by_role("alert")).to_contain_text("admin: User name: Alex -> Alexander")
    expect(second.get_by_label("User name", exact=True)).to_be_focused()
    expect(second.get_by_label("User name", exact=True)).to_have_value("Alexa")
    expect(second.locator("#user_name-error")).to_have_text("Stored now: Alexander.")
    # and replaces it knowingly
    second.keyboard.press("Enter")
    heading(second, "Alexa")


def test_a_person_is_retired_on_one_page(page: Page, system: System) -> None:
    system.apply(system.company())
    customer_writes(system, f'"Alex" <{SUPPORT}>', "for alex")
    until(lambda: system.who_has("for alex", ["alex@local.com"]))
    sign_in(page, system)
    page.goto(f"{system.instance.urls()['console']}/local/alex@local.com")
    press(page, "Hand over or retire")
    heading(page, "Hand over or retire Alex")
    # when a wrong colleague is named, the field says so
    fill(page, "Hand the mailbox over to", "kim@local.com")
    fill(page, "Future mail goes to", "kim@local.com")
    page.keyboard.press("Enter")
    expect(page.locator("#delegate")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("jim@local.com")
    page.keyboard.press("Enter")
    # then a question says what will happen to how many
    heading(page, "Retire Alex?")
    expect(page.locator("form.card")).to_contain_text("Copies of 1 mail are put into the mailbox of kim@local.com")
    press(page, "Retire Alex")
    expect(page.get_by_role("status").first).to_contain_text("1 mail copied to kim@local.com")
    assert system.who_has("for alex", ["kim@local.com"])
    customer_writes(system, f'"Alex" <{SUPPORT}>', "later for alex")
    until(lambda: system.who_has("later for alex", ["jim@local.com"]))


@pytest.fixture
def without_script(chromium: Browser, system: System) -> Iterator[Page]:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(system.instance.urls()["console"])
    yield page
    context.close()


def test_without_javascript_it_is_asked_once_too(without_script: Page, system: System) -> None:
    page = without_script
    system.apply(system.company())
    page.get_by_label("Name or email address").fill("admin")
    page.get_by_label("Password").fill(system.settings.admin_password or "")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.goto(f"{system.instance.urls()['console']}/local/tom@local.com")
    page.get_by_text("Remove this account").click()
    page.get_by_role("button", name="Remove tom@local.com").click()
    heading(page, "Remove tom@local.com?")
    assert "tom@local.com" in system.run("local", "list").stdout
    page.get_by_role("button", name="Remove 1 local account").click()
    expect(page.get_by_role("status").first).to_contain_text("is removed")
