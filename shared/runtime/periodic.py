"""Repeats background work. A failed call is logged and does not end the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from shared.errors import Temporary

log = structlog.get_logger()


async def run_periodically(
    seconds: float,
    work: Callable[[], Awaitable[object]],
    event: str,
    *,
    first_pause: float = 0.0,
    wait_for_stop: Callable[[float], Awaitable[bool]] | None = None,
) -> None:
    """Call ``work``, wait ``seconds``, and repeat. Return when ``wait_for_stop`` returns True; without it, never.

    No failure ends the loop: the next call may succeed, and no other task does this work.

    :param event: log event of a failed call: a warning for Temporary, an error with its traceback for the rest.
    :param first_pause: seconds to wait before the first call.
    :param wait_for_stop: waits up to the given seconds; returns True as soon as the process is to stop.
    """
    pause = first_pause
    while True:
        if wait_for_stop is None:
            await asyncio.sleep(pause)
        elif await wait_for_stop(pause):
            return
        pause = seconds
        try:
            await work()
        except Temporary as error:
            log.warning(event, error=str(error), retry_seconds=seconds)
        except Exception as error:
            log.exception(event, error=repr(error))
