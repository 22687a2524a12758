"""Checks the logins of mail clients (POP3 and SMTP): password check, cache of verified passwords, throttling.

Every login asks the database whether accounts have changed since the account was read, so a disabled account or a
changed password is refused at once. A verified password is cached for minutes, as a keyed hash over the password and
the stored hash; the key is random for each process. Mail clients log in every few minutes, and each check would cost
30 ms of a core.

While an attacker guesses, a login takes less than a second wherever it can be distinguished from a guess:

- A cached login does not wait.
- A login from an address of the account's last logins (a table that all processes share) precedes all others.
- A login from another address precedes clients that failed, and of the others those that came earlier. At an account
  that is being guessed, the login needs the next token, which takes about a second.
- Only a login from another address that arrives together with guesses from many addresses, none of which has failed
  yet, waits among them: with 150 guesses up to three seconds (docs/standards.md).

The response time shows whether an account exists only to clients that share the address of its last login.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache

import structlog
from prometheus_client import Counter

from shared.auth.passwords import HashingPool
from shared.auth.throttle import Throttle, network_of
from shared.db.batch_loader import QUICK_SECONDS, BatchLoader
from shared.db.database import Database
from shared.metrics import STAGE_SECONDS
from shared.model import Local
from shared.settings import Settings
from shared.store import accounts, last_logins
from shared.store.last_logins import LastLogins

LOGINS = Counter(
    "mailgroup_logins_total", "Logins of mail clients.", ["service", "result"]
)  # ok, refused (wrong, unknown or disabled), throttled

CACHE_SECONDS = 600.0
"""Lifetime of a verified password in the cache: seconds after its last use."""
CACHE_SIZE = 10_000
"""Verified passwords in the cache, and accounts; the least recently used ones leave it first."""
WAIT_SECONDS = 30.0
"""Time limit for a login's turn while guesses are throttled: seconds."""
READ_SECONDS = 20.0
"""Time limit for reading accounts: seconds; many logins may wait for one statement."""
ADDRESS_OCTETS = 320
"""Longest address: octets (RFC 5321 section 4.5.3.1: 64, an @ and 255)."""
PASSWORD_OCTETS = 1024
"""Longest password that is checked: octets."""

_PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "127.0.0.0/8",
            "169.254.0.0/16",  # RFC 1918, RFC 3927
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ),
    )
)  # RFC 4193, RFC 4291

log = structlog.get_logger()


class Throttled(Exception):
    """Too many wrong passwords: reply with a temporary failure and close the connection."""


def plaintext_allowed(settings: Settings, peer_ip: str) -> bool:
    """Whether this client may send a password without TLS (POP3_PORT and SMTP_PORT only)."""
    if settings.allow_plaintext_auth != "auto":
        return settings.allow_plaintext_auth == "yes"
    return _is_private(peer_ip)


@lru_cache(1000)
def _is_private(peer_ip: str) -> bool:
    try:
        address = ipaddress.ip_address(peer_ip.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _PRIVATE)


class Authenticator:
    """Checks logins for one service process."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        service: str,
        clock: Callable[[], float] = time.monotonic,
        last: LastLogins | None = None,
    ) -> None:
        """:param service: label of the metric. :param clock: monotonic seconds. :param last: records each login."""
        self.settings = settings
        for result in ("ok", "refused", "throttled"):
            LOGINS.labels(service, result)
        self._database = database
        self._service = service
        self._clock = clock
        self._last = last
        self._pool = HashingPool()
        self._accounts: BatchLoader[str, tuple[Local, Sequence[str]]] = BatchLoader(
            self._read, readers=2, quick_seconds=QUICK_SECONDS
        )
        self._throttle = Throttle(clock)
        self._key = secrets.token_bytes(32)
        self._cache: OrderedDict[bytes, float] = OrderedDict()  # digest -> expiry
        self._read_accounts: OrderedDict[str, tuple[str, Local]] = OrderedDict()  # with the version of all accounts
        self._versions: BatchLoader[None, str] = BatchLoader(self._read_version, readers=2, quick_seconds=QUICK_SECONDS)

    async def verify(self, address: str, password: str, peer: str) -> Local | None:
        """Return the account; None for a wrong password, an unknown address or a disabled account.

        :param peer: the client's IP address.
        :raises Temporary: the database is unavailable.
        :raises Throttled: the login waited for its turn, and the time limit passed.
        """
        with STAGE_SECONDS.labels(f"{self._service}_login").time():
            local = await self._verify(address, password, peer)
        if local is not None and self._last is not None:
            self._last.remember(local.id, peer)
        return local

    async def _verify(self, address: str, password: str, peer: str) -> Local | None:
        version, known = self._read_accounts.get(address, ("", None))
        if (
            known is not None
            and self._is_cached(known, password)
            and (await self._versions.get([None]))[None] == version
        ):
            self._count("ok", address, peer)
            return known
        local, peers = await self._account(address)
        if local is not None and local.enabled and self._is_cached(local, password):
            self._count("ok", address, peer)
            return local
        account = str(local.id) if local is not None else address.casefold()[:ADDRESS_OCTETS]
        network = network_of(peer)
        if any(network_of(known) == network for known in peers):
            self._throttle.mark_trusted(network, account)
        try:
            await self._throttle.acquire(network, account, WAIT_SECONDS)
        except TimeoutError:
            self._count("throttled", address, peer)
            raise Throttled("too many failed logins, try again later") from None
        # From here on the tokens are spent unless the password is right, even if the client disconnects meanwhile.
        checkable = len(password.encode("utf-8", "surrogatepass")) <= PASSWORD_OCTETS
        matches = await self._pool.matches(
            local.password_hash if local is not None and checkable else None,
            password,
            (self._throttle.penalty(network, account), not _is_private(peer)),
        )
        if local is None or not matches or not local.enabled:
            self._throttle.record_failure(network, account)
            self._count("refused", address, peer)
            return None
        self._throttle.record_success(network, account)
        self._store(self._digest(local, password))
        self._count("ok", address, peer)
        return local

    def close(self) -> None:
        """Release the threads."""
        self._pool.close()

    async def _account(self, address: str) -> tuple[Local | None, Sequence[str]]:
        """Return the account with this address and the client addresses of its last logins."""
        if "\0" in address or len(address.encode("utf-8", "surrogatepass")) > ADDRESS_OCTETS or not _encodable(address):
            return None, ()  # PostgreSQL accepts neither NUL nor lone surrogates
        return (await self._accounts.get([address])).get(address, (None, ()))

    async def _read(self, addresses: Sequence[str]) -> dict[str, tuple[Local, Sequence[str]]]:
        async with self._database.statement(READ_SECONDS) as connection:
            found = await accounts.load_logins(
                connection, addresses, f"array_prepend({accounts.VERSION}, {last_logins.PEERS})"
            )
        for address, (local, (version, *_)) in found.items():
            if local.enabled:
                self._read_accounts[address] = version, local
                self._read_accounts.move_to_end(address)
        while len(self._read_accounts) > CACHE_SIZE:
            self._read_accounts.popitem(last=False)
        return {address: (local, peers) for address, (local, (_, *peers)) in found.items()}

    async def _read_version(self, _: Sequence[None]) -> dict[None, str]:
        async with self._database.statement(READ_SECONDS) as connection:
            return {None: await accounts.load_version(connection)}

    def _digest(self, local: Local, password: str) -> bytes:
        parts = (str(local.id), local.password_hash, password)
        digest = hashlib.blake2b(key=self._key, digest_size=32)
        for part in parts:
            octets = part.encode("utf-8", "surrogatepass")
            digest.update(len(octets).to_bytes(8, "big") + octets)
        return digest.digest()

    def _is_cached(self, local: Local, password: str) -> bool:
        digest = self._digest(local, password)
        if self._cache.get(digest, 0.0) <= self._clock():
            return False
        self._store(digest)
        return True

    def _store(self, digest: bytes) -> None:
        self._cache[digest] = self._clock() + CACHE_SECONDS
        self._cache.move_to_end(digest)
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)

    def _count(self, result: str, address: str, peer: str) -> None:
        LOGINS.labels(self._service, result).inc()
        if result != "ok":  # a name without @ may be a password in the wrong field
            log.warning(
                "login " + result,
                service=self._service,
                peer=peer,
                address=address[:ADDRESS_OCTETS] if "@" in address else "(no address)",
            )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
