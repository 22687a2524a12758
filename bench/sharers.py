"""A mail that twenty people share, beside one that is for one person: its bytes are stored once."""

from __future__ import annotations

from functools import partial

from bench import Wrong
from bench.pipeline import SOME, deliver, fill_source
from bench.processes import Run
from bench.stand import Stand
from bench.table import Goal, Line

SHARERS = 20
_STORED = "select count(*) from messages"


def sharers(stand: Stand, pairs: int) -> list[Line]:
    """From the moment when the poll is due until all sharers can read all mails."""
    fill_source(stand)
    one, twenty = stand.alternate(pairs, partial(_share, stand, 1), partial(_share, stand, SHARERS))
    return [
        Line(
            f"{SOME} mails of 10 KB to {SHARERS} sharers, beside 1 sharer; stored once",
            tuple(run.seconds * 1e3 / SOME for run in twenty),
            "ms/mail",
            Goal("≤", 1.3),
            tuple(run.seconds * 1e3 / SOME for run in one),
            "1 sharer",
        )
    ]


def _share(stand: Stand, count: int) -> Run:
    before = stand.gateway.value(_STORED)
    run = deliver(stand.gateway, stand.dovecot.port, "some", SOME, count)
    if (stored := stand.gateway.value(_STORED) - before) != SOME:
        raise Wrong(f"the bytes of {SOME} mails to {count} people are stored {stored} times")
    return run
