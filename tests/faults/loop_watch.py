"""Measures how long the event loop of a service is blocked, without code in the service.

A process that is started with the folder ``inject`` on its PYTHONPATH and LOOPS in its environment runs a timer in its
loop. The delay of the timer is the time for which the loop did other work: elapsed time, and processor time of the
thread. On a busy machine the elapsed time also contains the work of other processes. A second thread records the
functions that block the loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOPS = "FAULTS_LOOPS"
"""Environment variable: the folder of the results."""
BEGIN = "begin"
"""File in that folder. Blocks are recorded only after it exists: a starting process imports modules for a second."""
TICK_SECONDS = 0.01
"""Interval of the timer: seconds; small compared with the measured times."""
NOTABLE_SECONDS = 0.03
"""Shortest recorded block: seconds; below the 50 ms that a batch may take."""


@dataclass(frozen=True, slots=True)
class LongestStop:
    """The longest time for which the loop of one process was blocked."""

    service: str
    wall: float  # seconds, elapsed time
    processor: float  # seconds, processor time of the thread
    doing: str  # the innermost functions at that time


def arm(service: str) -> None:
    """Wrap ``uvloop.run`` in this process, so that its loop is measured."""
    import uvloop

    run = uvloop.run
    watch = _Watch(Path(os.environ[LOOPS]) / f"{service}.{os.getpid()}")

    async def watched(main: Coroutine[Any, Any, Any]) -> Any:
        watch.start()
        return await main

    uvloop.run = lambda main, **options: run(watched(main), **options)


class _Watch:
    def __init__(self, file: Path) -> None:
        self._file, self._begin = file, file.with_name(BEGIN)
        self._longest = NOTABLE_SECONDS
        self._doing = ""
        self._ticked_at = time.perf_counter()
        self._used = 0.0
        self._thread = 0

    def start(self) -> None:
        """Start the timer in the running loop, and the thread that observes it."""
        self._thread = threading.get_ident()
        self._tick()
        threading.Thread(target=self._observe, name="loop watch", daemon=True).start()

    def _tick(self) -> None:
        now, used = time.perf_counter(), time.thread_time()
        wall, processor = now - self._ticked_at - TICK_SECONDS, used - self._used
        if processor > self._longest and self._begin.exists():
            self._longest = processor
            part = self._file.with_suffix(f"{self._file.suffix}.part")
            part.write_text(json.dumps([wall, processor, self._doing]), encoding="utf-8")
            part.rename(self._file)
        self._doing = ""
        self._ticked_at, self._used = time.perf_counter(), time.thread_time()
        asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _observe(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            if time.perf_counter() - self._ticked_at > 2 * NOTABLE_SECONDS:
                frame = sys._current_frames().get(self._thread)
                names = [f"{Path(each.filename).name}:{each.name}" for each in traceback.extract_stack(frame)]
                self._doing = " > ".join(names[-4:])


def read_longest(folder: Path) -> list[LongestStop]:
    """Return the longest block of each process that recorded one."""
    return [
        LongestStop(file.name.partition(".")[0], *json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(folder.iterdir())
        if file.name != BEGIN and not file.name.endswith(".part")
    ]
