"""Runs half an hour at 20 mails a second, and checks that no service grows in memory or open files.

    python -m bench.soak --minutes 30 --rate 20

The whole system runs as with ``up``, with a provider of real Dovecot and Postfix. Half of the mails are in the
provider's maildrops, are fetched, deleted there, delivered, read by POP3 and deleted; half are submitted and relayed.
Every ten seconds the memory (PSS) and the open files of each process are recorded. At the end every mail must have
arrived exactly once. It writes ``bench/SOAK.md`` and ``bench/SOAK.svg``; the exit status is 1 if a service grows or a
mail is missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import poplib
import re
import smtplib
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import processor
from bench.processes import PROC, memory, tree
from shared.settings import SERVICES
from tests.servers import scratch
from tests.system import PASSWORD, System, running, until

FOLDER = Path(__file__).parent
SAMPLE_SECONDS = 10.0
READ_SECONDS = 5.0
SESSION_MAILS = 100
"""Mails that are submitted over one connection."""
CUSTOMER = "anna@customer.example"
TEAMS = {"support@company.com": ("Alex", "Jim"), "sales@company.com": ("Kim", "Tom")}
MEMORY_GROWTH, FILES_GROWTH = 0.05, 5
"""Limits the growth from the second quarter of the time to the last one: share of the memory (beyond 2 MiB), files."""
SLACK_OCTETS = 2 * 1024 * 1024
MIB = 1024 * 1024
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#17becf", "#bcbd22")


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of one process."""

    at: float  # seconds from the start
    octets: int  # PSS
    files: int  # open files


@dataclass(slots=True)
class Load:
    """The mails that were sent and received, by their tokens."""

    offered: dict[str, str] = field(default_factory=dict)
    read: Counter[tuple[str, str]] = field(default_factory=Counter)
    submitted: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


def mail(token: str, to: str) -> bytes:
    """Return a mail of about 4 KB."""
    return (
        f"From: {CUSTOMER}\r\nTo: {to}\r\nSubject: {token}\r\nMessage-ID: <{token}@soak.example>\r\n\r\n"
        + "A line of some length, so that the mail has a size.\r\n" * 75
    ).encode()


# ---------------------------------------------------------------------------------------------- load


def each(seconds: float, stop: threading.Event, work: Callable[[int], None], load: Load) -> None:
    """Do the work at a steady rate until stopped; after a delay, catch up."""
    began, number = time.monotonic(), 0
    while not stop.wait(max(0.0, began + number * seconds - time.monotonic())):
        try:
            work(number)
        except Exception as error:  # the mail counts as missing, and the report names the error
            load.failures.append(f"{work.__name__}: {error!r}")
        number += 1


class Clients:
    """The customers and mail clients that send and read."""

    def __init__(self, system: System, load: Load) -> None:
        self._system = system
        self._load = load
        self._smtp: smtplib.SMTP | None = None
        self._sent = 0

    def offer(self, number: int) -> None:
        """Put a mail to one person into the provider's maildrop."""
        address = list(TEAMS)[number % 2]
        name = TEAMS[address][number // 2 % 2]
        token = f"in-{number}"
        self._system.provider.put(address, mail(token, f'"{name}" <{address}>'))
        self._load.offered[token] = f"{name.lower()}@local.com"

    def submit(self, number: int) -> None:
        """Submit a mail from Alex to the customer."""
        if self._smtp is None or self._sent >= SESSION_MAILS:
            if self._smtp is not None:
                self._smtp.quit()
            self._smtp, self._sent = smtplib.SMTP("127.0.0.1", self._system.settings.smtp_port, timeout=60), 0
            self._smtp.login("alex@local.com", PASSWORD)
        token = f"out-{number}"
        body = mail(token, CUSTOMER).replace(f"From: {CUSTOMER}".encode(), b"From: alex@local.com")
        try:
            self._smtp.sendmail("alex@local.com", [CUSTOMER], body)
        except Exception:  # after any error the next mail uses a new connection
            self._smtp = None
            raise
        self._sent += 1
        self._load.submitted.add(token)

    def read(self, number: int) -> None:
        """Read and delete the mails of everybody."""
        for name in (name for team in TEAMS.values() for name in team):
            address = f"{name.lower()}@local.com"
            session = poplib.POP3("127.0.0.1", self._system.settings.pop3_port, timeout=60)
            session.user(address)
            session.pass_(PASSWORD)
            tokens = []
            for position in range(1, session.stat()[0] + 1):
                for line in session.retr(position)[1][:20]:
                    if line.startswith(b"Subject: "):
                        tokens.append(line[9:].decode())
                session.dele(position)
            session.quit()
            self._load.read.update((token, address) for token in tokens)


# ---------------------------------------------------------------------------------------------- samples


def sample(system: System, at: float, samples: dict[str, list[Sample]]) -> None:
    """Add a sample of each process; a server counts with its children."""
    for name, pid in system.instance.pids().items():
        pids = [pid] if name in SERVICES else tree(pid)
        samples.setdefault(name, []).append(Sample(at, memory(pids), sum(map(open_files, pids))))


def open_files(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    with suppress(OSError):
        return len(os.listdir(PROC / str(pid) / "fd"))
    return 0


def quarters(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the second and of the last quarter of the time; the first one is the warm-up. Pure."""
    step = max(1, len(values) // 4)
    return statistics.median(values[step : 2 * step] or values), statistics.median(values[-step:])


def grows(samples: Sequence[Sample]) -> bool:
    """Return whether a process has grown beyond the limits. Pure."""
    before, after = quarters([each.octets for each in samples])
    files_before, files_after = quarters([each.files for each in samples])
    return after > before * (1 + MEMORY_GROWTH) + SLACK_OCTETS or files_after > files_before + FILES_GROWTH


# ---------------------------------------------------------------------------------------------- report


def report(by_process: dict[str, list[Sample]], lines: Sequence[str]) -> str:
    """Return the text of SOAK.md. Pure."""
    rows = ["| process | PSS, second quarter | last quarter | open files, second quarter | last quarter | verdict |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for name, samples in by_process.items():
        megabytes = " | ".join(f"{value / MIB:.1f} MiB" for value in quarters([each.octets for each in samples]))
        files = " | ".join(f"{value:.0f}" for value in quarters([each.files for each in samples]))
        verdict = "**grows**" if grows(samples) else "flat"
        rows.append(f"| {name} | {megabytes} | {files} | {verdict if name in SERVICES else 'a server: not judged'} |")
    return "\n".join(["# Soak", "", *lines, "", *rows, "", "![memory and open files](SOAK.svg)", ""])


def draw(found: dict[str, list[Sample]]) -> str:
    """Draw the samples as SVG: memory above, open files below. Pure."""
    width, height, left, gap = 900, 260, 60, 50
    end = max((each.at for samples in found.values() for each in samples), default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 220} {2 * (height + gap)}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    panels: list[tuple[str, Callable[[Sample], float]]] = [
        ("memory (PSS), MiB", lambda each: each.octets / MIB),
        ("open files", lambda each: each.files),
    ]
    for panel, (title, value) in enumerate(panels):
        top = panel * (height + gap) + 25
        highest = max((value(each) for samples in found.values() for each in samples), default=1.0) * 1.05 or 1.0
        parts.append(f'<text x="{left}" y="{top - 8}" font-weight="bold">{title}</text>')
        for line in range(5):
            y = top + height - line * height / 4
            parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{highest * line / 4:.0f}</text>')
        for number, (name, samples) in enumerate(found.items()):
            colour = COLOURS[number % len(COLOURS)]
            points = " ".join(
                f"{left + each.at / end * (width - left):.1f},{top + height - value(each) / highest * height:.1f}"
                for each in samples
            )
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>')
            parts.append(f'<text x="{width + 10}" y="{top + 14 + 18 * number}" fill="{colour}">{name}</text>')
        parts.append(f'<text x="{width}" y="{top + height + 16}" text-anchor="end">{end / 60:.0f} min</text>')
    return "\n".join([*parts, "</svg>", ""])


def missing(system: System, load: Load) -> list[str]:
    """Return descriptions of mails that are missing, duplicate or misdirected, and of failures."""
    expected = Counter(load.offered.items())
    relayed = Counter(
        found[1].decode()
        for body in system.provider.mail_of(CUSTOMER)
        if (found := re.search(rb"^Subject: (out-\d+)", body, re.M))
    )
    wanted = Counter(load.submitted)
    differences = {
        "offered and not read": (expected - load.read).total(),
        "read and not expected, or twice": (load.read - expected).total(),
        "submitted and not relayed": (wanted - relayed).total(),
        "relayed and not submitted, or twice": (relayed - wanted).total(),
        "failures of the clients": len(load.failures),
    }
    return [f"{count} {words}" for words, count in differences.items() if count] + load.failures[:5]


def soak(system: System, minutes: float, rate: float) -> tuple[dict[str, list[Sample]], Load]:
    """Run the load and take samples. :return: samples by process, and the mails."""
    system.provider.add_mailbox(CUSTOMER, PASSWORD)
    company = system.company()
    for account in company["external_accounts"]:
        account |= {"delete_after_days": 0}
    system.apply(company)
    load, stop, found = Load(), threading.Event(), dict[str, list[Sample]]()
    clients, readers = Clients(system, load), threading.Event()
    threads = [
        threading.Thread(target=each, args=(2 / rate, stop, clients.offer, load)),
        threading.Thread(target=each, args=(2 / rate, stop, clients.submit, load)),
        threading.Thread(target=each, args=(READ_SECONDS, readers, clients.read, load)),
    ]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    try:
        while (at := time.monotonic() - began) < 60 * minutes:
            sample(system, at, found)
            time.sleep(SAMPLE_SECONDS)
    finally:
        stop.set()
        for thread in threads[:2]:
            thread.join()
        with suppress(AssertionError):
            until(lambda: load.read.total() >= len(load.offered) and not system.json("queue", "list"), 300)
        readers.set()
        threads[2].join()
    return found, load


def main() -> int:
    """Run the test, write the report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="mails a second, in and out together")
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder of SOAK.md and SOAK.svg")
    chosen = parser.parse_args()
    with scratch() as folder, running(folder) as system:
        began = time.monotonic()
        found, load = soak(system, chosen.minutes, chosen.rate)
        seconds = 60 * chosen.minutes
        mails = len(load.offered) + len(load.submitted)
        problems = missing(system, load)
        books = system.json("status")["books"]
        print(f"after {time.monotonic() - began:.0f} s", file=sys.stderr)
    growing = [name for name, samples in found.items() if name in SERVICES and grows(samples)]
    verdict = f"Growing: {', '.join(growing)}." if growing else "No process of ours grows."
    lines = [
        f"{len(load.offered)} mails in and {len(load.submitted)} out in {seconds / 60:g} minutes, "
        f"{mails / seconds:.1f} a second. {verdict}",
        "",
        f"Arrived exactly once: {'all' if not problems else '; '.join(problems)}.",
        "",
        f"Books: {books}.",
        "",
        f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}.",
    ]
    text = report(found, lines)
    (chosen.into / "SOAK.md").write_text(text, encoding="utf-8")
    (chosen.into / "SOAK.svg").write_text(draw(found), encoding="utf-8")
    print(text)
    return 1 if growing or problems else 0


if __name__ == "__main__":
    sys.exit(main())
