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
