"""Compares processor time per mail of two checkouts, in pairs: ``python -m bench.paired --base CHECKOUT [WORK ...]``.

The services of each checkout run with their own code, and do the same work (bench/paired_side.py). On a shared machine
the processor times of pairs are meaningful, wall time is not. The first pair, with the users' first logins, does not
count. Needs root, as bench does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

from bench import baselines
from bench.processes import Run, measured, processor_seconds
from bench.table import aligned, cost_of, medians, number, spread
from deploy.machine.supervise import ROOT
from shared.errors import Permanent, Temporary

BENCHMARKS = ("pipeline", "submission", "relay", "retr")
_STOP_SECONDS = 120.0


class Side:
    """A context manager: the process that runs a checkout's services."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        python = checkout / ".venv" / "bin" / "python"
        self._child = subprocess.Popen(
            [str(python) if python.exists() else sys.executable, "-P", str(Path(__file__).with_name("paired_side.py"))],
            cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(_STOP_SECONDS)

    def run(self, work: str) -> Run:
        """Run a benchmark once. :raises Temporary: the process ended."""
        begin = self._ask(work)
        run = measured(self._counted, partial(processor_seconds, begin["pids"], begin["without"]))
        self._write("go on")
        return run

    def _counted(self) -> Run:
        began = time.perf_counter()
        items = self._ask("go on")["items"]
        return Run(items, time.perf_counter() - began)

    def _write(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def _ask(self, line: str) -> Any:
        assert self._child.stdout is not None
        self._write(line)
        if not (answer := self._child.stdout.readline()):
            raise Temporary(f"the side of {self._checkout} has ended")
        return json.loads(answer)


def compared(base: Sequence[Run], ours: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the rows of a table: all processes together, and each one, with the median of the pairs' ratios."""
    before, after = [[cost_of(run) for run in runs] for runs in (base, ours)]
    rows: list[tuple[str, ...]] = [("process", "base, ms", "this, ms", "ratio")]
    for costs in (before, after):
        for cost in costs:
            cost["all"] = sum(cost.values())
    for name in medians([*before, *after]):
        one, other = ([cost.get(name, 0.0) for cost in costs] for costs in (before, after))
        ratios = [new / old for old, new in zip(one, other, strict=True) if old]
        cells = [number(statistics.median(values)) for values in (one, other)]
        rows.append((name, *cells, spread(ratios) if ratios else ""))
    return rows


def main() -> None:
    """Read the command line and run the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(BENCHMARKS)}; all if none is given")
    parser.add_argument("--base", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    if unknown := set(wanted.works) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are stopped
    try:
        baselines.require()
        with ExitStack() as stack:
            base, ours = (stack.enter_context(Side(checkout.resolve())) for checkout in (wanted.base, ROOT))
            for work in wanted.works or BENCHMARKS:
                rounds = [(base.run(work), ours.run(work)) for _ in range(wanted.rounds + 1)][1:]
                rates = [" ".join(f"{run.rate:,.0f}" for run in runs) for runs in zip(*rounds, strict=True)]
                print(f"\n{work}: processor time per mail, {wanted.rounds} pairs; mails/s: {' | '.join(rates)}")
                print(aligned(compared(*zip(*rounds, strict=True))), flush=True)
    except (Permanent, Temporary) as error:
        sys.exit(f"bench.paired: {error}")


if __name__ == "__main__":
    main()
