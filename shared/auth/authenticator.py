"""Logins of mail clients by POP3 and SMTP: the password check, its memory and its brakes.

The account is read afresh at every login, so a disabled account or a changed password is refused at once. A password
that was verified is remembered for minutes, as a hash under a key that this process made up and that covers the stored
hash: mail clients log in every few minutes and would cost 30 ms of a core each time.

While others guess, a login takes under a second wherever it can be told from a guess. One that is remembered does not
wait. One from where the account came in last (the table of last logins tells all processes) goes before all that are
not. One from elsewhere goes before whoever failed, and of the others before all that came earlier; at an account that
is guessed at it needs the next token, which takes about a second. Only one from elsewhere that comes in the same
instant as guesses from many addresses, of which none has failed yet, waits among them: with 150 of them for up to three
seconds (docs/standards.md). How long an answer takes tells whether an account exists to those alone who share the
address of its last login.
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
from shared.db.batch_loader import BatchLoader
from shared.db.database import Database
from shared.metrics import STAGE_SECONDS
from shared.model import Local
from shared.settings import Settings
from shared.store import accounts, last_logins
from shared.store.last_logins import LastLogins

LOGINS = Counter(
    "mailgroup_logins_total", "Logins of mail clients.", ["service", "result"]
)  # ok, refused (wrong, unknown or disabled), throttled

REMEMBERED_SECONDS = 600.0
REMEMBERED = 10_000
WAIT_SECONDS = 30.0
"""How long a login waits for its turn when somebody guesses."""
READ_SECONDS = 20.0
"""For a look at accounts: many logins may wait for one."""
ADDRESS_OCTETS = 320
PASSWORD_OCTETS = 1024

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
    """Too many wrong passwords came from there: answer a temporary failure and end the connection."""


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
        """:param service: label of the metric. :param clock: monotonic seconds. :param last: is told of each login."""
        self.settings = settings
        self._database = database
        self._service = service
        self._clock = clock
        self._last = last
        self._pool = HashingPool()
        self._accounts: BatchLoader[str, tuple[Local, Sequence[str]]] = BatchLoader(self._read, readers=2)
        self._throttle = Throttle(clock)
        self._key = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, float] = OrderedDict()  # digest -> good until

    async def verify(self, address: str, password: str, peer: str) -> Local | None:
        """The account that logs in so, or None: wrong password, unknown address or disabled account.

        :param peer: the client's IP address.
        :raises Temporary: the database is away.
        :raises Throttled: the client has to wait, and did so in vain.
        """
        with STAGE_SECONDS.labels(f"{self._service}_login").time():
            local = await self._verify(address, password, peer)
        if local is not None and self._last is not None:
            self._last.remember(local.id, peer)
        return local

    async def _verify(self, address: str, password: str, peer: str) -> Local | None:
        local, peers = await self._account(address)
        if local is not None and local.enabled and self._recall(local, password):
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
        # From here on the tokens are spent unless the password is right, also if the client goes away meanwhile.
        sane = len(password.encode("utf-8", "surrogatepass")) <= PASSWORD_OCTETS
        right = await self._pool.matches(
            local.password_hash if local is not None and sane else None,
            password,
            (self._throttle.penalty(network, account), not _is_private(peer)),
        )
        if local is None or not right or not local.enabled:
            self._throttle.record_failure(network, account)
            self._count("refused", address, peer)
            return None
        self._throttle.record_success(network, account)
        self._remember(local, password)
        self._count("ok", address, peer)
        return local

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.close()

    async def _account(self, address: str) -> tuple[Local | None, Sequence[str]]:
        """Who has this address, and from where he came in last."""
        if "\0" in address or len(address.encode("utf-8", "surrogatepass")) > ADDRESS_OCTETS or not _encodable(address):
            return None, ()  # PostgreSQL takes neither NUL nor lone surrogates; no account has such an address
        return (await self._accounts.get([address])).get(address, (None, ()))

    async def _read(self, addresses: Sequence[str]) -> dict[str, tuple[Local, Sequence[str]]]:
        async with self._database.statement(READ_SECONDS) as connection:
            return await accounts.load_logins(connection, addresses, last_logins.PEERS)

    def _digest(self, local: Local, password: str) -> bytes:
        parts = (str(local.id), local.password_hash, password)
        digest = hashlib.blake2b(key=self._key, digest_size=32)
        for part in parts:
            octets = part.encode("utf-8", "surrogatepass")
            digest.update(len(octets).to_bytes(8, "big") + octets)
        return digest.digest()

    def _recall(self, local: Local, password: str) -> bool:
        digest = self._digest(local, password)
        if self._remembered.get(digest, 0.0) <= self._clock():
            return False
        self._remember(local, password)
        return True

    def _remember(self, local: Local, password: str) -> None:
        digest = self._digest(local, password)
        self._remembered[digest] = self._clock() + REMEMBERED_SECONDS
        self._remembered.move_to_end(digest)
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)

    def _count(self, result: str, address: str, peer: str) -> None:
        LOGINS.labels(self._service, result).inc()
        if result != "ok":  # what has no @ may be a password that was typed into the wrong field
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
