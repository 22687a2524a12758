"""A limit for the memory that the sessions of one process use together.

Code that needs memory reserves octets before it allocates them, and releases the same number afterwards. Nothing here
allocates anything: the budget is a counter with a queue of waiters.
"""

from __future__ import annotations

import asyncio
from collections import deque


class MemoryBudget:
    """Counts the memory that is in use, up to a limit.

    :ivar octets: limit of the budget.
    :ivar in_use: octets that are reserved or counted; may exceed the limit, because ``add`` checks no limit.
    """

    __slots__ = ("_small_octets", "_small_reserve", "_waiting", "in_use", "octets")

    def __init__(self, octets: int, *, small_octets: int = 0, small_reserve: int = 0) -> None:
        """Start with nothing in use.

        :param octets: limit of the budget.
        :param small_octets: size up to which a reservation counts as small.
        :param small_reserve: octets of the budget that only small reservations may use.
        """
        self.in_use = 0
        self.octets = octets
        self._small_octets = small_octets
        self._small_reserve = small_reserve
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def available(self) -> int:
        """Octets that are not in use; negative while more is in use than the limit."""
        return self.octets - self.in_use

    def try_reserve(self, octets: int) -> bool:
        """Reserve memory if enough is available, without waiting. Returns whether it was reserved."""
        reserve = self._small_reserve if octets > self._small_octets else 0
        if octets > self.available - reserve:
            return False
        self.in_use += octets
        return True

    async def reserve(self, octets: int, seconds: float) -> bool:
        """Reserve memory, and wait for it in the order of the calls. Returns False if ``seconds`` pass first."""
        if self.try_reserve(octets):
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((octets, turn))
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # the memory was reserved while this call was cancelled
                self.release(octets)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def add(self, octets: int) -> None:
        """Count memory without a check, also beyond the limit: it is allocated already, or the caller has checked."""
        self.in_use += octets

    def release(self, octets: int) -> None:
        """Return memory to the budget, and serve the calls that wait for it."""
        self.in_use -= octets
        while self._waiting:
            requested, turn = self._waiting[0]
            if not turn.done():
                if not self.try_reserve(requested):
                    return
                turn.set_result(None)
            self._waiting.popleft()
