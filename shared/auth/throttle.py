"""Limits password guesses: a token bucket for each client network and for each account.

A password check takes a token of both buckets and returns them if the password is right, so honest logins cost
nothing, however many come from one office. If a bucket is empty, the login waits; no account is locked.

A pair of network and account with an earlier successful login is trusted: it goes first, and the last token is
reserved for it. Guesses from elsewhere, or at other accounts from the same network, do not delay it. Then waiters are
served by fewest failures, then last in, first out: a crowd of guessers cannot delay a later honest client, which waits
for one token at most. A client without an earlier login that arrives together with such a crowd cannot be distinguished
from it, and waits like the crowd: at the guessed account perhaps until the login fails, elsewhere as
shared/auth/authenticator.py says.
"""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

BURST = 2
"""Tokens of a full bucket."""
SECONDS_A_TOKEN = 0.9
"""Refill: seconds for one token. POP3 and SMTP count separately and stay below three guesses a second together; an
honest client that waits for one token logs in within a second."""
RESERVED_TOKENS = 1
"""Tokens of a bucket that only trusted pairs get."""
FORGIVEN_AFTER_SECONDS = 900.0
"""Lifetime of a failure: seconds."""
MAX_ENTRIES = 20_000
"""Buckets, and pairs, that are remembered. The oldest idle ones leave first: an idle bucket is full again anyway."""


@dataclass(slots=True)
class Bucket:
    """A token bucket and its waiters, a heap by priority, then last in, first out."""

    tokens: float = BURST
    filled_at: float = 0.0
    waiting: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def take_token(self, now: float, priority: int) -> bool:
        """Take a token if there is one for this priority. :param now: seconds of a monotonic clock."""
        self.tokens = min(float(BURST), self.tokens + (now - self.filled_at) / SECONDS_A_TOKEN)
        self.filled_at = now
        if self.tokens < _needed_tokens(priority):
            return False
        self.tokens -= 1
        return True

    def seconds_until_token(self, priority: int) -> float:
        """Seconds until the next token for this priority."""
        return max(0.0, (_needed_tokens(priority) - self.tokens) * SECONDS_A_TOKEN)


def _needed_tokens(priority: int) -> int:
    return 1 if priority < 0 else 1 + RESERVED_TOKENS


class Throttle:
    """Token buckets by key (a client's network or an account), and the failures of each pair (network, account)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """:param clock: monotonic seconds."""
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._trusted: OrderedDict[tuple[str, str], None] = OrderedDict()  # pairs with a successful login
        self._count = 0

    async def acquire(self, network: str, account: str, seconds: float) -> None:
        """Wait for a token of the network and one of the account, and take them.

        The network comes first: a login that waits there takes no token of the account, which others need.

        :raises TimeoutError: no token within ``seconds``; both buckets are as before.
        """
        priority = self.priority(network, account)
        async with asyncio.timeout(seconds):
            await self._take(f"address {network}", priority)
            try:
                await self._take(f"account {account}", priority)
            except BaseException:
                self._put_back(f"address {network}")
                raise

    def record_success(self, network: str, account: str) -> None:
        """Return the tokens and forget the failures of this pair: the password was right."""
        self.release(network, account)
        self._failures.pop((network, account), None)
        self.mark_trusted(network, account)

    def mark_trusted(self, network: str, account: str) -> None:
        """Trust this pair: it has logged in, now or earlier."""
        self._trusted[network, account] = None
        self._trusted.move_to_end((network, account))
        if len(self._trusted) > MAX_ENTRIES:
            self._trusted.popitem(last=False)

    def release(self, network: str, account: str) -> None:
        """Return the tokens: no password was checked."""
        self._put_back(f"address {network}")
        self._put_back(f"account {account}")

    def record_failure(self, network: str, account: str) -> None:
        """Count a wrong password, for the pair and for the network. The tokens are spent."""
        for pair in ((network, account), (network, "")):
            self._failures[pair] = (self.failures(*pair) + 1, self._clock())
            self._failures.move_to_end(pair)
        while len(self._failures) > MAX_ENTRIES:
            self._failures.popitem(last=False)

    def failures(self, network: str, account: str) -> int:
        """Return the failures of this pair that are not forgiven yet."""
        count, at = self._failures.get((network, account), (0, 0.0))
        return count if self._clock() - at < FORGIVEN_AFTER_SECONDS else 0

    def priority(self, network: str, account: str) -> int:
        """Return the priority of a login: below zero if its pair is trusted and has no failures, else the failures."""
        failures = self.failures(network, account)
        return -1 if failures == 0 and (network, account) in self._trusted else failures

    def penalty(self, network: str, account: str) -> int:
        """Return the priority of a login among all accounts: the network's failures at other accounts count too."""
        priority = self.priority(network, account)
        return priority if priority < 0 else priority + self.failures(network, "")

    async def _take(self, key: str, priority: int) -> None:
        bucket = self._bucket(key)
        if not bucket.waiting and bucket.take_token(self._clock(), priority):
            return
        self._count += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(bucket.waiting, (priority, -self._count, turn))
        self._serve(bucket)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the token came during the cancellation
                self._put_back(key)
            raise

    def _put_back(self, key: str) -> None:
        bucket = self._bucket(key)
        bucket.tokens = min(float(BURST), bucket.tokens + 1)
        self._serve(bucket)

    def _serve(self, bucket: Bucket) -> None:
        """Give tokens to waiters, and call this again when the next token is due."""
        if bucket.timer is not None:
            bucket.timer.cancel()
            bucket.timer = None
        while bucket.waiting:
            priority, _, turn = bucket.waiting[0]
            if turn.done():  # the waiter was cancelled
                heapq.heappop(bucket.waiting)
            elif bucket.take_token(self._clock(), priority):
                heapq.heappop(bucket.waiting)
                turn.set_result(None)
            else:
                seconds = bucket.seconds_until_token(priority) + 0.001
                bucket.timer = asyncio.get_running_loop().call_later(seconds, self._serve, bucket)
                return

    def _bucket(self, key: str) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(filled_at=self._clock())
            for old in list(self._buckets)[:2] if len(self._buckets) > MAX_ENTRIES else ():
                if not self._buckets[old].waiting:
                    del self._buckets[old]
        self._buckets.move_to_end(key)
        return bucket


@lru_cache(1000)
def network_of(peer: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 address, as one customer has it."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
