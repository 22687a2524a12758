"""A mail that twenty people share, beside one that is for one person: its bytes are stored once."""

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
"""One after the other."""
_STORED = "select count(*) from blobs"


def sharers(stand: Environment, pairs: int) -> list[Line]:
    """Many mails, from the moment when the poll is due until all sharers can read all of them; and a mail by itself."""
    fill_source(stand)
    one, twenty = stand.alternate(pairs, partial(_share, stand, 1), partial(_share, stand, SHARERS))
    alone, among = stand.alternate(pairs, partial(_share_single, stand, 1), partial(_share_single, stand, SHARERS))
    return [
        Line(
            f"{SOME} mails of 10 KB to {SHARERS} sharers, beside 1 sharer; stored once",
            tuple(run.seconds * 1e3 / SOME for run in twenty),
            "ms/mail",
            Goal("≤", 1.3),
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


def _share(stand: Environment, count: int) -> Run:
    before = stand.gateway.value(_STORED)
    run = deliver(stand.gateway, stand.dovecot.port, "some", SOME, count)
    if (stored := stand.gateway.value(_STORED) - before) != SOME:
        raise Wrong(f"the bytes of {SOME} mails to {count} people are stored {stored} times")
    return run


def _share_single(stand: Environment, count: int) -> Run:
    """On a system that has nothing else to do. session: median seconds of a mail."""
    found = asyncio.run(fetch(stand.gateway, SINGLE_MAILS, count))
    return Run(len(found), sum(found), session=statistics.median(found))
