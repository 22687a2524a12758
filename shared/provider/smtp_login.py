"""Logs in to a provider's SMTP server (RFC 4954): one mechanism after the other, each in its own exchange.

A refusal of the mechanism leads to the next one, a refusal of the credentials (535) ends the login.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from typing import ClassVar

import aiosmtplib

from shared.errors import Temporary
from shared.model import Server
from shared.net.dial import host_port
from shared.provider.credentials import RECENT, Credential
from shared.provider.oauth import xoauth2
from shared.provider.sasl import oauthbearer_response
from shared.provider.smtp_client import Reply, in_one_line

MECHANISMS = ("cram-md5", "plain", "login")
"""AUTH mechanisms for passwords, best first: CRAM-MD5 does not show the password."""
CREDENTIALS_REFUSED = 535
"""Reply code for wrong credentials (RFC 4954 section 6). Every other 5xx is about the mechanism."""
_CONTINUE = 334
_CANCELLED = 501
"""Reply code for an exchange that the client has cancelled (RFC 4954 section 4)."""
TOKEN_MECHANISMS = ("xoauth2", "oauthbearer")
"""AUTH mechanisms for access tokens: XOAUTH2, which Google and Microsoft document for SMTP, before OAUTHBEARER."""


class ServerUnavailable(Temporary):
    """The server refuses service now. reply_code: the code of its reply."""

    kind: ClassVar[str] = "server"

    def __init__(self, text: str, reply_code: int = 0) -> None:
        super().__init__(text)
        self.reply_code = reply_code


class AuthFailed(Temporary):
    """The credentials are wrong or missing: a person has to correct the account."""

    kind: ClassVar[str] = "credentials"


async def log_in(smtp: aiosmtplib.SMTP, credential: Credential, server: Server) -> None:
    """Log in with the mechanisms that the server offers, best first; close the connection if none works.

    After a 535 to CRAM-MD5, for which some servers lack the password in clear, PLAIN or LOGIN is tried once, if the
    connection is encrypted.

    :raises AuthFailed: the credentials are wrong, or no mechanism is accepted.
    :raises ServerUnavailable: a temporary refusal, or no known mechanism is offered.
    """
    where, encrypted = host_port(server), server.tls != "none"
    supported = TOKEN_MECHANISMS if credential.token else MECHANISMS
    offered = [name for name in supported if name in smtp.server_auth_methods]
    try:
        if not offered:
            raise ServerUnavailable(
                f"{where}: the server takes no login here (none of {', '.join(supported).upper()}); "
                "check port and tls, or set auth to false"
            )
        refusals: list[str] = []
        for name in offered:
            reply = await _exchange(smtp, name, credential, server)
            if reply.accepted:
                return
            if not reply.refused:
                raise ServerUnavailable(f"{where}: the login does not work now ({reply})", reply.code)
            refusals.append(f"{name.upper()}: {reply}")
            if reply.code == CREDENTIALS_REFUSED and (name != "cram-md5" or not encrypted):
                raise AuthFailed(f"{where}: the login was refused ({reply}); check login and password")
        raise AuthFailed(f"{where}: the login was refused ({'; '.join(refusals)}); check login, password and tls")
    except BaseException:
        smtp.close()
        raise


async def _exchange(smtp: aiosmtplib.SMTP, name: str, credential: Credential, server: Server) -> Reply:
    """Try one mechanism, and return the reply that ends it.

    An exchange in which the server asks for more than the mechanism has is cancelled: a refusal of the mechanism.
    """
    login = credential.login.removeprefix(RECENT)
    if credential.token:
        initial, responses = _token_responses(name, login, credential.secret, server)
    else:
        initial, responses = _responses(name, login, credential.secret)
    reply = await smtp.execute_command(b"AUTH", name.upper().encode(), *initial)
    for respond in responses:
        response = respond(reply.message) if reply.code == _CONTINUE else None
        if response is None:
            break
        reply = await smtp.execute_command(response)
    if reply.code == _CONTINUE:
        reply = await smtp.execute_command(b"*")
        return Reply(_CANCELLED, in_one_line(reply.message))
    return Reply(reply.code, in_one_line(reply.message))


_Responses = tuple[Sequence[bytes], Sequence[Callable[[str], bytes | None]]]


def _token_responses(name: str, login: str, token: str, server: Server) -> _Responses:
    """As ``_responses``, with an access token. The challenge is the reason of a refusal, as JSON: an empty response
    (XOAUTH2) or ^A (RFC 7628 section 3.2.3) leads to the final reply."""
    if name == "oauthbearer":
        return [_base64(oauthbearer_response(login, token, server.host, server.port))], [lambda _: _base64(b"\1")]
    return [xoauth2(login, token)], [lambda _: b""]


def _responses(name: str, login: str, secret: str) -> _Responses:
    """Return the initial response, if the mechanism has one, and what answers each 334, by its challenge.

    LOGIN has no initial response: servers may refuse it, or ignore it and take the password as the name. PLAIN's is
    repeated for a server that ignored it.
    """
    encoded_login, encoded_secret = _base64(login.encode()), _base64(secret.encode())
    if name == "plain":
        initial = _base64(f"\0{login}\0{secret}".encode())
        return [initial], [lambda _: initial]
    if name == "login":
        return [], [lambda _: encoded_login, lambda _: encoded_secret]
    return [], [lambda challenge: _cram_md5(challenge, login, secret)]


def _cram_md5(challenge: str, login: str, secret: str) -> bytes | None:
    """Return the answer to a challenge (RFC 2195), None if it is not one."""
    try:
        decoded = base64.b64decode(challenge.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return _base64(f"{login} {hmac.new(secret.encode(), decoded, 'md5').hexdigest()}".encode())


def _base64(octets: bytes) -> bytes:
    return base64.b64encode(octets)
