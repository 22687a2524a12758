"""How much of large mails this process holds at once, whoever's they are.

Many accounts may get mails of 50 MB at the same time. Each of these takes room as it grows, and one that finds none
waits, its provider with it; so mails come in one after the other instead of all at once. One at a time may go beyond,
or mails that wait for each other would wait for ever; and one that stands still does not keep that place.
"""

from __future__ import annotations

import asyncio

PATIENCE_SECONDS = 10.0
"""Who has the place of the one that may go beyond, and does not grow for so long, loses it to who wants to."""


class MemoryBudget:
    """:ivar held: octets that are taken now."""

    def __init__(self, octets: int) -> None:
        """:param octets: to be held together; with the one mail that may go beyond them, that is the most."""
        self.held = 0
        self._octets = octets
        self._first: MemoryShare | None = None
        self._since = 0.0
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, share: MemoryShare, octets: int) -> None:
        """Wait until there is room."""
        loop = asyncio.get_running_loop()
        while self.is_short(octets) and self._first not in (None, share):
            left = self._since + PATIENCE_SECONDS - loop.time()
            if left <= 0:
                break
            freed: asyncio.Future[None] = loop.create_future()
            self._waiting.append(freed)
            await asyncio.wait({freed}, timeout=left)
        if self.is_short(octets):
            self._first, self._since = share, loop.time()
        self.held += octets

    def is_short(self, octets: int) -> bool:
        """Whether so much more is more than there is."""
        return self.held + octets > self._octets

    def give(self, share: MemoryShare, octets: int) -> None:
        """There is room again: mails of this share are done with."""
        self.held -= octets
        if self._first is share:
            self._first = None
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class MemoryShare:
    """What one poll takes of the budget: for the mail that is being read, and for those that are not committed yet."""

    def __init__(self, budget: MemoryBudget) -> None:
        """Takes nothing yet."""
        self._budget = budget
        self._reading = 0
        self._kept = 0

    def waits(self, octets: int) -> bool:
        """Whether there is no room for so much now."""
        return self._budget.is_short(octets)

    async def grow(self, octets: int) -> None:
        """The mail that is being read is to grow so much."""
        await self._budget.take(self, octets)
        self._reading += octets

    def keep(self) -> int:
        """It is read. What it took is to be given back by ``free``."""
        taken, self._reading = self._reading, 0
        self._kept += taken
        return taken

    def free(self, octets: int) -> None:
        """Mails that took so much are committed, or given up."""
        if octets:
            self._kept -= octets
            self._budget.give(self, octets)

    def close(self) -> None:
        """The poll has ended."""
        self._budget.give(self, self._reading + self._kept)
        self._reading = self._kept = 0
