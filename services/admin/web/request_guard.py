"""The checks of every request: its host, its origin and its size; and the security headers of every response.

SECURITY. A page of another site may have a name that resolves to the console's address (DNS rebinding). Its requests
come from "its own" origin, and it may read the answers. So the console answers only to names that are its own.

A browser sends our cookie with requests from pages of other sites, too (CSRF). A request that changes something
therefore has to come from a page of ours: its Origin names the host that receives it. SameSite=Strict on the cookie is
the second barrier. A request that no browser made has neither Origin nor cookie.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import Counter

from services.admin.accounts.yaml_text import MAX_OCTETS as MAX_YAML_OCTETS
from services.admin.web.connection import HEAD_OCTETS
from shared.languages.translation import gettext
from shared.metrics import STAGE_SECONDS
from shared.settings import Settings, is_loopback

REQUESTS = Counter("mailgroup_http_requests_total", "Requests that the console answered.", ["status"])
for _status in ("200", "500"):  # others exist from their first request on
    REQUESTS.labels(_status)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_OCTETS = 256 * 1024
"""Limit of a request body: octets; forms and JSON have some KiB. Without a login a client can use up as much memory for
each of its connections."""
FILE_PATHS, MAX_FILE_OCTETS = ("/accounts-file", "/api/v1/accounts-file"), MAX_YAML_OCTETS + 64 * 1024
"""The paths of the accounts file, whose body is read for administrators only, and its limit: octets."""
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.-]{1,253}))(?::\d{1,5})?", re.ASCII)
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class OwnHosts:
    """The names and addresses under which browsers reach the console."""

    def __init__(self, settings: Settings) -> None:
        given = (*settings.further_hosts, settings.admin_bind, settings.mail_host or "", socket.gethostname())
        self._names = {name.casefold() for name in given if name}

    def include(self, header: str, local_address: str) -> bool:
        """Return whether a Host header names the console.

        :param local_address: IP address of this end of the connection: the console listens on it.
        """
        match = _HOST.fullmatch(header)
        if match is None:
            return False
        host = (match[1] or match[2]).rstrip(".").casefold()
        return is_loopback(host) or host in self._names or host == local_address


def from_our_page(headers: Mapping[str, str]) -> bool:
    """Return whether a request with these headers (names in lower case) may change something. Pure."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None:
        return bool(host) and urlsplit(origin).netloc.casefold() == host.casefold()
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    if (referer := headers.get("referer")) is not None:
        return urlsplit(referer).netloc.casefold() == host.casefold()
    return "cookie" not in headers  # no browser: a script with a token, or a sign-in


class RequestGuard:
    """The ASGI application behind the checks."""

    def __init__(self, app: App, hosts: OwnHosts, open_paths: tuple[str, ...] = ()) -> None:
        """:param open_paths: beginnings of the paths that are answered under any name: they are public."""
        self._app = app
        self._hosts = hosts
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        secure = scope["scheme"] == "https"
        started = time.perf_counter()

        async def respond(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                STAGE_SECONDS.labels("http").observe(time.perf_counter() - started)
                REQUESTS.labels(str(message["status"])).inc()
                message["headers"] = _with_headers(message["headers"], secure)
            await send(message)

        local_address = scope["server"][0] if scope.get("server") else ""
        if not scope["path"].startswith(self._open_paths) and not self._hosts.include(
            headers.get("host", ""), local_address
        ):
            await _refuse(
                respond,
                421,
                gettext(
                    "The console is not known by this name. Open it by its address, or let the operator add the name "
                    "to MAILGROUP_ADMIN_HOSTS."
                ),
            )
            return
        try:
            allowed = scope["method"] in _SAFE_METHODS or from_our_page(headers)
        except ValueError:  # an Origin that is no URL
            allowed = False
        if not allowed:
            await _refuse(
                respond, 403, gettext("This request came from a page of another site. Open the console and try again.")
            )
            return
        if sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["query_string"]) > HEAD_OCTETS:
            await _refuse(
                respond, 431, gettext("The header of the request is longer than %(limit)s octets.", limit=HEAD_OCTETS)
            )
            return
        limit = MAX_FILE_OCTETS if scope["path"] in FILE_PATHS else MAX_OCTETS
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal() and len(length) < 19) or int(length) > limit:
            await _refuse(respond, 413, gettext("The request is longer than %(limit)s octets.", limit=limit))
        else:
            await self._app(scope, _limited(receive, limit), respond)


def _with_headers(given: list[tuple[bytes, bytes]], secure: bool) -> list[tuple[bytes, bytes]]:
    present = {name.lower() for name, _ in given}
    added = dict(_HEADERS)
    added.setdefault("cache-control", "no-store")  # pages hold personal data
    if secure:
        added["strict-transport-security"] = "max-age=31536000"
    return [*given, *((n.encode(), v.encode()) for n, v in added.items() if n.encode() not in present)]


def _limited(receive: Receive, limit: int) -> Receive:
    """Limit requests without a Content-Length: a body that is too long ends as if the client had disconnected."""
    received = 0

    async def receive_limited() -> MutableMapping[str, Any]:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return message if received <= limit else {"type": "http.disconnect"}

    return receive_limited


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
