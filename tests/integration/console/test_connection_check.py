"""Test of an account with the wrong kind of encryption, and with a certificate that nobody has signed."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from typing import Any

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from services.admin.accounts import maildrop_check, tls_watch
from tests import console
from tests.console import Browser, stored, text

ADDRESS = "check@tls.example"


@pytest.fixture(scope="module")
def mailbox(provider: DemoProvider) -> DemoProvider:
    provider.add_mailbox(ADDRESS, "secret")
    return provider


def form(provider: DemoProvider, **fields: str) -> dict[str, str]:
    """The dialog as it is sent, with the ports for TLS."""
    values = {
        "address": ADDRESS,
        "enabled": "on",
        "password": "secret",
        "method": "password",
        "pop3.host": provider.host,
        "pop3.port": str(provider.pop3s_port),
        "pop3.tls": "implicit",
        "smtp.host": provider.host,
        "smtp.port": str(provider.smtps_port),
        "smtp.tls": "implicit",
        "smtp.auth": "on",
        "smtp.connections": "2",
        "poll_seconds": "60",
        "history": "all",
        "do": "test",
    }
    return values | fields


def failed(page: Any) -> dict[str, str]:
    """The texts of the steps that failed, by step."""
    found = re.findall(r'<li class="failed"><strong>(.*?)</strong>.*?<br>Failed: (.*?)(?:</li>|\n)', page.text, re.S)
    return {name: unescape(said).strip() for name, said in found}


def seconds(page: Any) -> float:
    """The longest step of a test."""
    return max(int(found) for found in re.findall(r"(\d+) ms", page.text)) / 1000


@pytest.mark.parametrize("mode", ["none", "starttls"])
def test_a_port_that_wants_tls_is_found_while_it_is_silent(browser: Browser, mailbox: DemoProvider, mode: str) -> None:
    page = browser.post("/external/new", form(mailbox, **{"pop3.tls": mode, "smtp.tls": mode}))
    step = {"none": "greet", "starttls": "encrypt (TLS)"}[mode]
    assert failed(page) == {
        f"POP3: {step}": f"this port wants TLS from the start; choose SSL/TLS (implicit) for {mailbox.pop3s_port}",
        f"SMTP: {step}": f"this port wants TLS from the start; choose SSL/TLS (implicit) for {mailbox.smtps_port}",
    }
    assert seconds(page) < maildrop_check.SECONDS / 2  # not at the end of the time limit


def test_a_port_without_tls_is_named_as_such(browser: Browser, mailbox: DemoProvider) -> None:
    ports = {"pop3.port": str(mailbox.pop3_port), "smtp.port": str(mailbox.smtp_port)}
    page = browser.post("/external/new", form(mailbox, **ports))
    assert set(failed(page)) == {"POP3: encrypt (TLS)", "SMTP: encrypt (TLS)"}
    for said in failed(page).values():
        assert said.startswith("the server does not speak TLS on this port, but clear text")
    assert "Trust this one" not in text(page)


@contextmanager
def silent_server() -> Iterator[int]:
    """A server that accepts connections and says nothing, in no protocol; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


def test_a_server_that_is_only_slow_is_not_said_to_want_tls(
    browser: Browser, mailbox: DemoProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maildrop_check, "SECONDS", 3.0)
    monkeypatch.setattr(tls_watch, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(tls_watch, "PROBE_SECONDS", 0.5)
    with silent_server() as port:
        page = browser.post("/external/new", form(mailbox, **{"pop3.port": str(port), "pop3.tls": "none"}))
    assert failed(page)["POP3: greet"] == "greeting: no answer within 3 s"


def test_an_unknown_certificate_is_shown_and_trusted_with_one_button(
    browser: Browser, store: str, mailbox: DemoProvider
) -> None:
    # given servers whose certificate no known authority has signed
    page = browser.post("/external/new", form(mailbox))
    assert set(failed(page)) == {"POP3: encrypt (TLS)", "SMTP: encrypt (TLS)"}
    # then it is shown, with all that people compare, and no name of a field of the file
    assert all(re.fullmatch(r"the certificate is not trusted \([^;]+\)", said) for said in failed(page).values())
    shown = text(page)
    assert shown.count(f"SHA-256 {mailbox.fingerprint}") == 2
    assert re.search(r"Issued by CN=\S+", shown) and "For localhost, 127.0.0.1" in shown
    assert re.search(r"Valid \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC to \d{4}", shown)
    # when both are trusted, one after the other
    trusts = dict(re.findall(r'name="trust" value="(\w+) ([0-9a-f]{64})"', page.text))
    assert trusts == {"pop3": mailbox.fingerprint, "smtp": mailbox.fingerprint}
    fields = form(mailbox)
    del fields["do"]
    page = browser.post("/external/new", fields | {"trust": f"pop3 {trusts['pop3']}"})
    assert set(failed(page)) == {"SMTP: encrypt (TLS)"}
    fields["pop3.tls_fingerprint"] = trusts["pop3"]
    page = browser.post("/external/new", fields | {"trust": f"smtp {trusts['smtp']}"})
    # then the account works, nothing is saved yet, and the next step is beside it
    assert failed(page) == {} and "Test works" in text(page) and "Add this account" in text(page)
    assert len(re.findall(rf'tls_fingerprint" type="text" value="{mailbox.fingerprint}"', page.text)) == 2
    assert stored(store, "select * from external_accounts") == []
    fields |= {"smtp.tls_fingerprint": trusts["smtp"], "do": "save"}
    assert "added" in text(browser.post("/external/new", fields))
    pins = stored(store, "select pop3_tls_fingerprint, smtp_tls_fingerprint from external_accounts")
    assert pins == [(mailbox.fingerprint, mailbox.fingerprint)]
    # and a certificate that has changed is refused and shown again, to scripts too
    changed = fields | {"pop3.tls_fingerprint": "ab" * 32, "password": ""}
    assert "changed POP3 server: " in text(browser.post(f"/external/{ADDRESS}", changed))
    api = browser.session.post(
        f"{browser.url}/api/v1/external-accounts/{ADDRESS}/test", headers={"Origin": browser.url}
    ).json()
    [refused] = [step for step in api if not step["ok"]]
    assert "the certificate is not the pinned one" in refused["result"]
    assert refused["certificate"]["server"] == "pop3"
    assert refused["certificate"]["fingerprint"] == mailbox.fingerprint
    assert refused["certificate"]["names"] == ["localhost", "127.0.0.1"]
    assert "Trust this one" in text(browser.post(f"/external/{ADDRESS}", changed | {"do": "test"}))


def test_the_next_step_of_a_test_that_works_is_beside_it(browser: Browser, mailbox: DemoProvider) -> None:
    pins = {f"{name}.tls_fingerprint": mailbox.fingerprint for name in ("pop3", "smtp")}
    undecided = {name: value for name, value in form(mailbox, **pins).items() if name != "history"}
    undecided["address"] = "second@tls.example"
    undecided["login"] = ADDRESS
    page = browser.post("/external/new", undecided)
    assert "Next: what happens to existing mail?" in text(page) and 'href="#history"' in page.text
    page = browser.post("/external/new", undecided | {"history": "all"})
    assert "Add this account" in text(page)
    browser.post("/external/new", undecided | {"history": "all", "do": "save"})
    page = browser.post("/external/second@tls.example", undecided | {"history": "all"})
    assert "Save these settings Add a person" in text(page)
    # nothing of that for those who may not save, and nothing beside a test that fails
    assert "Save these settings" not in text(browser.post("/external/new", undecided | {"pop3.port": "1"}))


def test_a_trusted_certificate_is_no_way_around_the_role(url: str, observer: Browser, mailbox: DemoProvider) -> None:
    refused = observer.post("/external/new", form(mailbox) | {"trust": f"pop3 {'ab' * 32}"})
    assert refused.status_code == 403
    page = console.signed_in(url).post("/external/new", form(mailbox) | {"trust": "pop3 nonsense"})
    assert page.status_code == 422 and "a fingerprint is the SHA-256 of the certificate" in text(page)


def test_saving_also_says_that_a_port_wants_tls(browser: Browser, mailbox: DemoProvider) -> None:
    page = browser.post(
        "/external/new",
        form(mailbox, **{"pop3.tls": "none", "smtp.tls": "none", "do": "save", "address": "silent@tls.example"}),
    )
    place = f"127.0.0.1:{mailbox.pop3s_port}"
    assert f"not reachable now: {place}: this port wants TLS from the start" in text(page)
