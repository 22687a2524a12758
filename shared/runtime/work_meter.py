"""Measures how much processor time a coroutine itself uses, apart from the other tasks of its event loop."""

from __future__ import annotations

import time
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class WorkMeter:
    """The processor time of one coroutine. seconds: so far; work that it gives to other threads is left out."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @types.coroutine
    def measure(self, work: Coroutine[Any, Any, _Result]) -> Generator[Any, Any, _Result]:
        """Await ``work`` and measure each of its steps between two waits."""
        error: BaseException | None = None
        while True:
            started = time.thread_time()
            try:
                waits_for = work.send(None) if error is None else work.throw(error)
            except StopIteration as stop:
                result: _Result = stop.value
                return result
            finally:
                self.seconds += time.thread_time() - started
            error = None
            try:
                yield waits_for
            except BaseException as thrown:
                error = thrown
