"""Measures the delays of honest users while an outsider and a user send the worst mails: ``make hostile``.

``python -m tests.faults.hostile [--mails N] [--kinds WORD,…]`` puts the mails of ``hostile_mails`` into the maildrop of
one account, and submits the worst headers through it; a client fetches, searches and sorts them by IMAP. Meanwhile
honest mails arrive at another account, read by POP3 and by IMAP, and a browser opens the pages of the console. The
goals are checked at the end: honest mail is readable in time, no process exceeds two thirds of its memory limit or
ends, no event loop is blocked, pages answer, and no operator has to act.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import smtplib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ruamel.yaml import YAML

from shared.settings import SERVICES
from tests.company import local
from tests.console import Browser
from tests.faults import clients, hostile_mails
from tests.faults.clients import Gone
from tests.faults.hostile_imap import ImapMeasurements, wait_for_honest, work_on_the_worst
from tests.faults.loop_watch import BEGIN, LOOPS, LongestStop, read_longest
from tests.servers import scratch
from tests.system import PASSWORD, System, running

ROOT = Path(__file__).parents[2]
ATTACKED, HONEST = "support@company.com", "sales@company.com"
AUTHOR, READER, IMAP_READER = "alex@local.com", "kim@local.com", "tom@local.com"
CUSTOMER = "anna@customer.example"
MAILS = 2000
SUBMISSIONS = 20
MIB = 1024 * 1024

READABLE_SECONDS = 5.0
"""Goal of an honest mail, from the provider's maildrop to the mail client, 99th percentile: seconds."""
PAGE_SECONDS = 1.0
"""Goal of a page of the console: seconds."""
LOOP_SECONDS = 0.1
"""Goal of the time that an event loop is blocked: seconds of processor time."""
MEMORY_SHARE = 2 / 3
"""Goal of a process' memory: share of the limit in docker-compose.yml."""

HONEST_PAUSE_SECONDS = 0.5
PAGE_PAUSE_SECONDS = 0.5
GIVE_UP_SECONDS = 1200.0
"""Limits the wait until the last worst mail is delivered: seconds."""
PAGES = (
    "/",
    "/mail",
    "/mail?q=customer",
    "/names",
    "/answers",
    "/queue",
    "/external",
    f"/external/{ATTACKED}",
    "/local",
    "/audit",
)


@dataclass(slots=True)
class Honest:
    """The measurements of honest users."""

    readable: list[float] = field(default_factory=list)  # seconds until each honest mail was readable
    missing: int = 0  # honest mails that were never readable
    pages: list[tuple[float, str]] = field(default_factory=list)  # seconds and path of each page of the console
    failed_pages: list[str] = field(default_factory=list)  # path and reason
    imap: ImapMeasurements = field(default_factory=ImapMeasurements)


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a run."""

    lines: list[str]  # to be printed
    missed: list[str]  # the goals that were not met
    broken: list[str]  # what needs an operator


def measure(folder: Path, mails: int, kinds: Sequence[str] = ()) -> Measured:
    """Run the whole system under attack. :param kinds: names from ``hostile_mails.kinds``; empty: all of them."""
    loops = folder / "loops"
    loops.mkdir()
    environment = {"PYTHONPATH": str(Path(__file__).parent / "inject"), LOOPS: str(loops)}
    with patch.dict(os.environ, environment), running(folder) as system:
        system.apply(
            {
                "external_accounts": [system.external(ATTACKED), system.external(HONEST)],
                "local_accounts": [local("Alex"), local("Jim"), local("Kim", HONEST), local("Tom", HONEST)],
            }
        )
        system.provider.add_mailbox(CUSTOMER, PASSWORD)
        before = {name: system.instance.pids()[name] for name in SERVICES}
        honest = Honest()
        stop = threading.Event()
        (loops / BEGIN).touch()
        started = time.monotonic()
        port = system.settings.imap_port
        with _beside(
            stop,
            lambda: _send_honest(system, honest, stop),
            lambda: _open_pages(system, honest, stop),
            lambda: work_on_the_worst(port, AUTHOR, honest.imap, stop),
            lambda: wait_for_honest(port, IMAP_READER, honest.imap, stop),
        ):
            worst = _offer(system, mails, kinds)
            offered = time.monotonic() - started
            _submit_worst(system)
            arrived = _wait_for(lambda: _at_rest(system, worst))
            passed = time.monotonic() - started
        memory = {name: _peak_octets(pid) for name, pid in before.items()}
        restarted = [name for name, pid in before.items() if system.instance.pids().get(name) != pid]
        status = system.json("status")
    broken = [f"{name} ended" for name in restarted] + list(status["problems"])
    broken += [] if arrived else ["not all of the worst mails were delivered"]
    broken += [f"{honest.missing} honest mails were not readable"] if honest.missing else []
    broken += [f"{honest.imap.missing} honest mails were not readable by IMAP"] if honest.imap.missing else []
    broken += sorted(set(honest.failed_pages)) + sorted(set(honest.imap.failures))
    heading = f"{worst} of the worst mails put into the maildrop in {offered:.0f} s, all delivered after {passed:.0f} s"
    return _judge(heading, honest, memory, read_longest(loops), broken)


@contextmanager
def _beside(stop: threading.Event, *works: Callable[[], None]) -> Iterator[None]:
    """Run each function in its own thread during the block, and set ``stop`` at its end."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# ------------------------------------------------------------------------------------------ the attack


def _offer(system: System, mails: int, kinds: Sequence[str]) -> int:
    """Put the worst mails into the maildrop, one of each kind in turn. :return: their number."""
    chosen = [make for name, make in hostile_mails.kinds().items() if not kinds or name in kinds]
    for number in range(mails):
        system.provider.put(ATTACKED, chosen[number % len(chosen)](number))
    return mails


def _submit_worst(system: System) -> None:
    """Submit the worst headers that smtp_in accepts, as a user with a valid login."""
    for number in range(SUBMISSIONS):
        mail = hostile_mails.submission(number, CUSTOMER, hostile_mails.SUBMISSION_OCTETS, AUTHOR)
        with smtplib.SMTP("127.0.0.1", system.settings.smtp_port, timeout=120) as smtp:
            smtp.login(AUTHOR, PASSWORD)
            smtp.sendmail(AUTHOR, [CUSTOMER], mail)


def _at_rest(system: System, mails: int) -> bool:
    """Return whether every worst mail has been delivered, and every worst submission is at the provider."""
    books = system.json("status")["books"][ATTACKED]
    relayed = len(system.provider.mail_of(CUSTOMER))
    return bool(books["fetched"] >= mails and books["in_flight"] == 0 and relayed == SUBMISSIONS)


def _wait_for(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)
    return True


# ------------------------------------------------------------------------------------------ honest users


def _send_honest(system: System, honest: Honest, stop: threading.Event) -> None:
    """Send mail to the other account, and read it by POP3 as soon as it is listed."""
    waiting: dict[bytes, float] = {}
    got: dict[bytes, bytes] = {}
    seen = 0
    number = 0
    sent_at = float("-inf")
    deadline = float("inf")
    while waiting or not stop.is_set():
        now = time.monotonic()
        if stop.is_set():
            deadline = min(deadline, now + 30.0)
            if now > deadline:
                break
        elif now - sent_at >= HONEST_PAUSE_SECONDS:
            token = b"honest-%d-" % number
            number += 1
            sent_at = now
            waiting[token] = honest.imap.sent[token] = now
            system.provider.put(HONEST, b"From: %s\r\nTo: %s\r\nSubject: %s\r\n\r\nHello\r\n" % (
                CUSTOMER.encode(), HONEST.encode(), token
            ))  # fmt: skip
        with suppress(Gone):
            asyncio.run(clients.read(system.settings.pop3_port, READER, got))
        now = time.monotonic()
        for mail in list(got.values())[seen:]:
            for token in [token for token in waiting if token in mail]:
                honest.readable.append(now - waiting.pop(token))
        seen = len(got)
        time.sleep(0.1)
    honest.missing = len(waiting)


def _open_pages(system: System, honest: Honest, stop: threading.Event) -> None:
    """Open the pages of the console one after the other."""
    browser = Browser(system.instance.urls()["console"])
    browser.sign_in(password=system.settings.admin_password or "")
    while not stop.is_set():
        for page in PAGES:
            started = time.monotonic()
            try:
                answer = browser.get(page)
                if answer.status_code != 200:
                    honest.failed_pages.append(f"{page} answered {answer.status_code}")
            except OSError as error:
                honest.failed_pages.append(f"{page}: {error}")
            honest.pages.append((time.monotonic() - started, page))
            if stop.wait(PAGE_PAUSE_SECONDS):
                return


# ------------------------------------------------------------------------------------------ judging


def _peak_octets(pid: int) -> int:
    """Return the largest resident memory that a process ever had; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def memory_limits() -> dict[str, int]:
    """Return the memory limits of the services in docker-compose.yml: octets."""
    document: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    return {name: int(document["services"][name]["mem_limit"].removesuffix("m")) * MIB for name in SERVICES}


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("inf")


def _judge(
    heading: str, honest: Honest, memory: dict[str, int], loops: Sequence[LongestStop], broken: list[str]
) -> Measured:
    limits = memory_limits()
    rows: list[tuple[str, float, float, str]] = [
        ("honest mail readable, 99th percentile, s", _percentile(honest.readable, 0.99), READABLE_SECONDS, ""),
        ("the same by IMAP, s", _percentile(honest.imap.readable, 0.99), READABLE_SECONDS, ""),
        ("console page, longest, s", *_longest(honest.pages, PAGE_SECONDS)),
    ]
    rows += [
        (f"{name}: memory at its peak, MiB", memory[name] / MIB, MEMORY_SHARE * limits[name] / MIB, "")
        for name in SERVICES
    ]
    longest = {each.service: each for each in sorted(loops, key=lambda each: each.processor)}
    rows += [
        (
            f"{name}: longest block of the loop, processor s",
            longest[name].processor,
            LOOP_SECONDS,
            f"{longest[name].wall:.2f} s elapsed; {longest[name].doing}",
        )
        for name in SERVICES
        if name in longest
    ]
    missed = [name for name, value, goal, _ in rows if value > goal]
    median = statistics.median(honest.readable) if honest.readable else float("inf")
    lines = [
        heading,
        f"{len(honest.readable)} honest mails, median {median:.2f} s; {len(honest.pages)} pages; "
        f"{honest.imap.commands} commands by IMAP on the worst mails",
    ]
    lines += [
        f"{name:45} {value:9.2f} {goal:9.2f}  {'ok' if value <= goal else 'MISSED'}  {note}".rstrip()
        for name, value, goal, note in rows
    ]
    return Measured(lines + [f"needs an operator: {what}" for what in broken], missed, broken)


def _longest(pages: Sequence[tuple[float, str]], goal: float) -> tuple[float, float, str]:
    seconds, page = max(pages, default=(float("inf"), "none"))
    return seconds, goal, page


def main() -> None:
    """Run the command. The exit status is 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mails", type=int, default=MAILS)
    parser.add_argument("--kinds", default="", help="names of kinds, separated by commas")
    words = parser.parse_args()
    with scratch() as folder:
        measured = measure(folder, words.mails, tuple(filter(None, words.kinds.split(","))))
    print("\n".join(measured.lines))
    sys.exit(1 if measured.missed or measured.broken else 0)


if __name__ == "__main__":
    main()
