"""``make bench``, or ``./mailgroup bench [WORK ...]``: runs benchmarks, prints their results, writes RESULTS.md."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bench import Wrong, baselines, machine, results
from bench.benchmarks import BENCHMARKS, Benchmark, select_benchmarks
from bench.environment import Environment
from bench.table import COLUMNS, COST_COLUMNS, COSTS, Line, aligned
from shared.errors import Permanent, Temporary
from tests.servers import scratch

RESULTS = Path(__file__).with_name("RESULTS.md")


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Benchmarks or groups (--list); all if none is given.", metavar="[WORK]..."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Number of runs of each side, alternately.")] = 5,
    only_list: Annotated[bool, typer.Option("--list", help="List the benchmarks and run nothing.")] = False,
    lock: Annotated[
        Path | None, typer.Option(help="File to lock during measurements, if others measure on this machine.")
    ] = None,
    write: Annotated[bool, typer.Option(help="Write the results to bench/RESULTS.md.")] = True,
) -> None:
    """Measure mailgroup beside Dovecot, Postfix, mpop and fetchmail on this machine.

    Needs root, because these programs change their users. Sections of other benchmarks stay in RESULTS.md.

    Example: ./mailgroup bench submission poll --pairs 2 --no-write
    """
    if only_list:
        for work in BENCHMARKS:
            print(f"{work.name:14} {work.group:10} {work.title}")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are stopped
    try:
        works = select_benchmarks(names or [])
        baselines.require()
        with scratch() as folder, Environment(folder, lock) as environment:
            _run(environment, works, pairs, write)
    except (Permanent, Temporary, ValueError) as error:
        sys.exit(f"bench: {error}")
    except Wrong as error:
        sys.exit(f"bench: WRONG, so no figures: {error}")


def _run(environment: Environment, works: list[Benchmark], pairs: int, write: bool) -> None:
    command = f"./mailgroup bench {' '.join(sys.argv[1:])}".strip()
    for work in works:
        print(f"{work.name}: {work.title}", file=sys.stderr)
        began = time.monotonic()
        lines = work.run(environment, pairs)
        _print(work, lines)
        fsync = machine.fsync_seconds(environment.gateway.settings.data)
        print(f"{work.name}: took {time.monotonic() - began:.0f} s; fsync {machine.words(fsync)}", file=sys.stderr)
        if write:
            conditions = (
                f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {pairs} pairs, `{command}`, on {machine.processor()} "
                f"with {os.cpu_count()} cores, fsync {machine.words(fsync)}"
            )
            before = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
            new = {work.name: results.section(work.name, work.title, conditions, lines)}
            facts = machine.facts(environment.gateway, environment.folder, fsync)
            RESULTS.write_text(
                results.merge(before, facts, new, [known.name for known in BENCHMARKS]), encoding="utf-8"
            )


def _print(work: Benchmark, lines: list[Line]) -> None:
    print(f"\n{work.name}: {work.title}")
    print(aligned([COLUMNS, *(line.cells() for line in lines)]))
    if costs := [cells for line in lines if (cells := line.costs())]:
        print(f"{COSTS}\n{aligned([COST_COLUMNS, *costs])}")
    print(flush=True)


if __name__ == "__main__":
    command = typer.Typer(rich_markup_mode=None, add_completion=False)
    command.command(context_settings={"help_option_names": ["--help", "-h"]})(main)
    command(prog_name="mailgroup bench")
