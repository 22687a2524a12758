"""Delivery of a mail to twenty people compared with one person; its bytes are stored once."""

from __future__ import annotations

import asyncio
import statistics
from functools import partial

from bench import Wrong
from bench.environment import Environment
from bench.latency import fetch
from bench.pipeline import SOME, deliver, fill_source
from bench.processes import Run
from bench.table import Goal, Line

SHARERS = 20
SINGLE_MAILS = 50
"""Mails that are sent one after the other."""
_STORED = "select count(*) from blobs"


def sharers(environment: Environment, pairs: int) -> list[Line]:
    """Measure many mails, from the due time of the poll until all sharers can read all of them, and single mails."""
    fill_source(environment)
    one, twenty = environment.alternate(pairs, partial(_share, environment, 1), partial(_share, environment, SHARERS))
    alone, among = environment.alternate(
        pairs, partial(_share_single, environment, 1), partial(_share_single, environment, SHARERS)
    )
    return [
        Line(
            f"{SOME} mails of 10 KB to {SHARERS} sharers, beside 1 sharer; stored once",
            tuple(run.seconds * 1e3 / SOME for run in twenty),
            "ms/mail",
            Goal("≤", 1.5),
            tuple(run.seconds * 1e3 / SOME for run in one),
            "1 sharer",
            runs=(twenty, one),
        ),
        Line(
            f"a single mail, from the poll's RETR to readable by all {SHARERS} sharers, median; beside 1 sharer",
            tuple(run.session * 1e3 for run in among),
            "ms",
            Goal("≤", 1.3),
            tuple(run.session * 1e3 for run in alone),
            "1 sharer",
        ),
    ]


def _share(environment: Environment, count: int) -> Run:
    before = environment.gateway.value(_STORED)
    run = deliver(environment.gateway, environment.dovecot.port, "some", SOME, count)
    if (stored := environment.gateway.value(_STORED) - before) != SOME:
        raise Wrong(f"the bytes of {SOME} mails to {count} people are stored {stored} times")
    return run


def _share_single(environment: Environment, count: int) -> Run:
    """Measure single mails on an idle system. session: median seconds of a mail."""
    seconds = asyncio.run(fetch(environment.gateway, SINGLE_MAILS, count))
    return Run(len(seconds), sum(seconds), session=statistics.median(seconds))
