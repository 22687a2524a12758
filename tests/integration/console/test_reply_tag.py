"""Reply tags by page, command and REST API: the probe mail at a real Postfix, the setting, and the statistic."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import requests
from typer.testing import CliRunner

from deploy.machine.dovecot_postfix import DemoProvider
from services.admin.cli.app import app
from shared.db.database import Database
from shared.store import reply_tags
from tests import company, console
from tests.company import everyone, external
from tests.console import Browser, HtmlForm, forms, text
from tests.correspondence import fetch
from tests.integration.console.test_api import Script, token
from tests.polling import until
from tests.scripted_smtp import scripted_smtp

ADDRESS = "tags@pages.example"


async def make(store: str, port: int) -> None:
    server = {"host": "127.0.0.1", "port": port, "tls": "none", "auth": False}
    await console.make(store, {"external_accounts": [external(ADDRESS, smtp=server)], "local_accounts": []})


async def page_of(browser: Browser) -> requests.Response:
    return await asyncio.to_thread(browser.get, f"/external/{ADDRESS}")


async def send(browser: Browser, form: HtmlForm, **fields: str) -> requests.Response:
    return await asyncio.to_thread(browser.post, form.action, form.pairs | fields)


async def save_with_tags(browser: Browser) -> requests.Response:
    [dialog] = [form for form in forms(await page_of(browser)) if "poll_seconds" in form.values]
    return await send(browser, dialog, reply_tag="on", do="save")


async def send_probe(browser: Browser) -> str:
    [button] = [form for form in forms(await page_of(browser)) if form.action.endswith("/probe-tag")]
    return text(await send(browser, button))


async def call(store: str, folder: Path, *words: str) -> tuple[int, Any]:
    """Run a command. Returns its exit status, and its JSON."""
    where = {
        "MAILGROUP_DATABASE_URL": store,
        "MAILGROUP_DATA": str(folder),
        "MAILGROUP_SECRET_KEY": company.KEY,
        "MAILGROUP_ALLOW_PRIVATE_UPSTREAM": "yes",
    }
    done = await asyncio.to_thread(CliRunner(env=where).invoke, app, [*words, "--json"])
    return done.exit_code, json.loads(done.stdout)


async def test_a_provider_without_such_addresses_is_told_as_such(browser: Browser, store: str, tmp_path: Path) -> None:
    # given an account at a provider that knows no address with a tag
    async with scripted_smtp() as smtp:
        await make(store, smtp.port)
        assert "No probe mail was sent yet." in text(await page_of(browser))
        smtp.always("RCPT", "550 5.1.1 no such user")
        # when a probe mail is sent, then the page says what the server has answered
        told = await send_probe(browser)
        assert "was refused: the provider delivers no mail to the address with a tag: 127.0.0.1:" in told
        # and the command says the same
        status, probe = await call(store, tmp_path, "external", "probe-tag", ADDRESS, "--wait", "0")
        assert (status, probe["result"]) == (1, "refused")
    # and the setting stays off, with the reason beside it
    refused = await save_with_tags(browser)
    assert refused.status_code == 422 and "can be switched on after a probe mail has come back" in text(refused)


async def test_the_setting_follows_a_probe_mail_that_came_back(
    browser: Browser, url: str, store: str, database: Database, provider: DemoProvider, tmp_path: Path
) -> None:
    # given an account at a Postfix that delivers addresses with a tag
    provider.add_mailbox(ADDRESS, "secret")
    await make(store, provider.smtp_port)
    # when a probe mail is sent, delivered there, and fetched
    assert "has not come back yet" in await send_probe(browser)

    async def arrived() -> bool:
        return bool(provider.mail_of(ADDRESS))

    await until(arrived)
    await fetch(database, provider.mail_of(ADDRESS)[0].replace(b"\n", b"\r\n"), account=ADDRESS)
    # then the page says so, and the setting is possible
    assert "came back: the provider delivers mail to the address with a tag." in text(await page_of(browser))
    saved = text(await save_with_tags(browser))
    assert "Answers come to an address with the author’s tag: false -> true" in saved
    assert "Mails leave with a Reply-To address that has a tag" in saved
    # and page, command and API have the numbers
    assert "Nothing: they went to everybody 0 (–)" in saved
    numbers = {"days": 30, "name": 0, "tag": 0, "reference": 0, "report": 0, "nobody": 0}
    assert await call(store, tmp_path, "external", "answers", ADDRESS) == (0, numbers)
    script = Script(url, await asyncio.to_thread(token, browser, "administrator"))
    path = f"/external-accounts/{ADDRESS}"
    assert (await asyncio.to_thread(script.call, "GET", f"{path}/answers")).json() == numbers
    probe = (await asyncio.to_thread(script.call, "GET", f"{path}/tag-probe")).json()
    assert (probe["result"], probe["reply"]) == ("arrived", "")
    sent = (await asyncio.to_thread(script.call, "POST", f"{path}/tag-probe")).json()
    assert sent["result"] is None and "has not come back yet" in sent["text"]


async def test_an_observer_sends_no_probe_mail(observer: Browser, store: str, database: Database) -> None:
    await make(store, 1)
    assert "Send a probe mail" not in text(await page_of(observer))
    before = await probe_of(database)
    refused = await asyncio.to_thread(observer.post, f"/external/{ADDRESS}/probe-tag", {})
    assert refused.status_code == 403
    assert await probe_of(database) == before


async def probe_of(database: Database) -> reply_tags.TagProbe | None:
    externals, _ = await everyone(database)
    async with database.transaction() as connection:
        return await reply_tags.load_probe(connection, externals[ADDRESS].id)
