"""A stand-in for a provider's token endpoints (RFC 6749, RFC 8628), on loopback, answering as tests ask."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from shared.model import Issuer
from tests.company import external

Answer = tuple[int, dict[str, Any]]


class TokenServer:
    """answers: for the next requests, in order; afterwards a fresh access token each. requests: path and fields.

    meanwhile: called, in a thread, before each answer. rotating: a refresh token is good once, and gives the next one;
    ``good`` is the one that is good now. agreeing: False: a request with a device code is answered with "wait".
    """

    def __init__(self) -> None:
        self.answers: list[Answer | str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.meanwhile: Callable[[], object] = bool
        self.rotating = False
        self.good = "again"
        self.agreeing = True
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.issuer = Issuer(f"{self.url}/token", "mail", f"{self.url}/device", f"{self.url}/agree")

    def answer(self, fields: dict[str, str]) -> Answer | str:
        """The next one, to these fields: status and JSON, or a page that is none."""
        self.meanwhile()
        if not self.agreeing and "device_code" in fields:
            return 400, {"error": "authorization_pending"}
        if self.answers:
            return self.answers.pop(0)
        if self.rotating:
            used, number = fields["refresh_token"], len(self.requests)
            if used != self.good:
                self.good = "none: stolen"
                return 400, {"error": "invalid_grant"}
            self.good = f"again-{number}"
            return 200, {"access_token": f"access-{number}", "expires_in": 3600, "refresh_token": self.good}
        return 200, {"access_token": f"access-{len(self.requests)}", "expires_in": 3600}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                server.requests.append((urlsplit(self.path).path, form))
                found = server.answer(form)
                status, body = (200, found) if isinstance(found, str) else (found[0], json.dumps(found[1]))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        return Handler

    def serve(self) -> None:
        """Until ``stop``."""
        self._http.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()


def account_fields(server: TokenServer, **changes: Any) -> dict[str, Any]:
    """An external account of this issuer in the accounts file."""
    issuer = {name: value for name, value in asdict(server.issuer).items() if value is not None}
    account = external(oauth={"issuer": issuer, "client_id": "us", "client_secret": "hush"} | changes)
    del account["password"]
    return account


def device_code(**fields: Any) -> Answer:
    """The answer to a device authorization request (RFC 8628 section 3.2)."""
    code = {"device_code": "d", "user_code": "ABCD", "verification_uri": "https://x.example/device", "interval": 0.01}
    return 200, code | fields


@contextmanager
def token_server() -> Iterator[TokenServer]:
    """One in a thread of its own."""
    server = TokenServer()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


async def visit(url: str) -> None:
    """What a browser does when it is sent to ``url``."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    await reader.read()
    writer.close()
