"""Runs parsers of mail without blocking the event loop: long ones in a thread, short ones with pauses between them.

A thread shares the interpreter with the loop, but gives it a turn every few milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from shared.runtime.work_meter import run_measured

THREAD_OCTETS = 8 * 1024
"""Longest input that is parsed without a thread: octets; it takes a hundredth of a second at most, and nearly always
less than the change of threads."""
TURN_SECONDS = 0.005
"""Time of short parsers after which other tasks get a turn: seconds."""

_Result = TypeVar("_Result")


class Parsing:
    """The parsers that one task runs, one after the other."""

    def __init__(self) -> None:
        self._busy = 0.0  # seconds since other tasks had a turn

    async def run(self, octets: int, parse: Callable[..., _Result], *arguments: object) -> _Result:
        """Call ``parse(*arguments)``. :param octets: length of its input."""
        if octets > THREAD_OCTETS:
            self._busy = 0.0
            return await asyncio.to_thread(run_measured, parse, *arguments)
        started = time.monotonic()
        result = parse(*arguments)
        self._busy += time.monotonic() - started
        if self._busy > TURN_SECONDS:
            self._busy = 0.0
            await asyncio.sleep(0)
        return result
