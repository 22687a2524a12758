"""Test of an account that is fetched by IMAP: a real Dovecot, and scripted servers that lack something."""

from __future__ import annotations

import asyncio
import re
from html import unescape
from typing import Any

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from tests.console import Browser, text
from tests.scripted_imap import CAPABILITIES, ScriptedFolder, ScriptedImap

ADDRESS = "check@imap.example"
MAIL = b"Subject: one\r\n\r\nHi\r\n"


@pytest.fixture(scope="module")
def mailbox(provider: DemoProvider) -> DemoProvider:
    """A mailbox with two mails, password ``secret``."""
    provider.add_mailbox(ADDRESS, "secret")
    for subject in (b"one", b"two"):
        provider.put(ADDRESS, b"Subject: " + subject + b"\n\nHi\n")
    return provider


def form(port: int, **fields: str) -> dict[str, str]:
    """The dialog of an account as it is sent. :param port: of IMAP, without TLS."""
    values = {
        "address": ADDRESS,
        "enabled": "on",
        "password": "secret",
        "method": "password",
        "protocol": "imap",
        "imap.host": "127.0.0.1",
        "imap.port": str(port),
        "imap.tls": "none",
        "imap.folders": "INBOX",
        "smtp.host": "127.0.0.1",
        "smtp.port": "1",
        "smtp.tls": "none",
        "smtp.connections": "2",
        "poll_seconds": "60",
        "history": "all",
        "do": "test",
    }
    return values | fields


def steps(page: Any) -> list[str]:
    """The steps of fetching, each with its result."""
    found = re.findall(
        r'<li class="(done|failed)"><strong>IMAP: (.*?)</strong>.*?<br>(.*?)(?:</li>|\n)', page.text, re.S
    )
    return [f"{state} {name}: {unescape(what).strip()}" for state, name, what in found]


def test_the_check_shows_what_the_server_offers_and_marks_nothing(browser: Browser, mailbox: DemoProvider) -> None:
    before = sorted(path.name for path in (mailbox.maildir(ADDRESS) / "new").iterdir())
    found = steps(browser.post("/external/new", form(mailbox.imap_port)))
    assert [re.sub(r"\d{6,}|\d+ octets", "N", step) for step in found] == [
        "done find the server: 127.0.0.1",
        f"done connect: 127.0.0.1 port {mailbox.imap_port}",
        "done greet: speaks IMAP",
        f"done log in: as {ADDRESS}; IDLE UIDPLUS SPECIAL-USE",
        "done open the folders: INBOX: 2 mails, UIDVALIDITY N",
        "done count the mails: 2 mails, N; 2 of them will be delivered once everybody is there and the account is "
        "started; nothing will be deleted at the provider",
        "done list the same mails again: their numbers (UIDVALIDITY) are the same in a second session",
        "done announce new mail: IDLE is offered",
        "done delete mails: single mails can be deleted (UIDPLUS)",
    ]
    # and every mail is as new as before
    assert sorted(path.name for path in (mailbox.maildir(ADDRESS) / "new").iterdir()) == before != []


@pytest.mark.parametrize(
    ("fields", "failed", "advice"),
    [
        ({"password": "wrong"}, "log in", "check login name and password"),
        ({"imap.folders": "INBOX\nNowhere"}, "open the folders", "there is no folder 'Nowhere'"),
        ({"imap.tls": "implicit"}, "encrypt (TLS)", "the server does not speak TLS on this port"),
        ({"imap.tls": "starttls"}, "encrypt (TLS)", "the certificate is not trusted"),
        ({"imap.port": "1"}, "connect", "connection refused"),
    ],
)
def test_each_failure_is_at_its_step(
    browser: Browser, mailbox: DemoProvider, fields: dict[str, str], failed: str, advice: str
) -> None:
    found = steps(browser.post("/external/new", form(mailbox.imap_port, **fields)))
    assert found[-1].startswith(f"failed {failed}: Failed: ") and advice in found[-1], found
    assert not [step for step in found[:-1] if step.startswith("failed")]


def test_a_port_that_wants_tls_is_found_while_it_is_silent(browser: Browser, mailbox: DemoProvider) -> None:
    found = steps(browser.post("/external/new", form(mailbox.imaps_port)))
    assert found[-1].endswith(f"this port wants TLS from the start; choose SSL/TLS (implicit) for {mailbox.imaps_port}")


def test_an_unknown_certificate_is_trusted_with_one_button(browser: Browser, mailbox: DemoProvider) -> None:
    fields = form(mailbox.imaps_port, **{"imap.tls": "implicit"})
    page = browser.post("/external/new", fields)
    assert re.findall(r'name="trust" value="(\w+) ([0-9a-f]{64})"', page.text) == [("imap", mailbox.fingerprint)]
    del fields["do"]
    page = browser.post("/external/new", fields | {"trust": f"imap {mailbox.fingerprint}"})
    assert not [step for step in steps(page) if step.startswith("failed")] and len(steps(page)) == 10
    assert f'name="imap.tls_fingerprint" type="text" value="{mailbox.fingerprint}"' in page.text


async def check(browser: Browser, script: ScriptedImap, **fields: str) -> list[str]:
    """The last steps of a test against a scripted server."""
    async with script.running():
        page = await asyncio.to_thread(browser.post, "/external/new", form(script.port, **fields))
    return steps(page)[3:]


async def test_a_server_that_lacks_something_is_described(browser: Browser) -> None:
    script = ScriptedImap({1: MAIL}, tuple(name for name in CAPABILITIES if name not in ("IDLE", "UIDPLUS")))
    found = await check(browser, script)
    assert found[-2:] == [
        "done announce new mail: no IDLE: polled every 60 s",
        "done delete mails: no UIDPLUS: the server cannot delete single mails; the account deletes none",
    ]
    # and an account that is to delete there does not work
    found = await check(browser, script, delete_after_days="7")
    assert found[-1].startswith("failed delete mails: Failed: the server has no UIDPLUS (RFC 4315)")
    # and no folder was opened for changes
    assert not {command.partition(" ")[0] for command in script.commands} & {"SELECT", "STORE", "EXPUNGE", "IDLE"}


async def test_a_folder_of_sent_mail_is_refused(browser: Browser) -> None:
    script = ScriptedImap({1: MAIL}, others={"Gesendet": ScriptedFolder({7: MAIL}, attributes="\\Sent")})
    found = await check(browser, script, **{"imap.folders": "INBOX\nGesendet"})
    assert found[-1].startswith("failed open the folders: Failed: the folder 'Gesendet' is not fetched")


async def test_the_folder_for_junk_is_named_as_such(browser: Browser) -> None:
    script = ScriptedImap({1: MAIL}, others={"Odd": ScriptedFolder({7: MAIL}, attributes="\\Junk")})
    found = await check(browser, script, **{"imap.folders": "INBOX\nOdd"})
    assert "INBOX: 1 mail, UIDVALIDITY 1700000000; Odd (junk mail): 1 mail" in "\n".join(found)


class Renumbering(ScriptedImap):
    """A server that gives its mails other numbers in each session."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.inbox.uidvalidity += 1
        await super()._serve(reader, writer)


async def test_a_server_that_renumbers_its_mails_is_found(browser: Browser) -> None:
    found = await check(browser, Renumbering({1: MAIL}))
    assert "numbers (UIDVALIDITY) of the mails changed between two sessions" in found[-1]
    assert found[-1].startswith("failed list the same mails again")


async def test_the_mails_of_all_folders_are_counted_before_and_after_saving(browser: Browser) -> None:
    script = ScriptedImap({1: MAIL}, others={"Orders": ScriptedFolder({7: MAIL, 8: MAIL})})
    async with script.running():
        fields = form(script.port, **{"imap.folders": "INBOX\nOrders"})
        page = await asyncio.to_thread(browser.post, "/external/new", fields)
        assert "INBOX: 1 mail, UIDVALIDITY 1700000000; Orders: 2 mails, UIDVALIDITY 1700000000" in text(page)
        assert "Test found 3 mails there" in text(page)
        page = await asyncio.to_thread(browser.post, "/external/new", fields | {"do": "save"})
        assert f"3 mails, {3 * len(MAIL)} octets; 3 of them will be delivered" in text(page)
        # when a folder is gone, the rest is counted, and that is said
        fields["imap.folders"] = "INBOX\nGone"
        page = await asyncio.to_thread(browser.post, f"/external/{ADDRESS}", fields | {"do": "save", "password": ""})
        assert "1 of them will be delivered" in text(page)
        assert "the list is incomplete: there is no folder 'Gone'" in text(page)
