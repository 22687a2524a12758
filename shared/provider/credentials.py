"""Provides the credential of an external account: its password, or an access token fetched on demand.

An access token stays in the memory of its process; the refresh token is stored encrypted, like a password. Some
providers also replace the refresh token at each use and treat a second use of the old one as theft. All processes
therefore refresh one after the other (advisory lock), and each reads the stored token first. The row is locked before
the old token is used, so a database that stores nothing now is found first. A renewed token that cannot be stored
nevertheless stays in memory, is used, and is stored again until it is; a person's new authorization replaces it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace

import structlog
from prometheus_client import Gauge

from shared.db.database import Connection, Database
from shared.errors import Permanent, Temporary
from shared.model import External
from shared.provider import oauth
from shared.provider.oauth import Client, Unauthorized
from shared.provider.vault import Vault
from shared.settings import PrivateHosts
from shared.store import account_changes, accounts

EXPIRY = Gauge(
    "mailgroup_oauth_token_expiry_timestamp_seconds", "When an account's access token expires.", ["external"]
)

MARGIN_SECONDS = 120.0
"""A token that expires sooner is renewed, and used only if the renewal fails now: seconds."""
MIN_SECONDS = 5.0
"""A token that expires sooner is not used, because it could expire during the login: seconds."""
LOCK_NAMESPACE = 0x6F617574
"""First key of the advisory locks; the second is the account's id."""
SAVE_SECONDS = 1.0
"""Pause between two attempts to store a renewed refresh token: seconds."""
REQUESTS_PER_ENDPOINT = 2
"""Requests to one token endpoint at the same time; an endpoint that does not answer thus delays no other."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Credential:
    """A login name and its secret: a password (USER/PASS, AUTH PLAIN) or, if ``token``, an access token (XOAUTH2)."""

    login: str
    secret: str = field(repr=False)
    token: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """The encrypted secrets of an account with ``oauth``. refresh_token: '' until a person has authorized the account.

    authorized: a different value for each authorization; a renewed refresh token does not change it.
    """

    refresh_token: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)
    authorized: str = ""

    @classmethod
    def open(cls, vault: Vault, sealed: bytes) -> Grant:
        """Decrypt. :raises Permanent: encrypted with another key."""
        try:
            fields = json.loads(vault.open(sealed))
            return cls(str(fields["refresh_token"]), str(fields["client_secret"]), str(fields.get("authorized", "")))
        except (ValueError, TypeError, KeyError):
            return cls()  # a password from before the account had ``oauth``

    def seal(self, vault: Vault) -> bytes:
        """Encrypt for storage."""
        return vault.seal(json.dumps(asdict(self)))


def client_of(external: External, grant: Grant) -> Client:
    """Return the OAuth client of an account. :raises Permanent: the account has no OAuth settings."""
    if external.oauth is None:
        raise Permanent(f"{external.address}: the account has no oauth settings; set oauth.issuer and oauth.client_id")
    return Client(external.oauth.issuer, external.oauth.client_id, grant.client_secret)


@dataclass(frozen=True, slots=True)
class _Token:
    """An access token. origin: the settings of the request. expires: monotonic seconds: no wrong clock matters."""

    access: str = field(repr=False)
    origin: tuple[object, ...]
    expires: float


@dataclass(frozen=True, slots=True)
class _Renewed:
    """A renewed refresh token that is not stored yet. authorized: as in the Grant that it belongs to."""

    old: str = field(repr=False)  # the stored token, which the provider accepts no longer
    new: str = field(repr=False)
    authorized: str

    def replaces(self, grant: Grant) -> bool:
        """Whether a stored grant still has the old token. Otherwise a person has authorized the account again."""
        return (grant.refresh_token, grant.authorized) == (self.old, self.authorized)


class Credentials:
    """Gets credentials, and caches access tokens until they expire."""

    def __init__(self, database: Database, vault: Vault, allow_private: PrivateHosts) -> None:
        self._database = database
        self._vault = vault
        self._allow_private = allow_private
        self._tokens: dict[int, _Token] = {}
        self._unsaved: dict[int, _Renewed] = {}  # by id of the account
        self._saving: set[asyncio.Task[None]] = set()
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._gates: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(REQUESTS_PER_ENDPOINT))

    async def credential_for(self, external: External) -> Credential:
        """Return the credential for a login now.

        :raises Permanent: the secret cannot be decrypted. :raises Unauthorized: (Temporary) a person has to authorize
            the account. :raises Temporary: the issuer or the database does not answer.
        """
        if external.oauth is None:
            return Credential(external.login, self._vault.open(external.password))
        async with self._locks[external.id]:
            token = self._tokens.get(external.id)
            if token is not None and token.origin != _origin(external, Grant.open(self._vault, external.password)):
                token = None
            if token is None or token.expires < time.monotonic() + MARGIN_SECONDS:
                token = await self._renew(external, token)
        return Credential(external.login, token.access, token=True)

    def discard_token(self, external: External) -> None:
        """Discard the cached token of an account, because the provider refused it."""
        self._tokens.pop(external.id, None)

    async def _renew(self, external: External, old: _Token | None) -> _Token:
        try:
            return await self._refresh(external)
        except Unauthorized as error:
            raise Unauthorized(f"{error}; run: mailgroup external authorize {external.address}") from error
        except Temporary:
            if old is None or old.expires < time.monotonic() + MIN_SECONDS:
                raise
            return old

    async def _refresh(self, external: External) -> _Token:
        """Refresh the token under the lock of all processes, from the grant that is stored then."""
        gate = self._gates[external.oauth.issuer.token_url if external.oauth is not None else ""]
        token: _Token | None = None
        try:
            async with gate, self._database.session() as connection:
                await connection.execute("select pg_advisory_lock(%s, %s)", (LOCK_NAMESPACE, external.id % 2**31))
                token = await self._exchange(connection, external)
                await self._save(connection, external.id)
        except Temporary as error:
            if token is None:
                raise
            log.warning("renewed refresh token not stored, retrying", external=external.address, error=str(error))
            task = asyncio.create_task(self._save_until_stored(external), name=f"refresh token {external.address}")
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)
        return token

    async def _exchange(self, connection: Connection, external: External) -> _Token:
        """Get an access token, and keep a renewed refresh token in memory until ``_save``."""
        await account_changes.lock_external(connection, external.id)
        stored = next(iter(await accounts.load_externals(connection, [external.id])), external)
        grant = Grant.open(self._vault, stored.password)
        unsaved = self._unsaved.get(external.id)
        used = unsaved.new if unsaved is not None and unsaved.replaces(grant) else grant.refresh_token
        if not used:
            raise Unauthorized("nobody has authorized it")
        tokens = await oauth.refresh(client_of(stored, grant), used, self._allow_private)
        if tokens.refresh not in (None, used):
            self._unsaved[external.id] = _Renewed(grant.refresh_token, tokens.refresh, grant.authorized)
        token = _Token(tokens.access, _origin(stored, grant), time.monotonic() + tokens.seconds)
        self._tokens[external.id] = token
        EXPIRY.labels(external.address).set(time.time() + tokens.seconds)
        return token

    async def _save(self, connection: Connection, external_id: int) -> None:
        """Store a renewed refresh token, unless a person has authorized the account again."""
        while (renewed := self._unsaved.get(external_id)) is not None:
            stored = next(iter(await accounts.load_externals(connection, [external_id])), None)
            grant = Grant.open(self._vault, stored.password) if stored is not None else None
            if stored is not None and grant is not None and renewed.replaces(grant):
                sealed = replace(grant, refresh_token=renewed.new).seal(self._vault)
                if not await account_changes.replace_password(connection, external_id, stored.password, sealed):
                    continue  # changed meanwhile: compare again
            if self._unsaved.get(external_id) is renewed:
                del self._unsaved[external_id]

    async def _save_until_stored(self, external: External) -> None:
        while external.id in self._unsaved:  # until it is stored, or a person has authorized the account again
            await asyncio.sleep(SAVE_SECONDS)
            try:
                # Between a renewal and its storing nothing else is stored: the newest token would not fit to that.
                async with self._locks[external.id], self._database.statement() as connection:
                    await self._save(connection, external.id)
            except Temporary as error:
                log.warning("renewed refresh token not stored, retrying", external=external.address, error=str(error))


def _origin(external: External, grant: Grant) -> tuple[object, ...]:
    return external.oauth, external.login, grant.client_secret, grant.authorized
