"""Passwords of local accounts: argon2id with two passes over 19 MiB (OWASP's parameters), about 30 ms of one core.

A check never runs on the event loop: a small pool of threads does it (the C code lets go of the GIL), and its size
bounds the memory and the cores that logins can take, however many clients come at once.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

Priority = tuple[int, ...]
"""Where somebody stands in the line: the lowest first."""

THREADS = 2
# OWASP's parameters with less memory are faster by half, two at a time. But hashes that are stored would stay as slow
# as they are, and who has one could be told from who is unknown.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)
_DECOY = "$argon2id$v=19$m=19456,t=2,p=1$vL1y5YWVxPtOZtRIKWCumQ$iztQBmtC3WpTYLFFNlFVNUBm96x+27nNhZmwxV25LSQ"
"""Of a password that nobody knows: what is checked for a user who does not exist."""


def hash_password(password: str) -> str:
    """Hash a password, as a PHC string. Blocks for about 30 ms: for commands, not for an event loop."""
    return _HASHER.hash(_octets(password))


def matches(stored: str, password: str) -> bool:
    """Whether this is the password. Blocks for about 30 ms. A stored text that is no hash matches nothing."""
    try:
        return _HASHER.verify(stored, _octets(password))
    except (Argon2Error, InvalidHashError):
        return False


def _octets(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


class HashingPool:
    """Hashes and checks passwords beside the event loop, at most ``threads`` at a time; the rest wait.

    The lowest rank is next, and of equals who came last: a crowd that waits holds up nobody who comes after it.
    """

    def __init__(self, threads: int = THREADS) -> None:
        """Starts its threads when they are needed."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._idle = threads
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []  # a heap
        self._count = 0

    async def hash(self, password: str) -> str:
        """Hash a password, as a PHC string."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, hash_password, password)

    async def matches(self, stored: str | None, password: str, priority: Priority = (0,)) -> bool:
        """Whether this is the password. None (there is no such user) costs the same and matches nothing."""
        checked = _DECOY if stored is None else stored
        return await self._in_turn(priority, lambda: matches(checked, password)) and stored is not None

    async def _in_turn(self, rank: Priority, work: Callable[[], bool]) -> bool:
        loop = asyncio.get_running_loop()
        if self._idle:
            self._idle -= 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            self._count += 1
            heapq.heappush(self._waiting, (rank, -self._count, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # its turn came while it was being cancelled
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
        """Let go of the threads; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
