"""Compares imap_out with Dovecot for as long as one likes: ``make imap``, or ``python -m tests.imap_oracle.run``.

    python -m tests.imap_oracle.run --seed 7               the stream of one seed
    python -m tests.imap_oracle.run --seed 7 --rounds 500  the streams of the seeds 7 to 506

A stream that fails is shortened and printed; the exit status is then 1. Needs root, Dovecot and Postfix.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack

from deploy.machine.dovecot_postfix import DemoProvider
from tests import servers
from tests.imap_clients import imap_server
from tests.imap_oracle.stand import OracleStand

STEPS = 120
"""Steps of a stream: some sessions' minutes of work; longer ones find no more a second."""


async def compare(first: int, rounds: int, steps: int = STEPS) -> int:
    """Run the streams of so many seeds. Return how many of them failed."""
    failed = 0
    async with AsyncExitStack() as stack:
        databases = servers.Databases(stack.enter_context(servers.postgres()))
        provider = stack.enter_context(DemoProvider(stack.enter_context(servers.scratch())))
        url = stack.enter_context(databases.fresh())
        database = await stack.enter_async_context(servers.opened(url))
        folder = stack.enter_context(servers.scratch())
        server = await stack.enter_async_context(imap_server(url, database, folder))
        stand = OracleStand(server, provider)
        for seed in range(first, first + rounds):
            report = await stand.compare(seed, steps)
            failed += bool(report)
            print(report or f"seed {seed}: no difference", flush=True)
    return failed


def main(words: list[str]) -> int:
    """Run as the command line says. Return the exit status."""
    parser = argparse.ArgumentParser(description="Compares imap_out with Dovecot by random streams of commands.")
    parser.add_argument("--seed", type=int, default=1, help="of the first stream (default: 1)")
    parser.add_argument("--rounds", type=int, default=1, help="streams, each with the next seed (default: 1)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of a stream (default: {STEPS})")
    chosen = parser.parse_args(words)
    return 1 if asyncio.run(compare(chosen.seed, chosen.rounds, chosen.steps)) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
