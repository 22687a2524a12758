"""shared/runtime/periodic.py: background work repeats, also after a call that raises."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from shared.errors import Temporary
from shared.runtime.periodic import run_periodically


class Work:
    """Raises the given exceptions, one a call, then sets ``done``."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0
        self.done = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        self.done.set()


class Stop:
    """In the place of ``Service.wait_for_stop``: True at the given call. pauses: the seconds of each call."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.pauses: list[float] = []

    async def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return len(self.pauses) == self.at


async def test_every_failure_is_logged_with_its_cause_and_the_loop_goes_on() -> None:
    work = Work(Temporary("database away"), ValueError("boom"))
    with capture_logs() as logged:
        task = asyncio.create_task(run_periodically(0.0, work, "clock check failed"))
        await asyncio.wait_for(work.done.wait(), 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [(line["event"], line["log_level"], line["error"]) for line in logged] == [
        ("clock check failed", "warning", "database away"),
        ("clock check failed", "error", "ValueError('boom')"),
    ]
    assert logged[1]["exc_info"] is True


async def test_it_returns_when_the_process_is_to_stop() -> None:
    work, stop = Work(), Stop(at=3)
    await run_periodically(7.0, work, "x failed", wait_for_stop=stop.wait)
    assert work.calls == 2
    assert stop.pauses == [0.0, 7.0, 7.0]


async def test_the_first_call_may_be_later() -> None:
    work, stop = Work(), Stop(at=1)
    await run_periodically(7.0, work, "x failed", first_pause=2.0, wait_for_stop=stop.wait)
    assert work.calls == 0
    assert stop.pauses == [2.0]


async def test_cancellation_ends_it_during_work() -> None:
    started = asyncio.Event()

    async def hangs() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run_periodically(0.0, hangs, "x failed"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
