"""The periodic work of the service admin: each is repeated on its own, and one that fails is shown as a problem.

A work that fails or takes long stops no other one. Its gauge is 1 until it succeeds; status and monitor report that.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from prometheus_client import Gauge

from services.admin.monitoring.problem_kinds import Problem
from shared.db.database import Database
from shared.errors import Temporary
from shared.runtime.periodic import run_periodically

WORKS: Final = {
    "indexing": "new mail is missing in the search of the console",
    "purge": "old data is not deleted",
    "books check": "a lost mail would not be noticed",
    "system check": "no alarms are sent",
    "webhook post": "alarms are not posted",
    "authorization poll": "the consent at a provider's page is not noticed",
    "day count": "the numbers on the first page of the console are old",
}
"""Each work, and what its failure means for people."""
FAILING = Gauge(
    "mailgroup_background_failing", "1: the last run of this periodic work of the service admin failed.", ["work"]
)  # the keys of WORKS
_FAILS = re.compile(r'^mailgroup_background_failing\{work="([a-z ]+)"\} 1\.0$', re.MULTILINE)

for _work in WORKS:
    FAILING.labels(_work).set(0)


async def repeat(
    work: str,
    seconds: float,
    call: Callable[[], Awaitable[object]],
    database: Database,
    wait_for_stop: Callable[[float], Awaitable[bool]],
    *,
    first_pause: float = 0.0,
) -> None:
    """Call ``call`` until the service is to stop, ``seconds`` after the end of the last call. No failure ends this.

    :param work: a key of ``WORKS``.
    """

    async def attempt() -> None:
        await run_once(work, call, database)

    await run_periodically(seconds, attempt, f"{work} failed", first_pause=first_pause, wait_for_stop=wait_for_stop)


async def run_once(work: str, call: Callable[[], Awaitable[object]], database: Database) -> None:
    """Call ``call`` and record whether it failed; the error is raised.

    A database that does not answer is reported as that, and not as a failure of each work.
    """
    try:
        await call()
    except Temporary:
        if await database.ready():
            FAILING.labels(work).set(1)
        raise
    except Exception:  # any failure of a work is shown, and raised
        FAILING.labels(work).set(1)
        raise
    FAILING.labels(work).set(0)


def describe_failures(metrics: str) -> list[str]:
    """Return the problems that the metrics of a service show. Pure."""
    return [_describe(work) for work in _FAILS.findall(metrics) if work in WORKS]


def find_failures() -> list[Problem]:
    """Return the problems of the works of this process."""
    failing = [sample.labels["work"] for metric in FAILING.collect() for sample in metric.samples if sample.value]
    return [Problem("background", work, f"service admin: {_describe(work)}") for work in failing]


def _describe(work: str) -> str:
    return f"{work} failed: {WORKS[work]}; see its log"
