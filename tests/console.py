"""A console for tests: the real one, in a thread of this process, on a free port; and a browser without a screen."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from typing import Any
from unittest.mock import patch
from urllib.parse import urljoin

import psycopg
import requests

from deploy.machine import ports
from services.admin.monitoring import status
from services.admin.web.listener import MAX_CONNECTIONS
from services.admin.web.server import serve
from shared.runtime.process import Service
from shared.settings import SERVICES, Settings
from tests import servers
from tests.company import COMPANY, KEY, apply

PASSWORD = "the console's password"


@dataclass
class HtmlForm:
    """A form of a page, with the values that a browser sends at first."""

    action: str
    method: str
    fields: list[tuple[str, str, dict[str, str]]]  # name, value, attributes
    buttons: list[dict[str, str]]  # attributes of the buttons that send the form, in the order of the page
    boxes: list[tuple[str, str]]  # name and value of the boxes that are not ticked

    @property
    def values(self) -> dict[str, str]:
        """The values by name; of several fields with one name, the last one."""
        return {name: value for name, value, _ in self.fields if name}

    @property
    def pairs(self) -> dict[str, list[str]]:
        """All values by name, as requests sends them."""
        return {name: [value for other, value, _ in self.fields if other == name] for name, _, _ in self.fields if name}


class _FormReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[HtmlForm] = []
        self._open: HtmlForm | None = None
        self._select: tuple[dict[str, str], list[tuple[str, bool]]] | None = None
        self._area: dict[str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._open = HtmlForm(attributes.get("action", ""), attributes.get("method", "get"), [], [], [])
            self.found.append(self._open)
        elif self._open is None:
            return
        elif tag == "button" and attributes.get("type", "submit") == "submit":
            self._open.buttons.append(attributes)
        elif tag == "input" and attributes.get("type") in ("checkbox", "radio") and "checked" not in attributes:
            self._open.boxes.append((attributes.get("name", ""), attributes.get("value", "on")))
        elif tag == "input" and attributes.get("type") != "file":
            self._add(attributes, attributes.get("value", "on" if "checked" in attributes else ""))
        elif tag == "select":
            self._select = attributes, []
        elif tag == "option" and self._select is not None:
            self._select[1].append((attributes.get("value", ""), "selected" in attributes))
        elif tag == "textarea":
            self._area = attributes

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            self._area["value"] = self._area.get("value", "") + data

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None
        elif tag == "select" and self._select is not None:
            attributes, options = self._select
            chosen = [value for value, selected in options if selected] or [value for value, _ in options[:1]]
            values = " ".join(value for value, _ in options)
            self._add(attributes | {"type": "select", "options": values}, chosen[0] if chosen else "")
            self._select = None
        elif tag == "textarea" and self._area is not None:
            self._add(self._area, self._area.get("value", "").removeprefix("\n"))  # as browsers do
            self._area = None

    def _add(self, attributes: dict[str, str], value: str) -> None:
        assert self._open is not None
        self._open.fields.append((attributes.get("name", ""), value, attributes))


def forms(answer: requests.Response) -> list[HtmlForm]:
    """The forms of a page."""
    reader = _FormReader()
    reader.feed(answer.text)
    return reader.found


class Browser:
    """Keeps cookies, follows redirects and sends forms as browsers do."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()

    def get(self, path: str, **options: Any) -> requests.Response:
        """Request a page."""
        return self.session.get(urljoin(self.url, path), timeout=300, **options)

    def post(self, path: str, fields: Any = None, **options: Any) -> requests.Response:
        """Send a form as a page of the console does. :return: the page that follows."""
        headers = {"Origin": self.url} | options.pop("headers", {})
        return self.session.post(urljoin(self.url, path), data=fields or {}, headers=headers, timeout=300, **options)

    def agree(self, path: str, fields: Any = None, **more: str) -> requests.Response:
        """Send a form that asks first, and press the button of the question. :param more: typed into the question."""
        asked = self.post(path, fields)
        [question] = [form for form in forms(asked) if form.values.get("confirmed")]
        return self.post(question.action, question.pairs | more)

    def sign_in(self, name: str = "admin", password: str = PASSWORD) -> requests.Response:
        """Sign in. :return: the page that follows."""
        return self.post("/sign-in", {"name": name, "password": password})


def signed_in(url: str, name: str = "admin", password: str = PASSWORD) -> Browser:
    """A signed-in browser with its own session."""
    browser = Browser(url)
    browser.sign_in(name, password)
    return browser


async def make(store: str, accounts: dict[str, Any] = COMPANY) -> None:
    """Apply an accounts file to the database of a console."""
    async with servers.opened(store) as database:
        await apply(database, accounts)


def stored(store: str, query: str) -> list[tuple[Any, ...]]:
    """Rows of the console's database."""
    with psycopg.connect(store) as connection:
        return connection.execute(query.encode()).fetchall()


def text(answer: requests.Response) -> str:
    """The text of a page without its markup."""
    shown = re.sub(r"<(script|style|head)\b.*?</\1>", " ", answer.text, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", shown)).split())


@contextmanager
def running(database_url: str, max_connections: int = MAX_CONNECTIONS, **settings: Any) -> Iterator[str]:
    """A console on this database; its URL."""
    port = ports.choose(1, database_url, ports.OURS)[0]
    values: dict[str, Any] = {
        "database_url": database_url,
        "broker_url": "amqp://127.0.0.1:1/",
        "secret_key": KEY,
        "admin_password": PASSWORD,
        "admin_port": port,
        "admin_hosts": "console.lan",
        "metrics_port": ports.choose_run(len(SERVICES), database_url, ports.OURS, taken=[port]),
        "allow_private_upstream": True,
    }
    wanted = Settings(**values | settings)
    begun: threading.Event = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, Service]] = []

    async def main() -> None:
        service = Service("admin", wanted)
        stop.append((asyncio.get_running_loop(), service))
        await service.database.open()
        asyncio.get_running_loop().call_later(0.05, begun.set)  # it listens before it waits for anything
        try:
            await serve(service, max_connections)
        finally:
            begun.set()
            await service.broker.close()
            await service.database.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="console")
    with patch.object(status, "CONNECTED_SECONDS", 0.05):  # there is no broker to wait for
        thread.start()
        begun.wait(30)
        try:
            yield f"{'https' if wanted.console_has_tls else 'http'}://127.0.0.1:{port}"
        finally:
            loop, service = stop[0]
            loop.call_soon_threadsafe(service.stopping.set)
            thread.join(30)
            assert not thread.is_alive(), "the console does not stop"
