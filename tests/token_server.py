"""A stand-in for a provider's token endpoints (RFC 6749, 7523, 8628), on loopback, answering as tests ask."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.types import Options

from shared.model import Issuer
from tests.company import external

Answer = tuple[int, dict[str, Any]]
BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True)
class ClientKey:
    """The key of a client. pem: with a certificate, or without one. thumbprint: of the certificate; '' without one."""

    pem: str
    public: rsa.RSAPublicKey
    thumbprint: str = ""

    def as_google_json(self, email: str) -> str:
        """The file that Google gives for a service account, with the fields that matter."""
        return json.dumps({"type": "service_account", "client_email": email, "private_key": self.pem})


@cache
def client_key(name: str = "", certified: bool = False) -> ClientKey:
    """A key; the same one for the same arguments."""
    key = rsa.generate_private_key(65537, 2048)
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
    if not certified:
        return ClientKey(pem, key.public_key())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name or "mailgroup")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = x509.CertificateBuilder(
        subject, subject, key.public_key(), 1, now, now + datetime.timedelta(days=2)
    ).sign(key, hashes.SHA256())
    thumbprint = base64.urlsafe_b64encode(certificate.fingerprint(hashes.SHA256())).rstrip(b"=").decode()
    return ClientKey(pem + certificate.public_bytes(serialization.Encoding.PEM).decode(), key.public_key(), thumbprint)


@dataclass
class Registered:
    """A client that the issuer knows. logins: for which it may ask by JWT. allowed: it may use the other grants."""

    secret: str = ""
    key: ClientKey | None = None
    logins: tuple[str, ...] = ()
    allowed: bool = True
    seen: set[str] = field(default_factory=set)  # jti of its assertions


class TokenServer:
    """answers: for the next requests, in order; afterwards a fresh access token each. requests: path and fields.

    clients: by id; if there are any, each request has to prove that it comes from one of them, and may use its grant.

    meanwhile: called, in a thread, before each answer. rotating: a refresh token is good once, and gives the next one;
    ``good`` is the one that is good now. agreeing: False: a request with a device code is answered with "wait".

    mailbox: the login that access tokens are for, which introspection returns. revoked: access tokens that
    are no longer good there.
    """

    def __init__(self) -> None:
        self.answers: list[Answer | str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.meanwhile: Callable[[], object] = bool
        self.rotating = False
        self.good = "again"
        self.agreeing = True
        self.clients: dict[str, Registered] = {}
        self.mailbox = ""
        self.revoked: set[str] = set()
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
        if self.clients and (code := self._refuse(fields)):
            return 401 if code == "invalid_client" else 400, {"error": code}
        if self.rotating:
            used, number = fields["refresh_token"], len(self.requests)
            if used != self.good:
                self.good = "none: stolen"
                return 400, {"error": "invalid_grant"}
            self.good = f"again-{number}"
            return 200, {"access_token": f"access-{number}", "expires_in": 3600, "refresh_token": self.good}
        return 200, {"access_token": f"access-{len(self.requests)}", "expires_in": 3600}

    def introspect(self, fields: dict[str, str]) -> Answer:
        """The answer to a provider that asks about a token (RFC 7662 section 2.2)."""
        token = fields["token"]
        active = token.startswith("access-") and token not in self.revoked
        return 200, {"active": active, "username": self.mailbox} if active else {"active": False}

    def _refuse(self, fields: dict[str, str]) -> str:
        """Check a request as an issuer does. :return: the error code; '' if all is well."""
        if fields["grant_type"] == BEARER:
            return self._refuse_bearer(fields["assertion"])
        client = self.clients.get(fields["client_id"])
        if client is None or not self._is_proven(client, fields):
            return "invalid_client"
        return "" if client.allowed else "unauthorized_client"

    def _refuse_bearer(self, assertion: str) -> str:
        """Check a JWT as Google does (RFC 7523 section 3)."""
        claims: dict[str, Any] = jwt.decode(assertion, options={"verify_signature": False})
        client = self.clients.get(str(claims.get("iss")))
        if client is None or client.key is None:
            return "invalid_grant"
        needed: Options = {"require": ["iss", "sub", "aud", "iat", "exp", "scope"]}
        try:
            jwt.decode(assertion, client.key.public, ["RS256"], options=needed, audience=self.issuer.token_url)
        except jwt.InvalidTokenError:
            return "invalid_grant"
        if claims["exp"] - claims["iat"] > 3600 or claims["scope"] != self.issuer.scope:
            return "invalid_scope"
        return "" if claims["sub"] in client.logins else "unauthorized_client"

    def _is_proven(self, client: Registered, fields: dict[str, str]) -> bool:
        """Check the secret, or the assertion instead of it (RFC 7523 section 2.2), whose jti is good once."""
        if client.key is None:
            return fields.get("client_secret", "") == client.secret and "client_assertion" not in fields
        assertion = fields.get("client_assertion", "")
        algorithm = "PS256" if client.key.thumbprint else "RS256"
        needed: Options = {"require": ["iss", "sub", "aud", "exp", "jti"]}
        try:
            claims = jwt.decode(
                assertion,
                client.key.public,
                [algorithm],
                options=needed,
                audience=self.issuer.token_url,
            )
            header = jwt.get_unverified_header(assertion)
        except jwt.InvalidTokenError:
            return False
        again = claims["jti"] in client.seen
        client.seen.add(claims["jti"])
        return (
            not again
            and fields["client_assertion_type"] == ASSERTION_TYPE
            and "client_secret" not in fields
            and claims["iss"] == claims["sub"] == fields["client_id"]
            and header.get("x5t#S256", "") == client.key.thumbprint
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                path = urlsplit(self.path).path
                if path == "/introspect":  # asked by a provider, not by us
                    found: Answer | str = server.introspect(form)
                else:
                    server.requests.append((path, form))
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
