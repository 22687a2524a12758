"""Fails servers over while mail is in transit, and judges the result by its own books.

``python -m tests.failover.drive [CASE …]``; ``make failover`` runs every case. The exit status is 1 if more mail is
lost, duplicated, altered or misdirected than the case allows.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys

from tests.failover.cases import CASES, Case
from tests.failover.run import FailoverDrive
from tests.failover.stand import FailoverStand
from tests.servers import scratch


def drive(case: Case, seed: int) -> FailoverDrive:
    """Run a case on private servers. To be called from the main thread, as root."""
    with scratch() as folder, FailoverStand(folder, case.synchronous).running() as stand:
        assert isinstance(stand, FailoverStand)

        async def work() -> FailoverDrive:
            async with stand.open():
                run = FailoverDrive(stand, seed)
                try:
                    await run.run(case.troubles(stand, run))
                finally:
                    await stand.replication.leave()
                return run

        return asyncio.run(work())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.failover.drive", description=__doc__)
    parser.add_argument("case", nargs="*", choices=[[], *CASES], help="by default all cases")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="repeats the mails of a run")
    arguments = parser.parse_args()
    clean = True
    for name in arguments.case or CASES:
        print(f"== {name}: {CASES[name].about}", flush=True)
        run = drive(CASES[name], arguments.seed)
        print("\n".join(run.report()), flush=True)
        clean = clean and run.clean
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
