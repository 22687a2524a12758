"""What an external account logs in with: its password, or an access token that is got for it when one is needed.

An access token lives in the memory of the process that needs it; the refresh token is sealed where a password would be.
Some providers renew that one too, each time, and take a second use of the old one for theft: so all processes take
turns, and each begins with what is stored by then.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace

from prometheus_client import Gauge

from shared.db.database import Database
from shared.errors import Permanent, Temporary
from shared.model import External
from shared.provider import oauth
from shared.provider.oauth import Client, Unauthorized
from shared.provider.vault import Vault
from shared.settings import PrivateHosts
from shared.store import account_changes, accounts

EXPIRY = Gauge(
    "mailgroup_oauth_token_expiry_timestamp_seconds", "Until when an account's access token is good.", ["external"]
)

MARGIN_SECONDS = 120.0
"""A token that is good for less is renewed, and used only if that does not work now."""
LEAST_SECONDS = 5.0
"""… or it would end during the login."""
LOCK_NAMESPACE = 0x6F617574
"""Names the advisory locks by which processes take turns."""
AT_ONCE = 2
"""Accounts of one token endpoint that are asked for at the same time: one that hangs holds up no other."""


@dataclass(frozen=True, slots=True)
class Credential:
    """login with a secret: a password (USER/PASS, AUTH PLAIN …) or, if ``token``, an access token (AUTH XOAUTH2)."""

    login: str
    secret: str = field(repr=False)
    token: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What is sealed for an account with ``oauth``. refresh_token: '' until somebody has authorized it.

    authorized: another one for each authorization; it stays when the provider renews the refresh token.
    """

    refresh_token: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)
    authorized: str = ""

    @classmethod
    def open(cls, vault: Vault, sealed: bytes) -> Grant:
        """:raises Permanent: sealed under a key that is not here."""
        try:
            found = json.loads(vault.open(sealed))
            return cls(str(found["refresh_token"]), str(found["client_secret"]), str(found.get("authorized", "")))
        except (ValueError, TypeError, KeyError):
            return cls()  # a password of the time before the account had ``oauth``

    def seal(self, vault: Vault) -> bytes:
        """As it is stored."""
        return vault.seal(json.dumps(asdict(self)))


def client_of(external: External, grant: Grant) -> Client:
    """Who we are to the account's issuer. :raises Permanent: it logs in with a password."""
    if external.oauth is None:
        raise Permanent(f"{external.address}: it has no oauth settings; set oauth.issuer and oauth.client_id")
    return Client(external.oauth.issuer, external.oauth.client_id, grant.client_secret)


@dataclass(frozen=True, slots=True)
class _Token:
    """An access token. origin: what it was got with. ends: by the monotonic clock: no clock set wrong matters."""

    access: str = field(repr=False)
    origin: tuple[object, ...]
    ends: float


class Credentials:
    """Gets credentials, and keeps access tokens as long as they are good."""

    def __init__(self, database: Database, vault: Vault, allow_private: PrivateHosts) -> None:
        self._database = database
        self._vault = vault
        self._allow_private = allow_private
        self._tokens: dict[int, _Token] = {}
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._gates: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))

    async def credential_for(self, external: External) -> Credential:
        """What to log in with now.

        :raises Permanent: it cannot be unsealed. :raises Unauthorized: (Temporary) somebody has to authorize it.
        :raises Temporary: the issuer or the database does not answer.
        """
        if external.oauth is None:
            return Credential(external.login, self._vault.open(external.password))
        async with self._locks[external.id]:
            token = self._tokens.get(external.id)
            if token is not None and token.origin != _origin(external, Grant.open(self._vault, external.password)):
                token = None
            if token is None or token.ends < time.monotonic() + MARGIN_SECONDS:
                token = await self._renew(external, token)
        return Credential(external.login, token.access, token=True)

    def discard_token(self, external: External) -> None:
        """The provider did not take what ``of`` gave: a token is not used again."""
        self._tokens.pop(external.id, None)

    async def _renew(self, external: External, old: _Token | None) -> _Token:
        try:
            return await self._refresh(external)
        except Unauthorized as error:
            raise Unauthorized(f"{error}; run: mailgroup external authorize {external.address}") from error
        except Temporary:
            if old is None or old.ends < time.monotonic() + LEAST_SECONDS:
                raise
            return old

    async def _refresh(self, external: External) -> _Token:
        """In turn with every other process, from the grant as it is stored then."""
        gate = self._gates[external.oauth.issuer.token_url if external.oauth is not None else ""]
        async with gate, self._database.session() as connection:
            await connection.execute("select pg_advisory_lock(%s, %s)", (LOCK_NAMESPACE, external.id % 2**31))
            stored = next(iter(await accounts.load_externals(connection, [external.id])), external)
            grant = Grant.open(self._vault, stored.password)
            if not grant.refresh_token:
                raise Unauthorized("nobody has authorized it")
            tokens = await oauth.refresh(client_of(stored, grant), grant.refresh_token, self._allow_private)
            if tokens.refresh not in (None, grant.refresh_token):
                sealed = replace(grant, refresh_token=tokens.refresh).seal(self._vault)
                # Somebody may have authorized it anew meanwhile: that stays.
                await account_changes.replace_password(connection, external.id, stored.password, sealed)
        token = _Token(tokens.access, _origin(stored, grant), time.monotonic() + tokens.seconds)
        self._tokens[external.id] = token
        EXPIRY.labels(external.address).set(time.time() + tokens.seconds)
        return token


def _origin(external: External, grant: Grant) -> tuple[object, ...]:
    return external.oauth, external.login, grant.client_secret, grant.authorized
