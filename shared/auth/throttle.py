"""How fast one may guess passwords: a bucket of tokens each for a client address and for an account.

A check takes a token before it starts, and gets it back if the password was right, so honest logins, however many
come from one office, cost nothing. Who finds the bucket empty waits; nobody is locked out. Those who came in from this
address before are known: they go first, and the last token is kept for them, so guesses from elsewhere, or at other
accounts from their own address, do not make them wait. Next are those who failed least from there, and of equals who
came last: a crowd that stands in line holds up nobody who comes after it, so an honest client beside it waits for one
token at most. Who was never here and comes together with a crowd that was not either cannot be told from it, and waits
among it: at an account that they guess at perhaps in vain, elsewhere as shared/auth/authenticator.py tells.
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
SECONDS_A_TOKEN = 0.9
"""POP3 and SMTP count apart: both together stay under three guesses a second. And whoever waits for
one token, being honest, is in within a second."""
RESERVED_TOKENS = 1
"""Of the tokens, for those who are known."""
FORGIVEN_AFTER_SECONDS = 900.0
REMEMBERED = 20_000
"""Buckets and lanes kept at most. The oldest idle ones go first: a bucket that idles is full again anyway."""


@dataclass(slots=True)
class Bucket:
    """Tokens, filled up as time goes by; those who wait stand in order of their rank, who came last before equals."""

    tokens: float = BURST
    filled_at: float = 0.0
    waiting: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def take_token(self, now: float, rank: int) -> bool:
        """Take a token if there is one for this rank. :param now: seconds of a monotonic clock."""
        self.tokens = min(float(BURST), self.tokens + (now - self.filled_at) / SECONDS_A_TOKEN)
        self.filled_at = now
        if self.tokens < _needed(rank):
            return False
        self.tokens -= 1
        return True

    def seconds_until_token(self, rank: int) -> float:
        """How long until the next token for this rank."""
        return max(0.0, (_needed(rank) - self.tokens) * SECONDS_A_TOKEN)


def _needed(rank: int) -> int:
    return 1 if rank < 0 else 1 + RESERVED_TOKENS


class Throttle:
    """Buckets by key (a client's network or an account) and the failures of each pair of both (its lane)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """:param clock: monotonic seconds."""
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()  # lanes by which somebody came in
        self._count = 0

    async def acquire(self, network: str, account: str, seconds: float) -> None:
        """Take a token of the address and one of the account, waiting for them.

        The address comes first: whoever queues there holds nothing of the account's, which others need.

        :raises TimeoutError: there was none within ``seconds``; nothing is taken then.
        """
        rank = self.priority(network, account)
        async with asyncio.timeout(seconds):
            await self._take(f"address {network}", rank)
            try:
                await self._take(f"account {account}", rank)
            except BaseException:
                self._give_back(f"address {network}")
                raise

    def record_success(self, network: str, account: str) -> None:
        """The password was right: the tokens come back and the failures of this lane are forgotten."""
        self.release(network, account)
        self._failures.pop((network, account), None)
        self.mark_trusted(network, account)

    def mark_trusted(self, network: str, account: str) -> None:
        """Somebody came in by this lane, now or before."""
        self._known[network, account] = None
        self._known.move_to_end((network, account))
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def release(self, network: str, account: str) -> None:
        """No guess was made after all: the tokens come back."""
        self._give_back(f"address {network}")
        self._give_back(f"account {account}")

    def record_failure(self, network: str, account: str) -> None:
        """The password was wrong: the tokens are spent."""
        for lane in ((network, account), (network, "")):
            self._failures[lane] = (self.failures(*lane) + 1, self._clock())
            self._failures.move_to_end(lane)
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)

    def failures(self, network: str, account: str) -> int:
        """Failures of this lane that are not forgiven yet."""
        count, at = self._failures.get((network, account), (0, 0.0))
        return count if self._clock() - at < FORGIVEN_AFTER_SECONDS else 0

    def priority(self, network: str, account: str) -> int:
        """Where a guess stands in a line: below zero who is known and did not fail since, then who failed least."""
        failures = self.failures(network, account)
        return -1 if failures == 0 and (network, account) in self._known else failures

    def penalty(self, network: str, account: str) -> int:
        """How far a guess is to stand behind others where all of them wait: who guesses at many accounts counts too."""
        rank = self.priority(network, account)
        return rank if rank < 0 else rank + self.failures(network, "")

    async def _take(self, key: str, rank: int) -> None:
        bucket = self._bucket(key)
        if not bucket.waiting and bucket.take_token(self._clock(), rank):
            return
        self._count += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(bucket.waiting, (rank, -self._count, turn))
        self._serve(bucket)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the token came while we were being cancelled
                self._give_back(key)
            raise

    def _give_back(self, key: str) -> None:
        bucket = self._bucket(key)
        bucket.tokens = min(float(BURST), bucket.tokens + 1)
        self._serve(bucket)

    def _serve(self, bucket: Bucket) -> None:
        """Give tokens to those who wait, and come back when the next one is due."""
        if bucket.timer is not None:
            bucket.timer.cancel()
            bucket.timer = None
        while bucket.waiting:
            rank, _, turn = bucket.waiting[0]
            if turn.done():  # has gone away
                heapq.heappop(bucket.waiting)
            elif bucket.take_token(self._clock(), rank):
                heapq.heappop(bucket.waiting)
                turn.set_result(None)
            else:
                left = bucket.seconds_until_token(rank) + 0.001
                bucket.timer = asyncio.get_running_loop().call_later(left, self._serve, bucket)
                return

    def _bucket(self, key: str) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(filled_at=self._clock())
            for old in list(self._buckets)[:2] if len(self._buckets) > REMEMBERED else ():
                if not self._buckets[old].waiting:
                    del self._buckets[old]
        self._buckets.move_to_end(key)
        return bucket


@lru_cache(1000)
def network_of(peer: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that one IPv6 customer has."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
