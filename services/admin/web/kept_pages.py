"""Pages that answer a form, kept for a short time: the browser is redirected to them, and a reload sends nothing.

A form that is refused, tested or asked about is answered with a page. This page is kept, and the browser is redirected
to it with GET (RFC 9110 section 15.4.4). The URL is that of the page with the form, with a handle: after the time, or
after a restart, it shows that page.

SECURITY. A kept page is shown to the browser that sent the form, by a cookie, and only while the session that it was
made for goes on. No page has a typed password in it.
"""

from __future__ import annotations

import secrets
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote

from fastapi import Request

from services.admin.web.page_context import KEPT_PAGE, PageContext, current_user
from services.admin.web.request_guard import App, Receive, Scope, Send
from shared.errors import Temporary

COOKIE = "mailgroup_pages"
KEPT_SECONDS = 1800.0
"""Lifetime of a page: seconds; as long as a typed password is kept for it."""
_MAX_KEPT, _MAX_OCTETS = 1000, 16 * 1024 * 1024
"""Limits of what is kept: pages; octets, compressed. They apply to users and to requests without a session apart."""
_SAFE = ":/%#?=@[]!$&'()*+,;"
"""Characters of a path that a Location keeps."""
_DROPPED = (b"set-cookie", b"content-length")


@dataclass(frozen=True, slots=True)
class _Page:
    browser: str  # value of the cookie
    session_id: int  # 0: the request had no session
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes  # compressed
    until: float  # time.monotonic()


class _Store:
    """Pages by their handle, the oldest first."""

    def __init__(self) -> None:
        self._pages: OrderedDict[str, _Page] = OrderedDict()
        self._octets = 0

    def store(self, page: _Page) -> str:
        """Store a page that is not larger than the limit. :return: its handle."""
        handle = secrets.token_urlsafe(16)
        self._pages[handle] = page
        self._octets += len(page.body)
        while self._pages and (
            len(self._pages) > _MAX_KEPT
            or self._octets > _MAX_OCTETS
            or next(iter(self._pages.values())).until <= time.monotonic()
        ):
            self._octets -= len(self._pages.popitem(last=False)[1].body)
        return handle

    def load(self, handle: str, browser: str) -> _Page | None:
        """Return a page that is still kept for this browser."""
        page = self._pages.get(handle)
        return page if page is not None and page.browser == browser and page.until > time.monotonic() else None


class KeptPages:
    """The ASGI application that answers every form of a page with a redirect."""

    def __init__(self, app: App, context: PageContext, page_of: Callable[[Request], str]) -> None:
        """:param page_of: returns the path of the page that a form is on."""
        self._app = app
        self._context = context
        self._page_of = page_of
        self._of_users, self._of_others = _Store(), _Store()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and not scope["path"].startswith("/api/"):
            if scope["method"] == "POST":
                await self._app(scope, receive, _Answer(self, scope, send).send)
                return
            if scope["method"] == "GET" and (page := await self._find(scope)) is not None:
                body = zlib.decompress(page.body)
                headers = [*page.headers, (b"content-length", str(len(body)).encode())]
                await send({"type": "http.response.start", "status": page.status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self._app(scope, receive, send)

    async def _find(self, scope: Scope) -> _Page | None:
        query = scope["query_string"].decode("latin-1")
        if f"{KEPT_PAGE}=" not in query:
            return None
        [handle, *_] = parse_qs(query).get(KEPT_PAGE, [""])
        browser = _browser_of(scope)
        if (page := self._of_others.load(handle, browser)) is not None:
            return page
        if (page := self._of_users.load(handle, browser)) is None:
            return None
        try:
            user = await current_user(Request(scope), self._context)
        except Temporary:
            return None  # the page says so
        return page if user is not None and user.session_id == page.session_id else None

    def keep(self, scope: Scope, start: MutableMapping[str, Any], body: bytes) -> list[tuple[bytes, bytes]] | None:
        """Keep a page. :return: the headers of the redirect to it; None: it is too large to be kept."""
        packed = zlib.compress(body, 1)
        if len(packed) > _MAX_OCTETS:
            return None
        given: list[tuple[bytes, bytes]] = start["headers"]
        headers = [(name, value) for name, value in given if name.lower() not in _DROPPED]
        known = _browser_of(scope)
        browser, session_id = known or secrets.token_urlsafe(16), scope["state"].get("session_id", 0)
        page = _Page(browser, session_id, start["status"], headers, packed, time.monotonic() + KEPT_SECONDS)
        handle = (self._of_users if session_id else self._of_others).store(page)
        to = self._page_of(Request(scope))
        location = quote(f"{to}{'&' if '?' in to else '?'}{KEPT_PAGE}={handle}", safe=_SAFE)
        cookies = [(name, value) for name, value in given if name.lower() == b"set-cookie"]
        if not known:
            secure = "; Secure" if scope["scheme"] == "https" else ""
            cookie = f"{COOKIE}={browser}; HttpOnly; Path=/; SameSite=Strict{secure}"
            cookies.append((b"set-cookie", cookie.encode()))
        return [(b"location", location.encode()), (b"content-length", b"0"), *cookies]


class _Answer:
    """The response to one form: a page is held back until it is complete, anything else is passed on."""

    def __init__(self, pages: KeptPages, scope: Scope, send: Send) -> None:
        self._pages = pages
        self._scope = scope
        self._send = send
        self._start: MutableMapping[str, Any] | None = None
        self._body = bytearray()
        scope.setdefault("state", {})

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Take a part of the response."""
        # 400: the request was cut or is not what a form sends; no browser could send it again
        if message["type"] == "http.response.start" and message["status"] != 400 and _is_page(message["headers"]):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._complete(self._start)

    async def _complete(self, start: MutableMapping[str, Any]) -> None:
        body = bytes(self._body)
        if (headers := self._pages.keep(self._scope, start, body)) is None:
            await self._send(start)
            await self._send({"type": "http.response.body", "body": body})
            return
        await self._send({"type": "http.response.start", "status": 303, "headers": headers})
        await self._send({"type": "http.response.body", "body": b""})


def _is_page(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers)


def _browser_of(scope: Scope) -> str:
    """Return the cookie of the browser; '' for a browser that has none yet."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    try:
        cookie = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie is not None else ""
