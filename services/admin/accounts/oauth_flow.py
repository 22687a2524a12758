"""A person agrees at the provider's page that mailgroup may read and send an account's mail; we get a refresh token.

Where the provider has a device flow, the person types a code at its page, which may be opened anywhere. Otherwise a
browser brings the answer to an address on loopback; if it runs on another machine, the address that it shows in the end
is pasted. What was asked is kept in the database (oauth_requests.py), so whoever asks later, the command or whichever
process of the console is there, goes on with it.
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
from shared.store import account_changes, accounts, polls, relay_status

WAIT_SECONDS = 900.0
"""For a browser to bring the answer."""
_LATE = "nobody agreed at the provider's page in time; authorize it again"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Progress:
    """How an authorization stands, for people. words: why it failed, or what was wrong at the latest try.

    url: of the provider's page. user_code: what is typed there. Both are '' once it has ended.
    """

    key: str
    state: State
    flow: Literal["device", "browser"] | None
    url: str
    user_code: str
    words: str
    begun_by: str
    begun_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class _PendingRequest:
    """What is sealed while it waits. account: as it was then; another client or login is another matter."""

    what: DeviceCode | CodeRequest
    account: Any

    @classmethod
    def open(cls, system: AdminContext, found: OAuthRequest) -> _PendingRequest:
        """:raises Permanent: sealed under a key that is not here."""
        stored = json.loads(system.vault.open(found.request))
        what = stored["what"]
        return cls(DeviceCode(**what) if "device_code" in what else CodeRequest(**what), stored["account"])

    def seal(self, system: AdminContext) -> bytes:
        """As it is stored."""
        return system.vault.seal(json.dumps({"what": asdict(self.what), "account": self.account}))


def _account(external: External) -> Any:
    return [external.login, None if external.oauth is None else asdict(external.oauth)]


async def start_authorization(system: AdminContext, external: External, who: str, redirect: str) -> Progress:
    """Ask the provider; the one that waits for the same already, whoever began it, is joined.

    :param redirect: on loopback, where a browser brings the answer if the provider has no device flow.
    :raises Permanent, Temporary: the account or the provider does not allow it.
    """
    client = client_of(external, Grant.open(system.vault, external.password))
    async with system.database.transaction() as connection:
        old = await oauth_requests.load_latest(connection, external.id)
    if old is not None and old.state == "waits" and not old.expired:
        with suppress(Permanent):  # sealed under a key that is lost: begun anew
            asked = _PendingRequest.open(system, old)
            elsewhere = isinstance(asked.what, CodeRequest) and asked.what.redirect != redirect
            if asked.account == _account(external) and not elsewhere:
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
            _PendingRequest(what, _account(external)).seal(system),
            who,
            seconds=seconds,
            first_try=first,
            instead_of=old.key if old else "",
        ):
            await audit.record_change(connection, who, "began to authorize external account", external.address)
        found = await oauth_requests.load_latest(connection, external.id)
    assert found is not None
    return _progress(system, found)


def is_authorized(system: AdminContext, external: External) -> bool:
    """Whether somebody has; it may have ended at the provider since."""
    with suppress(Permanent):  # sealed under a key that is lost
        return bool(Grant.open(system.vault, external.password).refresh_token)
    return False


async def load_progress(system: AdminContext, external: External) -> Progress | None:
    """How this account's latest authorization stands."""
    async with system.database.transaction() as connection:
        found = await oauth_requests.load_latest(connection, external.id)
    return None if found is None else _progress(system, found)


async def stop_authorization(system: AdminContext, external: External, who: str) -> None:
    """Wait for nobody any more."""
    async with system.database.transaction() as connection:
        found = await oauth_requests.load_latest(connection, external.id)
        if found is not None and await oauth_requests.finish_request(
            connection, found.key, "failed", f"it was stopped by {who}"
        ):
            await audit.record_change(connection, who, "stopped authorizing external account", external.address)


async def poll_pending(system: AdminContext, external: External | None = None) -> None:
    """Ask the providers whether somebody has agreed, where it is time to; end what is too late.

    :raises Temporary: the database is away.
    """
    async with system.database.transaction() as connection:
        due = await oauth_requests.claim_due(connection, external.id if external else None)
    await asyncio.gather(*(_ask(system, found) for found in due))


async def complete_redirect(system: AdminContext, external: External, url: str) -> Progress:
    """The address to which the provider sent the browser of whoever agreed. :return: what became of it.

    :raises Permanent: it answers nothing that waits.
    """
    async with system.database.transaction() as connection:
        found = await oauth_requests.load_latest(connection, external.id)
    return await _bring([found] if found else [], system, url)


async def complete_any(system: AdminContext, url: str) -> Progress:
    """As ``bring``, by whoever was sent to us with it. :raises Permanent: it answers nothing that waits."""
    async with system.database.transaction() as connection:
        found = await oauth_requests.list_waiting(connection)
    return await _bring(found, system, url)


async def _bring(among: list[OAuthRequest], system: AdminContext, url: str) -> Progress:
    for found in among:
        if found.state != "waits" or found.expired:
            continue
        try:
            asked = _PendingRequest.open(system, found)
        except Permanent:  # sealed under a key that is lost: nobody can answer it
            continue
        if not isinstance(asked.what, CodeRequest) or not is_answer(asked.what, url):
            continue
        async with system.database.transaction() as connection:
            if not await oauth_requests.claim_answer(connection, found.key):
                continue
        await _finish(system, found, asked, url)
        async with system.database.transaction() as connection:
            ended = await oauth_requests.load_latest(connection, found.external_id)
        return _progress(system, ended or found)
    raise Permanent("this address is not the answer to anything that waits here; authorize the account again")


async def _ask(system: AdminContext, found: OAuthRequest) -> None:
    try:
        asked = _PendingRequest.open(system, found)
    except Permanent as error:
        await _end(system, found, "failed", str(error))
        return
    if found.expired:
        await _end(system, found, "failed", f"{_LATE} ({found.words})" if found.words else _LATE)
    elif isinstance(asked.what, CodeRequest):  # whoever had the answer in hand ended with it; it is good only once
        await _end(system, found, "failed", "it was broken off when the answer had come; authorize it again")
    else:
        await _finish(system, found, asked)


async def _finish(system: AdminContext, found: OAuthRequest, asked: _PendingRequest, url: str = "") -> None:
    """Get the tokens and store what lasts, or write down why not."""
    allow = system.settings.allow_private_upstream
    try:
        async with system.database.transaction() as connection:
            external = next(iter(await accounts.load_externals(connection, [found.external_id])), None)
        if external is None or _account(external) != asked.account:
            raise Permanent("the account was changed meanwhile; authorize it again")
        client = client_of(external, Grant.open(system.vault, external.password))
        if isinstance(asked.what, CodeRequest):
            tokens = await oauth.finish_code(client, asked.what, code_of(asked.what, url), allow)
        else:
            try:
                given = await oauth.ask_device(client, asked.what, allow)
            except Unauthorized:
                raise
            except Temporary as error:
                await _wait(system, found, replace(asked, what=oauth.slower(asked.what)), str(error))
                return
            if isinstance(given, DeviceCode):
                await _wait(system, found, replace(asked, what=given))
                return
            tokens = given
        await _store(system, found, asked, tokens)
    except (Temporary, Permanent) as error:
        await _end(system, found, "failed", str(error))


async def _store(system: AdminContext, found: OAuthRequest, asked: _PendingRequest, tokens: Tokens) -> None:
    """The refresh token; both directions are tried at once then."""
    if not tokens.refresh:
        raise Permanent("the provider gave no refresh token; its application has to be allowed offline access")
    async with system.database.transaction() as connection:
        # the grant of before may have been renewed meanwhile
        now = next(iter(await accounts.load_externals(connection, [found.external_id])), None)
        if now is None or _account(now) != asked.account:
            raise Permanent("the account was changed meanwhile; authorize it again")
        grant = replace(Grant.open(system.vault, now.password), refresh_token=tokens.refresh)
        sealed = replace(grant, authorized=secrets.token_hex(8)).seal(system.vault)
        if not await oauth_requests.finish_request(connection, found.key, "authorized"):
            return  # it was stopped, or begun anew
        if not await account_changes.replace_password(connection, now.id, now.password, sealed):
            raise Permanent("the account was changed meanwhile; authorize it again")
        await polls.poll_now(connection, now.id)
        await relay_status.unpause(connection, now.id)
        await audit.record_change(connection, found.begun_by, "authorized external account", now.address)


async def _wait(system: AdminContext, found: OAuthRequest, asked: _PendingRequest, words: str = "") -> None:
    assert isinstance(asked.what, DeviceCode)
    async with system.database.transaction() as connection:
        await oauth_requests.postpone(connection, found.key, asked.seal(system), asked.what.interval, words)


async def _end(system: AdminContext, found: OAuthRequest, state: State, words: str) -> None:
    log.info("authorization ended", external_id=found.external_id, state=state, why=words)
    async with system.database.transaction() as connection:
        await oauth_requests.finish_request(connection, found.key, state, words)


def _progress(system: AdminContext, found: OAuthRequest) -> Progress:
    state, words, what = found.state, found.words, None
    if state == "waits" and found.expired:
        state, words = "failed", _LATE
    elif state == "waits":
        try:
            what = _PendingRequest.open(system, found).what
        except Permanent as error:
            state, words = "failed", str(error)
    flow: Literal["device", "browser"] | None = None
    if what is not None:
        flow = "device" if isinstance(what, DeviceCode) else "browser"
    return Progress(
        found.key,
        state,
        flow,
        what.url if what else "",
        what.user_code if isinstance(what, DeviceCode) else "",
        words,
        found.begun_by,
        found.begun_at,
        found.ends_at,
    )


def is_answer(request: CodeRequest, url: str) -> bool:
    """Whether this is the address to which the provider sent the browser with the answer to this request. Pure."""
    return secrets.compare_digest(_query(url).get("state", "").encode(), request.state.encode())


def code_of(request: CodeRequest, url: str) -> str:
    """The code in the address to which the browser was sent (RFC 6749 section 4.1.2).

    :raises Unauthorized: the person, or the provider, said no. :raises Permanent: it answers another request.
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
    except ValueError:  # it is no address
        return {}
