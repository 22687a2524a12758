"""Measures the work of docs/kubernetes.md, "Sizing": mails of 10 and 75 KB, without and with a synchronous standby.

    python -m bench.sizing --pairs 3

The whole system runs as with ``up``. Mail is fetched from Dovecot and relayed to smtp-sink.
Both modes run alternately. The standby runs on the same disk and processor, so the wall time of a commit is longer here
than with a machine of its own; processor times and the octets of the write-ahead log (WAL) can be compared.

It writes bench/SIZING.md. Needs root, Dovecot, and smtp-sink of Debian's package postfix.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Self

from bench import machine
from bench.baselines import PASSWORD, USERS, await_until
from bench.environment import Environment
from bench.gateway import DOMAIN
from bench.mails import fill_maildir
from bench.pipeline import deliver
from bench.processes import Run, cpu_seconds, generate, measured, tree
from bench.results import markdown_table
from bench.submission import drain
from bench.table import cost_of, medians, number, spread
from deploy.machine import ports
from shared.errors import Permanent, Temporary
from tests.failover.pair import Pair
from tests.servers import scratch

FILE = Path(__file__).with_name("SIZING.md")
SIZES = (10_240, 75_000)
MAILS = 500
ALONE, STANDBY = "alone", "with a standby"
_WAL = "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
_SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    run: Run
    wal: int  # octets a mail


@dataclass(slots=True)
class Work:
    """A kind of work with mails of one size."""

    name: str
    octets: int
    runs: dict[str, list[Measured]] = field(default_factory=lambda: {ALONE: [], STANDBY: []})

    def rates(self, mode: str) -> list[float]:
        """Mails a second."""
        return [each.run.rate for each in self.runs[mode]]

    def costs(self, mode: str) -> dict[str, float]:
        """Milliseconds of a core a mail, by process; the median of the runs."""
        return medians([cost_of(each.run) for each in self.runs[mode]])

    def wal(self, mode: str) -> float:
        """Octets of WAL a mail; the median of the runs."""
        return statistics.median(each.wal for each in self.runs[mode])


class Stand:
    """A context manager: all servers, and a standby that can be away."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._environment = Environment(folder)
        self._folder = folder
        self._standby: int | None = None  # its process, while it runs

    def __enter__(self) -> Self:
        self._stack.enter_context(self._environment)
        self.gateway = self._environment.gateway
        primary = self.gateway.postgres
        chosen = ports.choose(2, f"{self._folder} standby")
        self._pair = Pair(self._folder, (chosen[0], chosen[1]), synchronous=True, primary=primary)
        self._pair.copy_primary(primary.port)
        for octets in SIZES:
            fill_maildir(self._environment.dovecot.maildir(f"sized{octets}"), MAILS, octets)
        return self

    def __exit__(self, *problem: object) -> None:
        self.replicate(False)
        self._stack.close()

    def replicate(self, wanted: bool) -> None:
        """Start the synchronous standby, and wait until it has every commit; or stop it."""
        if wanted and self._standby is None:
            self._standby = self._pair.start_standby()
            self._pair.require_standby()
            await_until(lambda: self._pair.replicates() and self._pair.is_replicated(), _SETTLE_SECONDS)
        elif not wanted and self._standby is not None:
            self._pair.stop_standby()
            self._standby = None

    def used(self) -> Mapping[str, float]:
        """Return the processor seconds so far, by name."""
        standby = {} if self._standby is None else {"standby": cpu_seconds(tree(self._standby))}
        return {**self.gateway.used(), **standby}

    def fetch(self, octets: int) -> Run:
        """Fetch and deliver a maildrop."""
        return deliver(
            self.gateway, self._environment.dovecot.port, f"sized{octets}", MAILS, octets=octets, used=self.used
        )

    def submit(self, octets: int) -> Run:
        """Submit mails in 16 sessions, until all are relayed."""

        def work() -> Run:
            run = generate(
                "smtp_load", port=self.gateway.settings.smtp_port, user="u{i}@" + DOMAIN, sender="u{i}@" + DOMAIN,
                users=USERS, password=PASSWORD, mails=MAILS, octets=octets, concurrency=16,
            )  # fmt: skip
            drain(self.gateway)
            return run

        return measured(work, self.used)

    def measure(self, work: Callable[[], Run]) -> Measured:
        """Do the work, and count its WAL."""
        before = self.gateway.value(_WAL)
        run = work()
        return Measured(run, round((int(self.gateway.value(_WAL)) - int(before)) / run.items))


# ------------------------------------------------------------------------------------------ the report


def _row(work: Work, mode: str, small: Work) -> list[str]:
    costs = work.costs(mode)
    servers = ("postgres", "standby", "rabbitmq", "epmd")
    ours = {name: cost for name, cost in costs.items() if name not in servers and cost >= 0.005}
    row = [
        work.name,
        number(work.octets / 1000),
        mode,
        f"{spread(work.rates(mode))}",
        ", ".join(f"{name} {number(cost)}" for name, cost in ours.items()),
        number(costs.get("postgres", 0.0)),
        number(costs["standby"]) if "standby" in costs else "",
        number(work.wal(mode) / 1000),
    ]
    total = sum(costs.values())
    row.append(number(total / sum(work.costs(ALONE).values())) if mode == STANDBY else "")
    row.append(number(total / sum(small.costs(mode).values())) if work is not small else "")
    return row


_COLUMNS = (
    *("work", "KB", "PostgreSQL", "mails/s", "services, ms a mail", "PostgreSQL", "standby", "WAL, KB a mail"),
    *("processor time to alone", "to 10 KB"),
)


def report(works: Sequence[Work], fsync: float, pairs: int) -> str:
    """Return the page."""
    small = {work.name: work for work in works if work.octets == SIZES[0]}
    rows = [_row(work, mode, small[work.name]) for work in works for mode in (ALONE, STANDBY)]
    table = markdown_table(_COLUMNS, rows)
    return (
        "# Results of `bench.sizing`\n\n"
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `python -m bench.sizing {' '.join(sys.argv[1:])}`, {pairs} pairs, on "
        f"{machine.processor()} with {os.cpu_count()} cores, fsync {machine.words(fsync)}. The standby is on the same "
        f"machine. Times are those of a core, in milliseconds a mail, the median of the runs; mails/s is median "
        f"[min..max]; the ratios are those of all processor time.\n\n{table}\n"
    )


def main() -> None:
    """Measure, print the report, and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.sizing")
    parser.add_argument("--pairs", type=int, default=3, help="number of runs of each mode, alternately")
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: needs root, because Dovecot and smtp-sink run as users of their own")
    try:
        with scratch() as folder, Stand(folder) as stand:
            works = [Work("fetch to readable", octets) for octets in SIZES]
            works += [Work("submission and relay", octets) for octets in SIZES]
            for pair in range(options.pairs + 1):
                for mode in (ALONE, STANDBY):
                    stand.replicate(mode == STANDBY)
                    for work in works:
                        job = stand.fetch if work.name.startswith("fetch") else stand.submit
                        found = stand.measure(partial(job, work.octets))
                        if pair:  # the first one fills caches
                            work.runs[mode].append(found)
                            print(f"{work.name}, {work.octets}, {mode}: {found.run.rate:.0f}/s", file=sys.stderr)
            text = report(works, machine.fsync_seconds(stand.gateway.settings.data), options.pairs)
    except (Permanent, Temporary) as error:
        sys.exit(f"bench: {error}")
    print(text)
    if not options.no_write:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
