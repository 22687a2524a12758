"""Provides the credential of an external account: its password, or an access token fetched on demand.

An access token stays in the memory of its process; the refresh token is stored encrypted, like a password. Some
providers also replace the refresh token at each use and treat a second use of the old one as theft. All processes
therefore refresh one after the other (advisory lock), and each reads the stored token first. The row is locked before
the old token is used, so a database that stores nothing now is found first. A renewed token that cannot be stored
nevertheless stays in memory, is used, and is stored again until it is; a person's new authorization replaces it.

An account, or one of its relays, may use the tokens of another account (``oauth.same_as``). All that is cached and
locked is by the id of the account that has the tokens, so that one request is for all of them.

Fetcher and sender call ``renew_ahead`` every few seconds: it renews the tokens that end soon, so that no login waits
for it. Only the first token of a process is fetched when a login needs it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import structlog
from prometheus_client import Gauge

from shared.db.database import Connection, Database
from shared.errors import Permanent, Temporary
from shared.model import External, compared_host
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
AHEAD_SECONDS = 300.0
"""A token is renewed in the background so long before it expires, or up to twice as long, by chance: seconds. That is
well before ``MARGIN_SECONDS``, and at most half of the token's lifetime."""
RENEWAL_SECONDS = 15.0
"""Interval of the search for tokens that end soon: seconds; short beside ``AHEAD_SECONDS``."""
RETRY_SECONDS = 60.0
"""Pause after a renewal that failed, while the old token is good: seconds. A dead issuer delays one login a minute."""
MIN_SECONDS = 5.0
"""A token that expires sooner is not used, because it could expire during the login: seconds."""
LOCK_NAMESPACE = 0x6F617574
"""First key of the advisory locks; the second is the account's id."""
SAVE_SECONDS = 1.0
"""Pause between two attempts to store a renewed refresh token: seconds."""
RECENT = "recent:"
"""Prefix of the login name by which Gmail's POP3 server lists the mail of the last 30 days; no part of the mailbox."""
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

    authorized: a different value for each authorization; a renewed refresh token does not change it. client_key: the
    private key, in PEM form, of a client that has no secret.
    """

    refresh_token: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)
    authorized: str = ""
    client_key: str = field(default="", repr=False)

    @classmethod
    def open(cls, vault: Vault, sealed: bytes) -> Grant:
        """Decrypt. :raises Permanent: encrypted with another key."""
        try:
            fields = json.loads(vault.open(sealed))
            return cls(
                str(fields["refresh_token"]),
                str(fields["client_secret"]),
                str(fields.get("authorized", "")),
                str(fields.get("client_key", "")),
            )
        except (ValueError, TypeError, KeyError):
            return cls()  # a password from before the account had ``oauth``

    def seal(self, vault: Vault) -> bytes:
        """Encrypt for storage."""
        return vault.seal(json.dumps(asdict(self)))


def client_of(external: External, grant: Grant) -> Client:
    """Return the OAuth client of an account. :raises Permanent: the account has no OAuth settings."""
    if external.oauth is None:
        raise Permanent(f"{external.address}: the account has no oauth settings; set oauth.issuer and oauth.client_id")
    given = external.oauth
    return Client(given.issuer, given.client_id, grant.client_secret, grant.client_key, given.grant)


@dataclass(frozen=True, slots=True)
class _Token:
    """An access token. Times in monotonic seconds: no wrong clock matters."""

    access: str = field(repr=False)
    origin: tuple[object, ...]  # the settings of the request
    expires: float
    renew_at: float  # in the background
    failed_until: float = 0.0  # a renewal has failed, and no login tries another one before

    def must_be_renewed(self, now: float) -> bool:
        """Whether a login needs another token, or has to try to get one."""
        return self.expires < now + MIN_SECONDS or (self.expires < now + MARGIN_SECONDS and self.failed_until <= now)


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
        self._owners: dict[int, int] = {}  # of the tokens that another account uses: their account, by the id of that
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
        owner = await self._owner_of_tokens(external)
        return Credential(external.login, await self._access_token(owner), token=True)

    async def credential_for_relay(self, external: External) -> Credential:
        """Return the credential for a login at the first relay of the account: its own, if it has one.

        Errors as ``credential_for``.
        """
        relay = external.relay
        if relay.login is not None and relay.tokens_of is not None:
            hosts = frozenset((compared_host(relay.server.host),))
            owner = await self._account_with_tokens(external, relay.tokens_of, hosts, "smtp.oauth.same_as")
            return Credential(relay.login, await self._access_token(owner), token=True)
        if relay.login is None or relay.password is None:
            return await self.credential_for(external)
        return Credential(relay.login, self._vault.open(relay.password))

    async def _access_token(self, owner: External) -> str:
        """Return an access token of this account, from the cache if it is good. Errors as ``credential_for``."""
        origin = _origin(owner, Grant.open(self._vault, owner.password))
        token = self._cached(owner.id, origin)
        if token is None or token.must_be_renewed(time.monotonic()):  # otherwise no renewal is waited for
            async with self._locks[owner.id]:
                token = self._cached(owner.id, origin)
                if token is None or token.must_be_renewed(time.monotonic()):
                    token = await self._renew(owner, token)
        return token.access

    def _cached(self, external_id: int, origin: tuple[object, ...]) -> _Token | None:
        """Return the cached token of an account, if it was requested with these settings."""
        token = self._tokens.get(external_id)
        return token if token is not None and token.origin == origin else None

    def discard_token(self, external: External, refused: Credential | None = None) -> None:
        """Discard the cached token of an account, because the provider refused it.

        :param refused: the credential with the token, also of a relay. If another one has replaced it meanwhile, that
            one stays: of many accounts with one token, the first one renews it. None: any token of the account.
        """
        if refused is None:
            self._tokens.pop(self._owners.get(external.id, external.id), None)
            return
        for owner_id in [each for each, token in self._tokens.items() if token.access == refused.secret]:
            del self._tokens[owner_id]

    async def renew_ahead(self) -> None:
        """Renew the tokens that end soon, one after the other at each issuer; call it every ``RENEWAL_SECONDS``.

        Tokens of accounts that are disabled or removed are dropped. A renewal that fails is tried again after
        ``RETRY_SECONDS``; if the issuer refuses it, the next login that needs it shows the refusal.

        :raises Temporary: the database is unavailable.
        """
        now = time.monotonic()
        due = [external_id for external_id, token in self._tokens.items() if token.renew_at <= now]
        if not due:
            return
        async with self._database.statement() as connection:
            found = [each for each in await accounts.load_externals(connection, due) if each.enabled]
        for external_id in set(due) - {each.id for each in found}:
            self._tokens.pop(external_id, None)
        by_endpoint: defaultdict[str, list[External]] = defaultdict(list)
        for each in found:
            by_endpoint[each.oauth.issuer.token_url if each.oauth is not None else ""].append(each)
        await asyncio.gather(*(self._renew_in_turn(group) for group in by_endpoint.values()))

    async def _renew_in_turn(self, externals: Sequence[External]) -> None:
        """Renew the tokens from one issuer; the first failure that is not a refusal ends that for now."""
        for external in externals:
            async with self._locks[external.id]:
                token = self._tokens.get(external.id)
                if token is None or token.renew_at > time.monotonic():
                    continue  # a login has renewed it, or its token was discarded
                try:
                    await self._refresh(external)
                except Unauthorized as error:
                    self._tokens[external.id] = replace(token, renew_at=math.inf)
                    log.warning("access token not renewed", external=external.address, error=str(error))
                except (Temporary, Permanent) as error:
                    self._note_failure(external, token)
                    log.warning("access token not renewed, retrying", external=external.address, error=str(error))
                    return

    async def _owner_of_tokens(self, external: External) -> External:
        """Return the account whose tokens this one uses. Errors as ``_account_with_tokens``."""
        assert external.oauth is not None, "its caller has checked that"
        if (address := external.oauth.same_as) is None:
            return external
        owner = await self._account_with_tokens(external, address, external.hosts, "oauth.same_as")
        self._owners[external.id] = owner.id
        return owner

    async def _account_with_tokens(
        self, external: External, address: str, hosts: frozenset[str], field_name: str
    ) -> External:
        """Return the account with this address, whose tokens are sent to these hosts.

        SECURITY. A token is sent only to the servers of the account that it was given to: else everyone who may add an
        account could send it to a server of their own.

        :param field_name: of ``external``, that names the address. :raises Unauthorized: it is not there, has no
            tokens, or other servers.
        """
        async with self._database.statement() as connection:
            owner = await accounts.external_by_address(connection, address)
        if owner is None or owner.oauth is None or owner.oauth.same_as is not None:
            raise Unauthorized(f"{address}: has no access tokens; set {field_name} of {external.address} again")
        if not hosts <= owner.hosts:
            raise Unauthorized(f"{external.address}: has other servers than {address}, whose access tokens it uses")
        return owner

    async def _renew(self, external: External, old: _Token | None) -> _Token:
        try:
            return await self._refresh(external)
        except Unauthorized as error:
            raise Unauthorized(f"{error}; {_remedy(external)}") from error
        except Temporary:
            if old is None or old.expires < time.monotonic() + MIN_SECONDS:
                raise
            return self._note_failure(external, old)

    def _note_failure(self, external: External, old: _Token) -> _Token:
        """Let the next renewal wait, and return the token that is used until then."""
        later = time.monotonic() + RETRY_SECONDS
        self._tokens[external.id] = kept = replace(old, renew_at=later, failed_until=later)
        return kept

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
        tokens = await self._request(stored, grant, used)
        if stored.oauth is not None and stored.oauth.needs_consent and tokens.refresh not in (None, used):
            self._unsaved[external.id] = _Renewed(grant.refresh_token, tokens.refresh, grant.authorized)
        now = time.monotonic()
        ahead = min(AHEAD_SECONDS * random.uniform(1, 2), tokens.seconds / 2)
        token = _Token(tokens.access, _origin(stored, grant), now + tokens.seconds, now + tokens.seconds - ahead)
        self._tokens[external.id] = token
        EXPIRY.labels(external.address).set(time.time() + tokens.seconds)
        return token

    async def _request(self, external: External, grant: Grant, refresh_token: str) -> oauth.Tokens:
        """Request tokens from the issuer as the account's grant says. :raises: as ``oauth.refresh``."""
        client, allow = client_of(external, grant), self._allow_private
        match client.grant:
            case "client_credentials":
                return await oauth.request_for_application(client, allow)
            case "jwt_bearer":
                return await oauth.request_for_login(client, external.login.removeprefix(RECENT), allow)
            case _:
                if not refresh_token:
                    raise Unauthorized("nobody has authorized it")
                return await oauth.refresh(client, refresh_token, allow)

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
    return external.oauth, external.login, grant.client_secret, grant.client_key, grant.authorized


def _remedy(external: External) -> str:
    """Return what to do if the issuer refuses a token for this account."""
    if external.oauth is not None and not external.oauth.needs_consent:
        return (
            f"correct the application at the provider, or oauth with: mailgroup external set {external.address}; "
            "no person has to authorize it"
        )
    return f"run: mailgroup external authorize {external.address}"
