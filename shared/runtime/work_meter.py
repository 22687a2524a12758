"""Measures how much processor time a coroutine itself uses, apart from the other tasks and threads of its process."""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class WorkMeter:
    """The processor time of one coroutine: of its steps, and of ``run_measured`` in the threads that it waits for."""

    def __init__(self) -> None:
        self._used = 0.0
        self._threads: dict[int, float] = {}  # clocks of running threads, and what each showed at its start

    @property
    def seconds(self) -> float:
        """Processor time so far: seconds; of a thread that still runs, too."""
        return self._used + sum(time.clock_gettime(clock) - start for clock, start in self._threads.copy().items())

    async def measure(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Await ``work`` and measure it."""
        token = _CURRENT.set(self)
        try:
            return await self._measure_steps(work)
        finally:
            _CURRENT.reset(token)

    @types.coroutine
    def _measure_steps(self, work: Coroutine[Any, Any, _Result]) -> Generator[Any, Any, _Result]:
        error: BaseException | None = None
        while True:
            started = time.thread_time()
            try:
                waits_for = work.send(None) if error is None else work.throw(error)
            except StopIteration as stop:
                result: _Result = stop.value
                return result
            finally:
                self._used += time.thread_time() - started
            error = None
            try:
                yield waits_for
            except BaseException as thrown:
                error = thrown

    def _run(self, function: Callable[..., _Result], arguments: tuple[object, ...]) -> _Result:
        clock, started = time.pthread_getcpuclockid(threading.get_ident()), time.thread_time()
        self._threads[clock] = started
        try:
            return function(*arguments)
        finally:
            del self._threads[clock]
            self._used += time.thread_time() - started


_CURRENT: ContextVar[WorkMeter | None] = ContextVar("work meter", default=None)


def run_measured(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Call a function for ``asyncio.to_thread``; its processor time counts for the coroutine that waits for it."""
    meter = _CURRENT.get()
    return function(*arguments) if meter is None else meter._run(function, arguments)
