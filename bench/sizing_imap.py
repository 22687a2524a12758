"""Measures the work of imap_out for docs/kubernetes.md, "Sizing": processor time by kind of command, and memory.

    python -m bench.sizing_imap --runs 3

The whole system runs as with ``up``. Sessions wait in IDLE under TLS, others work beside them. Processor times are
those of imap_out and of PostgreSQL, until both are quiet again.

It writes bench/SIZING_IMAP.md. Needs root, and smtp-sink of Debian's package postfix.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench import Wrong, machine
from bench.baselines import PASSWORD, USERS
from bench.environment import Environment
from bench.gateway import DOMAIN
from bench.imap_serving import load, restart
from bench.mails import mail
from bench.processes import Run, generate, holding, measured, memory, tree
from bench.results import markdown_table
from bench.table import cost_of, medians, number, spread
from shared.errors import Permanent, Temporary
from tests.servers import scratch

FILE = Path(__file__).with_name("SIZING_IMAP.md")
SESSIONS = 200
"""Sessions in IDLE: of USERS people, so a person has a dozen."""
MANY_SESSIONS = 1_000
"""The same, where their work without news is measured, which is little."""
MAILS, OCTETS = 1_000, 10_240
LARGE_MAILS, LARGE_OCTETS = 2, 5 * 1024 * 1024
APPENDED, APPENDED_OCTETS = 50, 75_000
_CHECKS = 1_000
_NEWS, _NEWS_PAUSE = 10, 0.1
"""Mails to each person while the sessions wait, and the pause after each: seconds; so each mail is reported alone."""
_QUIET_SECONDS = 30.0
_SAMPLE_SECONDS = 0.02
_MEBI = 2**20


@dataclass(slots=True)
class Work:
    """A kind of work, and its runs."""

    name: str
    of: str  # the item of its figures
    run: Callable[[], Run]
    runs: list[Run] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Return its row of the table of processor time."""
        costs = medians([cost_of(run) for run in self.runs])
        rate = spread([run.rate for run in self.runs])
        return [self.name, self.of, number(costs["imap_out"]), number(costs["postgres"]), rate]


class Stand:
    """The servers, with the mailboxes that sessions read."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.gateway = environment.gateway
        for kind, count, octets in (("u", MAILS, OCTETS), ("l", LARGE_MAILS, LARGE_OCTETS)):
            for user in range(USERS):
                self.gateway.fill(f"{kind}{user}@{DOMAIN}", (mail(octets, each) for each in range(count)))
        self.gateway.wait_until_idle()
        self._sign = "-"

    def used(self) -> Mapping[str, float]:
        """Return the processor seconds so far of imap_out and PostgreSQL."""
        return {name: seconds for name, seconds in self.gateway.used().items() if name in ("imap_out", "postgres")}

    def memory(self) -> int:
        """Return the memory of imap_out: octets."""
        found = memory(tree(self.gateway.pids()["imap_out"]))
        if not found:
            raise Wrong("the process of imap_out is not there")
        return found

    @contextmanager
    def idling(self, sessions: int = SESSIONS) -> Iterator[None]:
        """Keep sessions in IDLE during the block."""
        with holding(
            "imap_load", "idle", port=self.gateway.settings.imaps_port, user=f"u{{i}}@{DOMAIN}", users=USERS,
            password=PASSWORD, sessions=sessions, tls=True,
        ):  # fmt: skip
            yield

    # ------------------------------------------------------------------------------------------ work

    def check(self) -> Run:
        """Check a known mailbox, as a client does that does not stay connected."""
        return self._load("poll", "u", MAILS, sessions=_CHECKS, concurrency=16)

    def forget(self) -> None:
        """Let the service know nothing of the mails, as if nobody had asked for them yet."""
        self.gateway.connection.execute("truncate mail_structures")
        restart(self._environment, "ours", "u")

    def first_overview(self) -> Run:
        """Fetch envelopes and structures of mails that nobody has asked for yet."""
        self.forget()
        return self.overview()

    def overview(self) -> Run:
        """Fetch envelopes and structures."""
        return self._load("overview", "u", MAILS, sessions=USERS, concurrency=4)

    def read(self, kind: str, mails: int, octets: int) -> Run:
        """Fetch mails, a command each."""
        return self._load("read", kind, mails, octets=octets, sessions=USERS, concurrency=16)

    def append(self, octets: int) -> Run:
        """Store mails."""
        return self._load("append", "a", APPENDED, octets=octets, sessions=USERS, concurrency=16)

    def store(self) -> Run:
        """Change a flag of one mail after the other."""
        self._sign = "-" if self._sign == "+" else "+"
        return self._load("store", "u", MAILS, sessions=USERS, concurrency=16, sign=self._sign)

    def search(self) -> Run:
        """Search subjects and bodies."""
        return self._load("search", "u", MAILS, sessions=USERS, concurrency=4, text='BODY "not there"', found=0)

    def news(self) -> Run:
        """Deliver mails to people whose sessions wait. The items are reports to sessions."""

        def work() -> Run:
            began = time.perf_counter()
            for user in range(USERS):
                generate(
                    "smtp_load", port=self.gateway.settings.smtp_port, user=f"a0@{DOMAIN}", sender=f"a0@{DOMAIN}",
                    password=PASSWORD, recipient=f"u{user}@{DOMAIN}", mails=_NEWS, octets=OCTETS, pause=_NEWS_PAUSE,
                )  # fmt: skip
            return Run(_NEWS * SESSIONS, time.perf_counter() - began)

        with self.idling():
            return measured(work, self.used)

    def wait(self) -> Run:
        """Let sessions wait. The items are minutes of a session; what the process does without any is subtracted."""

        def work() -> Run:
            time.sleep(_QUIET_SECONDS)
            return Run(round(MANY_SESSIONS * _QUIET_SECONDS / 60), _QUIET_SECONDS)

        alone = measured(work, self.used)
        with self.idling(MANY_SESSIONS):
            run = measured(work, self.used)
        more = {name: max(0.0, seconds - alone.processor[name]) for name, seconds in run.processor.items()}
        return replace(run, processor=more)

    def _load(self, mode: str, kind: str, mails: int, **options: object) -> Run:
        run = load(self._environment, "ours", mode, kind, mails, **options)
        return replace(run, processor={name: run.processor[name] for name in ("imap_out", "postgres")})

    def works(self) -> list[Work]:
        """Return all kinds of work, in their order."""
        return [
            Work("login, SELECT, UID FETCH 1:* FLAGS of 1,000 mails", "check", self.check),
            Work("FETCH (ENVELOPE BODYSTRUCTURE FLAGS), the first time", "mail", self.first_overview),
            Work("the same again", "mail", self.overview),
            Work("UID FETCH of a mail of 10 KB", "mail", partial(self.read, "u", MAILS, OCTETS)),
            Work("APPEND of a mail of 75 KB", "mail", partial(self.append, APPENDED_OCTETS)),
            Work("UID FETCH of a mail of 75 KB", "mail", partial(self.read, "a", APPENDED, APPENDED_OCTETS)),
            Work("UID FETCH of a mail of 5 MB", "mail", partial(self.read, "l", LARGE_MAILS, LARGE_OCTETS)),
            Work("UID STORE of a mail", "mail", self.store),
            Work("SEARCH BODY in 1,000 mails", "mail", self.search),
            Work("a mail that a session in IDLE hears of", "session", self.news),
            Work("a session in IDLE without news", "minute", self.wait),
        ]

    # ------------------------------------------------------------------------------------------ memory

    def memories(self) -> list[tuple[str, float, str]]:
        """Return the memory of the process at rest, of a session in IDLE, and at most: name, figure, unit."""
        restart(self._environment, "ours", "u")
        rest = self.memory()
        with self.idling():
            idle = self.memory()
        found = [
            ("at rest", rest / _MEBI, "MiB"),
            ("a session in IDLE under TLS", (idle - rest) / SESSIONS / 1e3, "kB"),
        ]
        for name, work in (
            ("16 sessions read mails of 5 MB", partial(self.read, "l", LARGE_MAILS, LARGE_OCTETS)),
            ("16 sessions append mails of 75 KB", partial(self.append, APPENDED_OCTETS)),
            ("4 sessions fetch envelopes and structures, the first time", self.overview),
            ("4 sessions search bodies", self.search),
        ):
            self.forget()
            with self.idling(), self._highest() as highest:
                work()
            found.append((f"at most, {SESSIONS} sessions in IDLE, {name}", highest[0] / _MEBI, "MiB"))
        return found

    @contextmanager
    def _highest(self) -> Iterator[list[int]]:
        """Provide a list with the highest memory of imap_out during the block: octets."""
        highest, over = [self.memory()], threading.Event()
        processes = tree(self.gateway.pids()["imap_out"])

        def watch() -> None:
            while not over.wait(_SAMPLE_SECONDS):
                highest[0] = max(highest[0], memory(processes))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield highest
        finally:
            over.set()
            thread.join()


# ------------------------------------------------------------------------------------------ the report


def report(works: Sequence[Work], memories: Sequence[tuple[str, float, str]], fsync: float, runs: int) -> str:
    """Return the page."""
    columns = ("work", "a", "imap_out, ms", "PostgreSQL, ms", "a second")
    used = markdown_table(columns, [work.cells() for work in works])
    held = markdown_table(
        ("imap_out", "memory"), [[name, f"{number(figure)} {unit}"] for name, figure, unit in memories]
    )
    counted = f"{runs} run{'s' * (runs > 1)}"
    conditions = f"{machine.processor()} with {os.cpu_count()} cores, fsync {machine.words(fsync)}"
    return (
        "# Results of `bench.sizing_imap`\n\n"
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `python -m bench.sizing_imap {' '.join(sys.argv[1:])}`, {counted}, "
        f"on {conditions}. Times are those of a core, the median of the runs; rates are median [min..max] of what one "
        "process did beside all other programs of the machine. A session in IDLE has selected an INBOX of 1,000 mails; "
        "for the mail that it hears of, PostgreSQL's time contains submission and delivery. Memory is PSS.\n\n"
        f"{used}\n\n{held}\n"
    )


def main() -> None:
    """Measure, print the report, and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.sizing_imap")
    parser.add_argument("--runs", type=int, default=3, help="number of runs of each work")
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: needs root, because smtp-sink runs as a user of its own")
    try:
        with scratch() as folder, Environment(folder) as environment:
            stand = Stand(environment)
            memories = stand.memories()
            works = stand.works()
            for _ in range(options.runs):
                for work in works:
                    work.runs.append(work.run())
                    print(f"{work.name}: {work.runs[-1].rate:.0f}/s", file=sys.stderr)
            text = report(works, memories, machine.fsync_seconds(stand.gateway.settings.data), options.runs)
    except (Permanent, Temporary, Wrong) as error:
        sys.exit(f"bench: {error}")
    print(text)
    if not options.no_write:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
