"""Hashes passwords of local accounts: argon2id with two passes over 19 MiB (OWASP's parameters), 30 ms of one core.

A small thread pool runs the checks, not the event loop (the C code releases the GIL). The size of the pool limits the
memory and the cores that logins use, however many clients connect.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

Priority = tuple[int, ...]
"""Order of waiting checks: the lowest first."""

THREADS = 2
"""Checks at the same time; each uses a core and 19 MiB."""
# OWASP's parameters with less memory take half of the time. But stored hashes would stay as slow as they are, and the
# response time would show which accounts exist.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)
_DECOY = "$argon2id$v=19$m=19456,t=2,p=1$vL1y5YWVxPtOZtRIKWCumQ$iztQBmtC3WpTYLFFNlFVNUBm96x+27nNhZmwxV25LSQ"
"""The hash of an unknown password, checked for an account that does not exist."""


def hash_password(password: str) -> str:
    """Hash a password as a PHC string. Blocks for about 30 ms: for commands, not for an event loop."""
    return _HASHER.hash(_octets(password))


def matches(stored: str, password: str) -> bool:
    """Whether the password matches the hash. Blocks for about 30 ms. A stored text that is not a hash never matches."""
    try:
        return _HASHER.verify(stored, _octets(password))
    except (Argon2Error, InvalidHashError):
        return False


def _octets(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


class HashingPool:
    """Hashes and checks passwords in threads, at most ``threads`` at a time.

    Waiting checks run by priority, then last in, first out: a crowd of guessers cannot delay a later client.
    """

    def __init__(self, threads: int = THREADS) -> None:
        """:param threads: checks at the same time; they are started when they are needed."""
        self.threads = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._idle = threads
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []  # a heap
        self._count = 0

    async def hash(self, password: str) -> str:
        """Hash a password as a PHC string."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, hash_password, password)

    async def matches(self, stored: str | None, password: str, priority: Priority = (0,)) -> bool:
        """Whether the password matches. None (no such account) takes the same time and never matches."""
        checked = _DECOY if stored is None else stored
        return await self._in_turn(priority, lambda: matches(checked, password)) and stored is not None

    async def _in_turn(self, priority: Priority, work: Callable[[], bool]) -> bool:
        loop = asyncio.get_running_loop()
        if self._idle:
            self._idle -= 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            self._count += 1
            heapq.heappush(self._waiting, (priority, -self._count, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the turn came during the cancellation
                    self._next()
                raise
        try:
            return await loop.run_in_executor(self._threads, work)
        finally:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._idle += 1

    def close(self) -> None:
        """Release the threads; running checks end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
