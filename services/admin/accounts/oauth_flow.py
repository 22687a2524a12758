"""OAuth consent: a person authorizes mailgroup at the provider to read and send an account's mail; the result is a
refresh token.

With the device flow, the person types a code at the provider's page, in any browser. Otherwise a browser brings the
answer to a loopback address; if the browser runs on another machine, the person pastes the address that it shows in the
end. The request is stored in the database (oauth_requests.py): the command and every console process can continue it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import structlog

from services.admin.access import audit
from services.admin.accounts import oauth_requests
from services.admin.accounts.oauth_requests import OAuthRequest, State
from services.admin.context import AdminContext
from shared.errors import Permanent, Temporary
from shared.model import External
from shared.provider import oauth
from shared.provider.credentials import Grant, client_of
from shared.provider.oauth import CodeRequest, DeviceCode, Tokens, Unauthorized
from shared.store import account_changes, accounts, polls, relays

WAIT_SECONDS = 900.0
"""Seconds that an authorization waits for a browser to bring the answer."""
_EXPIRED = "nobody agreed at the provider's page in time; authorize it again"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of an authorization, for people."""

    key: str
    state: State
    flow: Literal["device", "browser"] | None  # None: finished
    url: str  # of the provider's page; '': finished
    user_code: str  # to be typed there; '': none, or finished
    words: str  # why it failed, or the error of the latest try
    begun_by: str
    begun_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class _PendingRequest:
    """The sealed content of a waiting authorization."""

    what: DeviceCode | CodeRequest
    account: Any  # login, servers and client at the start; if they change, the authorization is void

    @classmethod
    def open(cls, system: AdminContext, request: OAuthRequest) -> _PendingRequest:
        """Unseal the request. :raises Permanent: no key opens it."""
        stored = json.loads(system.vault.open(request.request))
        what = stored["what"]
        return cls(DeviceCode(**what) if "device_code" in what else CodeRequest(**what), stored["account"])

    def seal(self, system: AdminContext) -> bytes:
        """Seal the request for the database."""
        return system.vault.seal(json.dumps({"what": asdict(self.what), "account": self.account}))


def _fingerprint(external: External) -> Any:
    oauth = external.oauth
    client = oauth and {"name": oauth.name, "issuer": asdict(oauth.issuer), "client_id": oauth.client_id}
    return [external.login, *sorted(external.hosts), client]


async def start_authorization(system: AdminContext, external: External, who: str, redirect: str) -> Progress:
    """Start an authorization at the provider, or return the one that waits already.

    :param redirect: loopback URL to which a browser brings the answer if the provider has no device flow.
    :raises Permanent, Temporary: the account or the provider does not allow it.
    """
    if external.oauth is not None and not external.oauth.needs_consent:
        raise Permanent(say_no_person_needed(external))
    client = client_of(external, Grant.open(system.vault, external.password))
    async with system.database.transaction() as connection:
        old = await oauth_requests.load_latest(connection, external.id)
    if old is not None and old.state == "waits" and not old.expired:
        with suppress(Permanent):  # sealed under a lost key: start another one
            pending = _PendingRequest.open(system, old)
            elsewhere = isinstance(pending.what, CodeRequest) and pending.what.redirect != redirect
            if pending.account == _fingerprint(external) and not elsewhere:
                return _progress(system, old)
    what: DeviceCode | CodeRequest
    if client.issuer.device_url:
        what = await oauth.begin_device(client, system.settings.allow_private_upstream)
        seconds, first = what.expires, what.interval
    else:
        what, seconds, first = oauth.begin_code(client, external.login, redirect), WAIT_SECONDS, None
    async with system.database.transaction() as connection:
        if await oauth_requests.start_request(
            connection,
            external.id,
            secrets.token_urlsafe(12),
            _PendingRequest(what, _fingerprint(external)).seal(system),
            who,
            seconds=seconds,
            first_try=first,
            instead_of=old.key if old else "",
        ):
            await audit.record_change(connection, who, "began to authorize external account", external.address)
        request = await oauth_requests.load_latest(connection, external.id)
    assert request is not None
    return _progress(system, request)


def say_no_person_needed(external: External) -> str:
    """Return why nobody has to authorize an account whose access tokens come in another way. Pure."""
    oauth = external.oauth
    if oauth is not None and oauth.same_as is not None:
        return f"{external.address}: uses the access tokens of {oauth.same_as}; if need be, authorize that account"
    return f"{external.address}: no person has to authorize it; the application gets its access tokens by itself"


def is_authorized(system: AdminContext, external: External) -> bool:
    """Return whether the account needs no authorization by a person, or has one; the provider may have revoked it."""
    if external.oauth is not None and not external.oauth.needs_consent:
        return True
    with suppress(Permanent):  # sealed under a lost key
        return bool(Grant.open(system.vault, external.password).refresh_token)
    return False


async def load_progress(system: AdminContext, external: External) -> Progress | None:
    """Load the state of the account's latest authorization; None if there is none."""
    async with system.database.transaction() as connection:
        request = await oauth_requests.load_latest(connection, external.id)
    return None if request is None else _progress(system, request)


async def stop_authorization(system: AdminContext, external: External, who: str) -> None:
    """Stop the waiting authorization of an account."""
    async with system.database.transaction() as connection:
        request = await oauth_requests.load_latest(connection, external.id)
        if request is not None and await oauth_requests.finish_request(
            connection, request.key, "failed", f"it was stopped by {who}"
        ):
            await audit.record_change(connection, who, "stopped authorizing external account", external.address)


async def poll_pending(system: AdminContext, external: External | None = None) -> None:
    """Poll the providers of the due authorizations, and finish the expired ones.

    :raises Temporary: the database is unavailable.
    """
    async with system.database.transaction() as connection:
        due = await oauth_requests.claim_due(connection, external.id if external else None)
    await asyncio.gather(*(_poll(system, request) for request in due))


async def complete_redirect(system: AdminContext, external: External, url: str) -> Progress:
    """Complete an account's authorization by the URL to which the provider sent the browser. :return: its state.

    :raises Permanent: the URL answers no waiting authorization.
    """
    async with system.database.transaction() as connection:
        request = await oauth_requests.load_latest(connection, external.id)
    return await _complete([request] if request else [], system, url)


async def complete_any(system: AdminContext, url: str) -> Progress:
    """Complete the authorization that this URL answers, as ``complete_redirect`` but of any account."""
    async with system.database.transaction() as connection:
        waiting = await oauth_requests.list_waiting(connection)
    return await _complete(waiting, system, url)


async def _complete(requests: list[OAuthRequest], system: AdminContext, url: str) -> Progress:
    for request in requests:
        if request.state != "waits" or request.expired:
            continue
        try:
            pending = _PendingRequest.open(system, request)
        except Permanent:  # sealed under a lost key: it cannot be completed
            continue
        if not isinstance(pending.what, CodeRequest) or not is_answer(pending.what, url):
            continue
        async with system.database.transaction() as connection:
            if not await oauth_requests.claim_answer(connection, request.key):
                continue
        await _obtain_tokens(system, request, pending, url)
        async with system.database.transaction() as connection:
            ended = await oauth_requests.load_latest(connection, request.external_id)
        return _progress(system, ended or request)
    raise Permanent("this address is not the answer to any waiting authorization; authorize the account again")


async def _poll(system: AdminContext, request: OAuthRequest) -> None:
    try:
        pending = _PendingRequest.open(system, request)
    except Permanent as error:
        await _finish_request(system, request, "failed", str(error))
        return
    if request.expired:
        await _finish_request(system, request, "failed", f"{_EXPIRED} ({request.words})" if request.words else _EXPIRED)
    elif isinstance(pending.what, CodeRequest):  # a process died while it had the answer, which is valid once
        await _finish_request(
            system, request, "failed", "it was interrupted after the answer came; authorize the account again"
        )
    else:
        await _obtain_tokens(system, request, pending)


async def _obtain_tokens(system: AdminContext, request: OAuthRequest, pending: _PendingRequest, url: str = "") -> None:
    """Get the tokens and store the grant, or record why that failed."""
    allow = system.settings.allow_private_upstream
    try:
        async with system.database.transaction() as connection:
            external = next(iter(await accounts.load_externals(connection, [request.external_id])), None)
        if external is None or _fingerprint(external) != pending.account:
            raise Permanent("the account was changed meanwhile; authorize it again")
        client = client_of(external, Grant.open(system.vault, external.password))
        if isinstance(pending.what, CodeRequest):
            tokens = await oauth.finish_code(client, pending.what, code_of(pending.what, url), allow)
        else:
            try:
                given = await oauth.ask_device(client, pending.what, allow)
            except Unauthorized:
                raise
            except Temporary as error:
                await _poll_later(system, request, replace(pending, what=oauth.slower(pending.what)), str(error))
                return
            if isinstance(given, DeviceCode):
                await _poll_later(system, request, replace(pending, what=given))
                return
            tokens = given
        await _store(system, request, pending, tokens)
    except (Temporary, Permanent) as error:
        await _finish_request(system, request, "failed", str(error))


async def _store(system: AdminContext, request: OAuthRequest, pending: _PendingRequest, tokens: Tokens) -> None:
    """Store the refresh token, and try both directions at once."""
    if not tokens.refresh:
        raise Permanent("the provider gave no refresh token; its application has to be allowed offline access")
    async with system.database.transaction() as connection:
        # the provider may have renewed the previous grant meanwhile
        now = next(iter(await accounts.load_externals(connection, [request.external_id])), None)
        if now is None or _fingerprint(now) != pending.account:
            raise Permanent("the account was changed meanwhile; authorize it again")
        grant = replace(Grant.open(system.vault, now.password), refresh_token=tokens.refresh)
        sealed = replace(grant, authorized=secrets.token_hex(8)).seal(system.vault)
        if not await oauth_requests.finish_request(connection, request.key, "authorized"):
            return  # it was stopped, or another one was started
        if not await account_changes.replace_password(connection, now.id, now.password, sealed):
            raise Permanent("the account was changed meanwhile; authorize it again")
        await polls.poll_now(connection, now.id)
        await relays.unpause(connection, now.id)
        await audit.record_change(connection, request.begun_by, "authorized external account", now.address)


async def _poll_later(system: AdminContext, request: OAuthRequest, pending: _PendingRequest, words: str = "") -> None:
    assert isinstance(pending.what, DeviceCode)
    async with system.database.transaction() as connection:
        await oauth_requests.postpone(connection, request.key, pending.seal(system), pending.what.interval, words)


async def _finish_request(system: AdminContext, request: OAuthRequest, state: State, words: str) -> None:
    log.info("authorization finished", external_id=request.external_id, state=state, error=words)
    async with system.database.transaction() as connection:
        await oauth_requests.finish_request(connection, request.key, state, words)


def _progress(system: AdminContext, request: OAuthRequest) -> Progress:
    state, words, what = request.state, request.words, None
    if state == "waits" and request.expired:
        state, words = "failed", _EXPIRED
    elif state == "waits":
        try:
            what = _PendingRequest.open(system, request).what
        except Permanent as error:
            state, words = "failed", str(error)
    flow: Literal["device", "browser"] | None = None
    if what is not None:
        flow = "device" if isinstance(what, DeviceCode) else "browser"
    return Progress(
        request.key,
        state,
        flow,
        what.url if what else "",
        what.user_code if isinstance(what, DeviceCode) else "",
        words,
        request.begun_by,
        request.begun_at,
        request.ends_at,
    )


def is_answer(request: CodeRequest, url: str) -> bool:
    """Return whether this URL carries the provider's answer to this request. Pure."""
    return secrets.compare_digest(_query(url).get("state", "").encode(), request.state.encode())


def code_of(request: CodeRequest, url: str) -> str:
    """Return the authorization code in the redirect URL (RFC 6749 section 4.1.2).

    :raises Unauthorized: the person or the provider refused. :raises Permanent: the URL answers another request.
    """
    query = _query(url)
    if not is_answer(request, url):
        raise Permanent("this is not the answer to this request; authorize the account again")
    if "code" not in query:
        raise Unauthorized(
            f"the provider did not agree ({oauth.meaning(query.get('error', '')) or 'no reason is given'})"
        )
    return query["code"]


def _query(url: str) -> dict[str, str]:
    try:
        return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    except ValueError:  # not a URL
        return {}
