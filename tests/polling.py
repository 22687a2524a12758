"""Waiting in a test until something is so, rather than for a time in which it ought to become so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], object] | Callable[[], Awaitable[object]], seconds: float = 60.0) -> None:
    """Ask again and again, until the answer is true. :raises TimeoutError: it never was."""
    async with asyncio.timeout(seconds):
        while True:
            answer = holds()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(0.02)


async def until_still(value: Callable[[], object], checks: int = 20) -> None:
    """Wait until a value of this process has been the same at so many checks, between which the event loop turns.

    Turns count rather than time, so a machine that stands still for seconds does not look like work that has ended.
    """
    last, same = value(), 0
    async with asyncio.timeout(60.0):
        while same < checks:
            await asyncio.sleep(0.02)
            before, last = last, value()
            same = same + 1 if last == before else 0
