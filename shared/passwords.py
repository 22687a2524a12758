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

THREADS = 2
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)


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


class Pool:
    """Hashes and checks passwords beside the event loop, at most ``threads`` at a time; the rest wait."""

    def __init__(self, threads: int = THREADS) -> None:
        """Starts its threads when they are needed."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._idle = threads
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # the lowest rank first, then in order
        self._count = 0
        self._decoy: asyncio.Future[str] | None = None

    async def hash(self, password: str) -> str:
        """Hash a password, as a PHC string."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, hash_password, password)

    async def matches(self, stored: str | None, password: str, rank: int = 0) -> bool:
        """Whether this is the password. None (there is no such user) costs the same and matches nothing.

        :param rank: where many wait, the lowest one is next.
        """
        if stored is not None:
            return await self._in_turn(rank, lambda: matches(stored, password))
        if self._decoy is None:
            self._decoy = asyncio.get_running_loop().run_in_executor(self._threads, hash_password, "nobody's password")
        decoy = await asyncio.shield(self._decoy)
        await self._in_turn(rank, lambda: matches(decoy, password))
        return False

    async def _in_turn(self, rank: int, work: Callable[[], bool]) -> bool:
        loop = asyncio.get_running_loop()
        if self._idle:
            self._idle -= 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            self._count += 1
            heapq.heappush(self._waiting, (rank, self._count, turn))
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
