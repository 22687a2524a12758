"""What every request passes: who may change something, how much may be sent, and what browsers are told to forbid.

SECURITY. A cookie is sent by the browser whoever made the page, so a request that changes something has to come from a
page of ours: its Origin names the host that it was sent to (with SameSite=Strict on the cookie, the second lock). A
request that no browser made has neither Origin nor cookie.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import Counter

from shared.metrics import STAGE_SECONDS

REQUESTS = Counter("mailgroup_http_requests_total", "Requests that the console answered.", ["status"])

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_OCTETS = 4 * 1024 * 1024
"""Of a request: an accounts file of ten thousand people fits."""
_READING = ("GET", "HEAD", "OPTIONS")
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


def from_our_page(headers: Mapping[str, str]) -> bool:
    """Whether a request that changes something may do so: by its headers, names in lower case. Pure."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None:
        return bool(host) and urlsplit(origin).netloc.casefold() == host.casefold()
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    if (referer := headers.get("referer")) is not None:
        return urlsplit(referer).netloc.casefold() == host.casefold()
    return "cookie" not in headers  # no browser: it shows a token, or signs in


class RequestGuard:
    """The application, guarded."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        secure = scope["scheme"] == "https"
        began = time.perf_counter()

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                STAGE_SECONDS.labels("http").observe(time.perf_counter() - began)
                REQUESTS.labels(str(message["status"])).inc()
                message["headers"] = _with_headers(message["headers"], secure)
            await send(message)

        try:
            allowed = scope["method"] in _READING or from_our_page(headers)
        except ValueError:  # an Origin that is no URL
            allowed = False
        if not allowed:
            await _refuse(answer, 403, "This request came from a page of another site. Open the console and try again.")
        elif not (length := headers.get("content-length", "0")).isdecimal() or int(length) > MOST_OCTETS:
            await _refuse(answer, 413, f"At most {MOST_OCTETS} octets are taken.")
        else:
            await self._app(scope, _limited(receive), answer)


def _with_headers(given: list[tuple[bytes, bytes]], secure: bool) -> list[tuple[bytes, bytes]]:
    present = {name.lower() for name, _ in given}
    further = dict(_HEADERS)
    further.setdefault("cache-control", "no-store")  # pages tell of people and their mail
    if secure:
        further["strict-transport-security"] = "max-age=31536000"
    return [*given, *((n.encode(), v.encode()) for n, v in further.items() if n.encode() not in present)]


def _limited(receive: Receive) -> Receive:
    """For requests that do not tell their length: one that goes on for too long ends, as if the client had gone."""
    taken = 0

    async def take() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return message if taken <= MOST_OCTETS else {"type": "http.disconnect"}

    return take


async def _refuse(send: Send, status: int, why: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{why}\n".encode()})
