"""What an external account logs in with: its password, or an access token that is got for it when one is needed.

An access token lives in the memory of the process that needs it; the refresh token is sealed where a password would be.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field

from shared import accounts, oauth
from shared.accounts import External
from shared.database import Database
from shared.failures import Permanent
from shared.oauth import Client, Tokens, Unauthorized
from shared.settings import PrivateHosts
from shared.vault import Vault

MARGIN_SECONDS = 120.0
"""A token that is good for less is not used any more."""


@dataclass(frozen=True, slots=True)
class Credential:
    """login with a secret: a password (USER/PASS, AUTH PLAIN …) or, if ``token``, an access token (AUTH XOAUTH2)."""

    login: str
    secret: str = field(repr=False)
    token: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What is sealed for an account with ``oauth``. refresh_token: '' until somebody has authorized it."""

    refresh_token: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)

    @classmethod
    def open(cls, vault: Vault, sealed: bytes) -> Grant:
        """:raises Permanent: sealed under a key that is not here."""
        try:
            found = json.loads(vault.open(sealed))
            return cls(str(found["refresh_token"]), str(found["client_secret"]))
        except (ValueError, TypeError, KeyError):
            return cls()  # a password of the time before the account had ``oauth``

    def seal(self, vault: Vault) -> bytes:
        """As it is stored."""
        return vault.seal(json.dumps({"refresh_token": self.refresh_token, "client_secret": self.client_secret}))


def client_of(external: External, grant: Grant) -> Client:
    """Who we are to the account's issuer. :raises Permanent: it logs in with a password."""
    if external.oauth is None:
        raise Permanent(f"{external.address}: it has no oauth settings; set oauth.issuer and oauth.client_id")
    return Client(external.oauth.issuer, external.oauth.client_id, grant.client_secret)


class Credentials:
    """Gets credentials, and keeps access tokens as long as they are good."""

    def __init__(self, database: Database, vault: Vault, allow_private: PrivateHosts) -> None:
        self._database = database
        self._vault = vault
        self._allow_private = allow_private
        self._tokens: dict[int, tuple[bytes, str, float]] = {}  # what was sealed then, token, until when
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, external: External) -> Credential:
        """What to log in with now.

        :raises Permanent: it cannot be unsealed. :raises Unauthorized: (Temporary) somebody has to authorize it.
        :raises Temporary: the issuer or the database does not answer.
        """
        if external.oauth is None:
            return Credential(external.login, self._vault.open(external.password))
        async with self._locks[external.id]:
            sealed, token, until = self._tokens.get(external.id, (b"", "", 0.0))
            if sealed != external.password or until < time.monotonic():
                token = await self._refresh(external)
        return Credential(external.login, token, token=True)

    def refused(self, external: External) -> None:
        """The provider did not take what ``of`` gave: a token is not used again."""
        self._tokens.pop(external.id, None)

    async def _refresh(self, external: External) -> str:
        grant = Grant.open(self._vault, external.password)
        if not grant.refresh_token:
            raise Unauthorized(f"nobody has authorized it; run: mailgroup external authorize {external.address}")
        tokens = await oauth.refresh(client_of(external, grant), grant.refresh_token, self._allow_private)
        sealed = await self._keep(external, grant, tokens)
        until = time.monotonic() + max(0.0, tokens.seconds - MARGIN_SECONDS)
        self._tokens[external.id] = (sealed, tokens.access, until)
        return tokens.access

    async def _keep(self, external: External, grant: Grant, tokens: Tokens) -> bytes:
        """Store another refresh token, if one came with the access token; what is stored afterwards."""
        if tokens.refresh in (None, grant.refresh_token):
            return external.password
        sealed = Grant(tokens.refresh or "", grant.client_secret).seal(self._vault)
        async with self._database.transaction() as connection:
            # Somebody may have authorized it anew meanwhile: that stays.
            replaced = await accounts.replace_password(connection, external.id, external.password, sealed)
        return sealed if replaced else external.password
