"""The dialog of an account with several SMTP servers, its Test, the queue's page and the REST API."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from shared.provider.vault import Vault
from tests import console
from tests.company import KEY
from tests.console import Browser, forms, stored, text
from tests.integration.console.test_api import Script, token
from tests.integration.console.test_connection_check import failed
from tests.integration.console.test_dialogs import SUPPORT, empty, external

SECOND = {
    "smtp2.host": "127.0.0.2",
    "smtp2.port": "2",
    "smtp2.tls": "none",
    "smtp2.auth": "on",
    "smtp2.connections": "3",
    "smtp2.login": "ours",
    "smtp2.password": "secret of the relay",
    "smtp2.recipients_per_day": "500",
}
"""The fields of a second server, as the dialog sends them."""
COLUMNS = "select position, host, port, login, connections, recipients_per_day from relays order by position"
FIRST_ROW, SECOND_ROW = (0, "127.0.0.1", 1, None, 2, None), (1, "127.0.0.2", 2, "ours", 3, 500)


@pytest.fixture
def browser(url: str, store: str) -> Browser:
    """An administrator, and no accounts."""
    empty(store)
    return console.signed_in(url)


def own_password(store: str, position: int = 1) -> str:
    [[sealed]] = stored(store, f"select password from relays where position = {position}")
    return Vault(KEY).open(bytes(sealed))


def test_a_second_server_is_added_changed_and_removed(browser: Browser, store: str) -> None:
    page = browser.post("/external/new", external(**SECOND))
    assert page.url.endswith(f"/external/{SUPPORT}"), text(page)
    assert stored(store, COLUMNS) == [FIRST_ROW, SECOND_ROW]
    assert own_password(store) == "secret of the relay"
    # when its page is sent as it is shown, nothing is changed, and no password is in it
    [dialog] = [form for form in forms(page) if "protocol" in form.values]
    assert "secret of the relay" not in page.text
    assert "Nothing was changed" in text(browser.post(f"/external/{SUPPORT}", dialog.values | {"do": "save"}))
    # when a limit is changed, then the page says of which server
    page = browser.post(f"/external/{SUPPORT}", dialog.values | {"do": "save", "smtp2.recipients_per_day": "900"})
    assert "Second SMTP server: recipients a day at most: 500 -> 900" in text(page)
    # when the host is changed, then the password has to be typed again, and the field says so
    unchecked = dialog.values | {"do": "save", "version": ""}
    page = browser.post(f"/external/{SUPPORT}", unchecked | {"smtp2.host": "127.0.0.3"})
    assert "Second SMTP server: login password: has to be given again" in text(page)
    assert 'id="smtp2.password-error"' in page.text
    # when the host is taken out, then the server is removed
    page = browser.post(f"/external/{SUPPORT}", unchecked | {"smtp2.host": ""})
    assert "Second SMTP server: 127.0.0.2:2/none -> none" in text(page)
    assert stored(store, COLUMNS) == [FIRST_ROW]


def test_a_mistake_is_beside_the_field_of_its_server(browser: Browser) -> None:
    third = {name.replace("smtp2", "smtp3"): value for name, value in SECOND.items()}
    page = browser.post("/external/new", external(**third | {"smtp3.mails_per_minute": "0", "smtp3.login": ""}))
    assert "Third SMTP server: mails a minute at most: 0 is not a number from 1 to 100000" in text(page)
    assert 'id="smtp3.mails_per_minute-error"' in page.text
    assert "<details open>" in page.text


def test_test_tells_the_result_of_each_server(browser: Browser, provider: DemoProvider) -> None:
    provider.add_mailbox(SUPPORT, "secret")
    good = {"smtp.host": provider.host, "smtp.port": str(provider.smtp_port)}
    incoming = {"pop3.host": provider.host, "pop3.port": str(provider.pop3_port)}
    page = browser.post("/external/new", external(password="secret", do="test", **good, **incoming, **SECOND))
    assert list(failed(page)) == ["SMTP 2 (127.0.0.2): connect"]
    assert "SMTP 1 (127.0.0.1): offer a mail from this address" in text(page)
    # and its typed password is kept for the next press, outside of the page
    [dialog] = [form for form in forms(page) if "protocol" in form.values]
    assert dialog.values["smtp2.kept"] and "secret of the relay" not in page.text


def test_a_certificate_of_a_further_server_is_trusted_there(browser: Browser, provider: DemoProvider) -> None:
    provider.add_mailbox(SUPPORT, "secret")
    tls = {"smtp2.host": provider.host, "smtp2.port": str(provider.smtps_port), "smtp2.tls": "implicit"}
    values: dict[str, Any] = external(do="test", **SECOND | tls)
    page = browser.post("/external/new", values)
    [button] = [each for form in forms(page) for each in form.buttons if each.get("name") == "trust"]
    assert button["value"].startswith("smtp[1] ")
    page = browser.post("/external/new", values | {"trust": button["value"]})
    [dialog] = [form for form in forms(page) if "protocol" in form.values]
    assert dialog.values["smtp2.tls_fingerprint"] == button["value"].partition(" ")[2]


def test_the_queue_and_the_account_say_which_limit_is_reached(browser: Browser, store: str) -> None:
    browser.post("/external/new", external())
    with psycopg.connect(store) as connection:
        connection.execute(
            "update relays set full_why = 'limit of 500 recipients a day reached', full_until = now() + interval '1 h'"
        )
    page = text(browser.get(f"/external/{SUPPORT}"))
    assert "Limit for sending limit of 500 recipients a day reached, next at" in " ".join(page.split())


def test_the_rest_api_takes_and_gives_a_list_of_servers(browser: Browser, url: str, store: str) -> None:
    script = Script(url, token(browser, "administrator"))
    first = {"host": "127.0.0.1", "port": 1, "tls": "none"}
    second = {"host": "127.0.0.2", "port": 2, "tls": "none", "login": "ours", "connections": 3}
    entry: dict[str, Any] = {
        "address": SUPPORT,
        "password": "secret-of-support",
        "pop3": first,
        "smtp": [first, second | {"password": "secret of the relay", "recipients_per_day": 500}],
        "history": "all",
    }
    answer = script.call("PUT", "/external-accounts", entry)
    assert answer.status_code == 200, answer.text
    assert stored(store, COLUMNS) == [FIRST_ROW, SECOND_ROW]
    shown = script.call("GET", f"/external-accounts/{SUPPORT}").json()
    assert [relay["host"] for relay in shown["smtp"]] == ["127.0.0.1", "127.0.0.2"]
    assert "secret" not in str(shown)
    # and a wrong field is named
    wrong = entry | {"smtp": [first, second | {"mails_per_minute": 0}]}
    answer = script.call("PUT", "/external-accounts", wrong)
    assert answer.status_code == 422
    assert "mails_per_minute" in answer.text
