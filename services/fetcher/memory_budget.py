"""Limits the memory of one process for large mails being read or committed, for all accounts together.

Many accounts may receive mails of 50 MB at the same time. Each mail reserves memory while it grows; a mail that gets
none waits, and its provider waits with it. Large mails then arrive one after the other. One mail at a time may exceed
the limit, as mails that wait for each other would never finish; a mail that does not grow loses that exception.
"""

from __future__ import annotations

import asyncio

from shared.runtime.memory_budget import MemoryBudget

PATIENCE_SECONDS = 10.0
"""Timeout of the exception: seconds; if its holder reads nothing for this long, another mail may exceed the limit."""


class OverflowBudget:
    """The limit of one process, which one mail at a time may exceed."""

    def __init__(self, octets: int) -> None:
        """:param octets: limit of all reservations; only one mail at a time may exceed it."""
        self._memory = MemoryBudget(octets)
        self._first: MemoryShare | None = None
        self._since = 0.0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def in_use(self) -> int:
        """Octets reserved now."""
        return self._memory.in_use

    async def reserve(self, share: MemoryShare, octets: int) -> None:
        """Wait until ``octets`` are available, then reserve them."""
        loop = asyncio.get_running_loop()
        while self.is_short(octets) and self._first not in (None, share):
            remaining = self._since + PATIENCE_SECONDS - loop.time()
            if remaining <= 0:
                break
            freed: asyncio.Future[None] = loop.create_future()
            self._waiting.append(freed)
            await asyncio.wait({freed}, timeout=remaining)
        if self.is_short(octets):
            self._first, self._since = share, loop.time()
        self._memory.add(octets)

    def is_short(self, octets: int) -> bool:
        """Whether ``octets`` more would exceed the limit."""
        return octets > self._memory.available

    def release(self, share: MemoryShare, octets: int) -> None:
        """Release octets of this share and wake the mails that wait."""
        self._memory.release(octets)
        if self._first is share:
            self._first = None
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class MemoryShare:
    """The reservations of one poll: for the mail being read, and for mails not committed yet."""

    def __init__(self, budget: OverflowBudget) -> None:
        """Reserve nothing yet."""
        self._budget = budget
        self._reading = 0
        self._kept = 0

    def waits(self, octets: int) -> bool:
        """Whether a reservation of ``octets`` would have to wait now."""
        return self._budget.is_short(octets)

    async def reserve_octets(self, octets: int) -> None:
        """Reserve octets for the mail being read; wait until they are available."""
        await self._budget.reserve(self, octets)
        self._reading += octets

    def finish_mail(self) -> int:
        """Finish the mail being read. Returns its reserved octets, to be released by ``release``."""
        taken, self._reading = self._reading, 0
        self._kept += taken
        return taken

    def release(self, octets: int) -> None:
        """Release the octets of mails that are committed or dropped."""
        if octets:
            self._kept -= octets
            self._budget.release(self, octets)

    def close(self) -> None:
        """Release everything: the poll has ended."""
        self._budget.release(self, self._reading + self._kept)
        self._reading = self._kept = 0
