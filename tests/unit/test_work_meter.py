"""shared/runtime/work_meter.py: the processor time of one coroutine among others."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from shared.runtime.parsing import THREAD_OCTETS, Parsing
from shared.runtime.work_meter import WorkMeter, run_measured
from tests.polling import until


async def burn(seconds: float) -> str:
    """Use the processor in steps, between which other tasks run."""
    used = 0.0
    while used < seconds:
        started = time.thread_time()
        while time.thread_time() - started < 0.01:
            pass
        used += time.thread_time() - started
        await asyncio.sleep(0)
    return "done"


async def test_only_the_coroutine_s_own_steps_are_measured() -> None:
    own, other = WorkMeter(), WorkMeter()
    results = tuple(await asyncio.gather(own.measure(burn(0.3)), burn(0.3), other.measure(asyncio.sleep(0.3, "slept"))))
    assert results == ("done", "done", "slept")
    assert 0.3 <= own.seconds < 0.55  # with the work of the second one it is 0.6
    assert other.seconds < 0.2


def burn_in_thread(seconds: float) -> float:
    started = time.thread_time()
    while time.thread_time() - started < seconds:
        pass
    return seconds


async def test_the_threads_that_the_coroutine_waits_for_are_measured() -> None:
    own, other = WorkMeter(), WorkMeter()
    await asyncio.gather(
        own.measure(Parsing().run(THREAD_OCTETS + 1, burn_in_thread, 0.3)),
        other.measure(asyncio.sleep(0.3)),
        asyncio.to_thread(run_measured, burn_in_thread, 1.0),
    )
    assert 0.3 <= own.seconds < 0.9
    assert other.seconds < 0.2


async def test_a_thread_that_still_runs_is_measured_after_a_time_limit() -> None:
    # given a thread that has used the processor and does not end
    meter, burnt, free = WorkMeter(), threading.Event(), threading.Event()

    def burn_and_wait() -> None:
        burn_in_thread(0.1)
        burnt.set()
        free.wait(60)

    deadline = asyncio.timeout(None)
    with pytest.raises(TimeoutError):
        async with deadline:
            work = asyncio.create_task(meter.measure(Parsing().run(THREAD_OCTETS + 1, burn_and_wait)))
            await until(burnt.is_set)
            # when the time is over
            deadline.reschedule(0.0)
            await work
    assert 0.1 <= meter.seconds < 0.9
    free.set()


async def test_a_failure_and_a_time_limit_reach_the_coroutine() -> None:
    meter = WorkMeter()
    ended = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("boom")

    async def hangs() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(ValueError, match="boom"):
        await meter.measure(fails())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await meter.measure(hangs())
    assert ended == [True]
