"""What the load generators of POP3 and IMAP share: common options, the run of all sessions, and its line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

Session = Callable[[argparse.Namespace, int], Awaitable[tuple[int, int]]]
"""Runs the session of this number. It returns items, and received octets."""


def options(description: str | None, modes: list[str]) -> argparse.ArgumentParser:
    """Return a parser of the options of both. :param modes: what sessions can do."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=modes)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user", required=True, help="{i} is replaced by the number of the user, from 0")
    parser.add_argument("--users", type=int, default=1, help="number of users")
    parser.add_argument("--password", required=True)
    parser.add_argument("--sessions", type=int, default=1, help="number of sessions; N is of user N modulo --users")
    parser.add_argument("--concurrency", type=int, default=1, help="sessions at a time")
    parser.add_argument("--pipeline", type=int, default=1, help="commands that read a mail, sent together")
    parser.add_argument("--mails", type=int, default=0, help="mails in each mailbox, or to append")
    parser.add_argument("--octets", type=int, default=0, help="octets of each mail")
    return parser


def run(wanted: argparse.Namespace, session: Session, idle: Callable[[argparse.Namespace], Awaitable[None]]) -> None:
    """Run all sessions and print the line, or keep them idle. :param idle: keeps them until standard input ends."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 65_536), limit))

    async def work() -> None:
        if wanted.mode == "idle":
            await idle(wanted)
        else:
            print(json.dumps(await _load(wanted, session)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


async def _load(wanted: argparse.Namespace, session: Session) -> dict[str, Any]:
    """Run all sessions, ``--concurrency`` at a time."""
    items = octets = 0
    lasted: list[float] = []

    async def work(slot: int) -> None:
        nonlocal items, octets
        for index in range(slot, wanted.sessions, wanted.concurrency):
            began = time.perf_counter()
            more, came = await session(wanted, index)
            lasted.append(time.perf_counter() - began)
            items, octets = items + more, octets + came

    started, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(slot) for slot in range(wanted.concurrency)))
    seconds = time.perf_counter() - started
    cpu = (time.process_time() - busy) / seconds
    return {
        "items": items, "octets": octets, "seconds": seconds, "cpu": cpu, "session": statistics.median(lasted),
    }  # fmt: skip
