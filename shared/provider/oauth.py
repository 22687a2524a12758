"""Requests access tokens from providers that no longer accept passwords (RFC 6749; XOAUTH2 in POP3 and SMTP).

Such an external account has an OAuth client (our identity at the provider). After a person has authorized it, it has a
refresh token; or the client gets tokens without a person: for itself, or by a request that it signs for the account.
This module talks to the provider's endpoints; ``shared/provider/credentials.py`` stores the tokens.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import secrets
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast
from urllib.parse import urlencode

from shared.errors import Permanent, Temporary
from shared.model import FetchProtocol, GrantType, Issuer
from shared.net import http_client
from shared.provider import client_keys
from shared.settings import PrivateHosts

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_BEARER_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_SLOWER_SECONDS = 5.0  # RFC 8628 section 3.5
_USER_CODE_CHARACTERS, _CODE_CHARACTERS = 100, 60
_TEMPORARY_ERRORS = ("temporarily_unavailable", "server_error", "slow_down", "authorization_pending")
LONGEST_SECONDS = 3600.0
"""Longest wait for a person's authorization, whatever the issuer allows: seconds."""
MEANINGS = {  # RFC 6749 sections 4.1.2.1 and 5.2, RFC 8628 section 3.5
    "access_denied": "the person, or the provider, said no",
    "expired_token": "the code was not used in time",
    "invalid_client": "the provider does not know this client id, or the client's secret or key is wrong",
    "invalid_grant": "the authorization has ended, or was revoked at the provider",
    "invalid_scope": "the provider does not give this application access to mail",
    "unauthorized_client": "this application may not use this flow; see its settings at the provider",
    "interaction_required": "a person has to consent again on the provider's page",
    "consent_required": "a person has to consent on the provider's page",
}
"""Meanings of OAuth error codes."""
MEANINGS_WITHOUT_PERSON = MEANINGS | {
    "access_denied": "an administrator at the provider has not allowed this application to read and send mail",
    "invalid_grant": "the provider does not accept the signed request: the login is no mailbox there, the key is no "
    "longer valid, or a clock is wrong",
    "unauthorized_client": "an administrator at the provider has not allowed this application to use the mailbox",
}
"""Meanings of the codes for grants that need no person."""


class Unauthorized(Temporary):
    """The provider refuses a token for this account: a person has to authorize it again, or to correct its settings."""

    kind: ClassVar[str] = "refused"


ISSUERS = {
    "google": Issuer(  # its device flow does not give the scope for mail
        "https://oauth2.googleapis.com/token",
        "https://mail.google.com/",
        authorize_url="https://accounts.google.com/o/oauth2/v2/auth",
    ),
    "microsoft": Issuer(
        "https://login.microsoftonline.com/common/oauth2/v2.0/token",
        "offline_access https://outlook.office.com/POP.AccessAsUser.All https://outlook.office.com/SMTP.Send",
        "https://login.microsoftonline.com/common/oauth2/v2.0/devicecode",
        "https://login.microsoftonline.com/common/oauth2/v2.0/authorize",
    ),
}

_IMAP_SCOPES = {
    "microsoft": "offline_access https://outlook.office.com/IMAP.AccessAsUser.All https://outlook.office.com/SMTP.Send"
}
"""Scopes by issuer, where those for IMAP differ from those for POP3."""
_APPLICATION_SCOPES = {"microsoft": "https://outlook.office365.com/.default"}
"""Scopes by issuer of an application that needs no person: all that an administrator has allowed it."""
COMMON_TENANT = "common"
"""Microsoft's endpoints for the accounts of all organisations."""


def known_issuer(
    name: str, protocol: FetchProtocol, grant: GrantType = "authorization", tenant: str | None = None
) -> Issuer:
    """Return one of ``ISSUERS`` with the scope for grant and protocol, and the endpoints of the tenant."""
    issuer = ISSUERS[name]
    if name == "microsoft" and tenant is not None:
        token, device, authorize = (
            url.replace(f"/{COMMON_TENANT}/", f"/{tenant}/") if url else None
            for url in (issuer.token_url, issuer.device_url, issuer.authorize_url)
        )
        issuer = Issuer(token or "", issuer.scope, device, authorize)
    if grant == "client_credentials":
        return replace(issuer, scope=_APPLICATION_SCOPES.get(name, issuer.scope))
    return replace(issuer, scope=_IMAP_SCOPES.get(name, issuer.scope)) if protocol == "imap" else issuer


class IssuerUnavailable(Temporary):
    """The provider issues no token now."""

    kind: ClassVar[str] = "busy"


@dataclass(frozen=True, slots=True)
class Client:
    """Our identity at the issuer. secret and key: one of them, or both '' for a public client.

    key: the private key, in PEM form, of a client that signs its requests. grant: decides what errors mean.
    """

    issuer: Issuer
    id: str
    secret: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    grant: GrantType = "authorization"

    def identity(self) -> dict[str, str]:
        """Return the fields that prove to the token endpoint who we are (RFC 6749 section 2.3, RFC 7523 section 2.2).

        SECURITY. They are for the token endpoint alone: an assertion is as good as the secret until it expires.
        """
        fields = {"client_id": self.id}
        if self.key:
            assertion = client_keys.client_assertion(self.key, self.id, self.issuer.token_url)
            return fields | {"client_assertion_type": _ASSERTION_TYPE, "client_assertion": assertion}
        return fields | ({"client_secret": self.secret} if self.secret else {})


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens from an issuer. seconds: lifetime of the access token. refresh: None if the old one stays valid."""

    access: str
    seconds: float
    refresh: str | None


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """RFC 8628 section 3.2: a person opens ``url`` and types ``user_code``. Times in seconds."""

    device_code: str
    user_code: str
    url: str
    interval: float
    expires: float


def xoauth2(login: str, access_token: str) -> bytes:
    """Return the initial response of XOAUTH2 in base64."""
    return base64.b64encode(f"user={login}\1auth=Bearer {access_token}\1\1".encode())


async def refresh(client: Client, refresh_token: str, allow_private: PrivateHosts) -> Tokens:
    """Request a new access token (RFC 6749 section 6).

    :raises Unauthorized: (Temporary) the refresh token is no longer valid. :raises IssuerUnavailable: no token now.
    :raises Temporary, Permanent: as ``dial.connect_socket``.
    """
    fields = {"grant_type": "refresh_token", "refresh_token": refresh_token, "scope": client.issuer.scope}
    return _tokens(client, await _exchange(client.issuer.token_url, fields | client.identity(), allow_private))


async def request_for_application(client: Client, allow_private: PrivateHosts) -> Tokens:
    """Request an access token for the application itself (RFC 6749 section 4.4). :raises: as ``refresh``."""
    fields = {"grant_type": "client_credentials", "scope": client.issuer.scope}
    return _tokens(client, await _exchange(client.issuer.token_url, fields | client.identity(), allow_private))


async def request_for_login(client: Client, login: str, allow_private: PrivateHosts) -> Tokens:
    """Request an access token for a mailbox by a signed request (RFC 7523 section 2.1). :raises: as ``refresh``.

    The signature is the proof: no secret and no further assertion goes with it.
    """
    issuer = client.issuer
    assertion = client_keys.bearer_assertion(client.key, client.id, login, issuer.token_url, issuer.scope)
    fields = {"grant_type": _BEARER_GRANT, "assertion": assertion}
    return _tokens(client, await _exchange(issuer.token_url, fields, allow_private))


# ------------------------------------------------------------------------------------------------ device flow


async def begin_device(client: Client, allow_private: PrivateHosts) -> DeviceCode:
    """Request a code that a person types on the provider's page (RFC 8628 section 3.1)."""
    if client.issuer.device_url is None:
        raise Permanent("this provider has no device flow for mail")
    fields = {"client_id": client.id, "scope": client.issuer.scope}
    status, found = await _exchange(client.issuer.device_url, fields, allow_private)
    url = str(found.get("verification_uri") or found.get("verification_url") or "")
    user_code = str(found.get("user_code", ""))
    if (
        status != http.client.OK
        or not _is_page(url)
        or not user_code.isprintable()
        or len(user_code) > _USER_CODE_CHARACTERS
    ):
        raise Permanent(f"{_host(client.issuer.device_url)}: no code was given ({_problem(status, found)})")
    return DeviceCode(
        str(found.get("device_code", "")),
        user_code,
        url,
        _number(found.get("interval"), _SLOWER_SECONDS),
        min(_number(found.get("expires_in"), 900.0), LONGEST_SECONDS),
    )


async def ask_device(client: Client, code: DeviceCode, allow_private: PrivateHosts) -> Tokens | DeviceCode:
    """Poll whether the person has consented (RFC 8628 section 3.4).

    :return: the tokens; or the code, with the interval until the next poll. :raises Unauthorized: refused, or expired.
    :raises Temporary: no response; section 3.5 demands another poll later.
    """
    fields = {"grant_type": _DEVICE_GRANT, "device_code": code.device_code} | client.identity()
    status, found = await _exchange(client.issuer.token_url, fields, allow_private)
    match found.get("error"):
        case "slow_down":
            return slower(code)
        case "authorization_pending":
            return code
    return _tokens(client, (status, found))


def slower(code: DeviceCode) -> DeviceCode:
    """Return the code with a longer interval (RFC 8628 section 3.5). Pure."""
    return replace(code, interval=code.interval + _SLOWER_SECONDS)


# ------------------------------------------------------------------------------------------------ code flow


@dataclass(frozen=True, slots=True)
class CodeRequest:
    """An authorization request in a browser. url: the page to open. verifier: the code verifier of PKCE (RFC 7636)."""

    url: str
    redirect: str
    state: str
    verifier: str


def begin_code(client: Client, login: str, redirect: str) -> CodeRequest:
    """Build the request for a person's consent (RFC 6749 section 4.1.1). :param redirect: a loopback URL (RFC 8252)."""
    if client.issuer.authorize_url is None:
        raise Permanent("this provider has no authorization page")
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code",
        "client_id": client.id,
        "redirect_uri": redirect,
        "scope": client.issuer.scope,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "login_hint": login,
        "access_type": "offline",  # otherwise Google issues no refresh token
        "prompt": "consent",
    }
    return CodeRequest(f"{client.issuer.authorize_url}?{urlencode(query)}", redirect, state, verifier)


async def finish_code(client: Client, request: CodeRequest, code: str, allow_private: PrivateHosts) -> Tokens:
    """Exchange the code from the browser for tokens (RFC 6749 section 4.1.3). :raises Unauthorized: refused."""
    fields = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": request.redirect,
        "code_verifier": request.verifier,
    }
    return _tokens(client, await _exchange(client.issuer.token_url, fields | client.identity(), allow_private))


# ------------------------------------------------------------------------------------------------ the exchange


def _tokens(client: Client, answer: tuple[int, dict[str, Any]]) -> Tokens:
    """Read a token response (RFC 6749 sections 5.1 and 5.2)."""
    status, found = answer
    host = _host(client.issuer.token_url)
    access = found.get("access_token")
    if status == http.client.OK and isinstance(access, str) and access:
        renewed = found.get("refresh_token")
        return Tokens(access, _number(found.get("expires_in"), 300.0), renewed if isinstance(renewed, str) else None)
    code = found.get("error")
    refused = status in (http.client.BAD_REQUEST, http.client.UNAUTHORIZED, http.client.FORBIDDEN)
    if not refused or not isinstance(code, str) or code in _TEMPORARY_ERRORS:  # without a code: a proxy's page
        raise IssuerUnavailable(f"{host}: no token now ({_problem(status, found)})")
    raise Unauthorized(f"{host}: no token is given ({_problem(status, found, client.grant)})")


async def _exchange(url: str, fields: dict[str, str], allow_private: PrivateHosts) -> tuple[int, dict[str, Any]]:
    """Send a form; return status and JSON object of the response ({} for anything else).

    :raises Temporary, Permanent: as ``http_client.post``.
    """
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    status, body = await http_client.post(url, urlencode(fields), headers, allow_private)
    try:
        found = json.loads(body or b"{}")
    except ValueError:  # a proxy's page
        return status, {}
    return status, cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _number(value: object, otherwise: float) -> float:
    try:
        found = float(cast(Any, value))
    except (TypeError, ValueError):
        return otherwise
    return found if 0 < found < 1e7 else otherwise


def _problem(status: int, found: dict[str, Any], grant: GrantType = "authorization") -> str:
    """Describe an error by the issuer's code, which contains no secret; the issuer's text is not trusted."""
    code = found.get("error")
    return (meaning(code, grant) if isinstance(code, str) else "") or f"HTTP status {status}"


_CODE = re.compile("[a-z]+(_[a-z]+){0,9}")


def meaning(code: str, grant: GrantType = "authorization") -> str:
    """Return an error code with its meaning; '' for a text that is not a code as all issuers write them. Pure."""
    if len(code) > _CODE_CHARACTERS or not _CODE.fullmatch(code):
        return ""
    meanings = MEANINGS if grant == "authorization" else MEANINGS_WITHOUT_PERSON
    return f"{code}: {meanings[code]}" if code in meanings else code


def _is_page(url: str) -> bool:
    """Whether the text is an http or https URL that may be shown to a person. Pure."""
    try:
        http_client.server_of(url)
    except Permanent:
        return False
    return url.isascii() and url.isprintable()


def _host(url: str) -> str:
    return http_client.server_of(url).host
