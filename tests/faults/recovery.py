"""Measures the time until mail flows again after each fault: ``python -m tests.faults.recovery [NAME …]``.

Mail is offered during each fault, and no operator acts. When the failed part answers again, a new mail must be readable
and a new submission must be at the provider within ten seconds; after a full disk within a minute.
Where other programs use the processors, the limits grow in the proportion in which the start of a Python process does.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from tests.faults import clients
from tests.faults.books import Submitted
from tests.faults.clients import Gone
from tests.faults.faults import SERVICES
from tests.faults.mails import CUSTOMERS, PEOPLE, SUPPORT
from tests.faults.stand import Stand
from tests.servers import scratch

LASTS_SECONDS = 12.0
MOST_SECONDS = 10.0
MOST_AFTER_A_FULL_DISK = 60.0
GIVE_UP_SECONDS = 180.0
LEFT = 32 * 1024 * 1024
"""Room that is left on RabbitMQ's full disk: octets. A node without any room does not recover without a restart: see
test_full_disk.py."""

Act = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and its time limit."""

    name: str
    begin: Act
    end: Act  # returns as soon as the part answers again
    most: float = MOST_SECONDS  # limit from then on until mail flows


@dataclass(frozen=True, slots=True)
class Recovered:
    """The measured times: seconds from the end of a fault."""

    fault: Fault
    inward: float  # until a new mail was readable
    outward: float  # until a new submission was at the provider
    all: float  # until all mail that was offered meanwhile had arrived, too
    slowness: float  # of the machine, as ``measure_slowness``

    @property
    def most(self) -> float:
        """Seconds that may pass on this machine."""
        return self.fault.most * self.slowness

    @property
    def well(self) -> bool:
        """Whether new mail flowed in time."""
        return max(self.inward, self.outward) <= self.most

    def __str__(self) -> str:
        figures = f"{self.inward:8.1f} {self.outward:8.1f} {self.all:8.1f} {self.slowness:8.1f} {self.most:6.0f}"
        return f"{self.fault.name:42} {figures}  {'ok' if self.well else 'TOO LATE'}"


def measure_slowness() -> float:
    """How many times longer a Python process takes than it computes: 1 if no other program uses the processors."""
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", "import asyncio, psycopg, pydantic"])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return max(1.0, (time.monotonic() - began) / (usage.ru_utime + usage.ru_stime))


class Recovery:
    """Measures one fault after the other on one running system."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._numbers = itertools.count(1)
        self._got: dict[bytes, bytes] = {}

    def faults(self) -> list[Fault]:
        """Return all faults."""
        found = [Fault(f"{name} killed", self._kill(name), _nothing) for name in SERVICES]
        found += [
            Fault(f"{name} stopped", self._signal(name, signal.SIGSTOP), self._signal(name, signal.SIGCONT))
            for name in SERVICES
        ]
        postgres, rabbitmq = self._stand.postgres.answers, self._stand.rabbitmq.answers
        found += [
            Fault(
                "postgres away (fast shutdown)", self._end("postgres", signal.SIGINT), self._start("postgres", postgres)
            ),
            Fault(
                "postgres away (immediate)", self._end("postgres", signal.SIGQUIT), self._start("postgres", postgres)
            ),
            Fault(
                "rabbitmq away (terminated)", self._end("rabbitmq", signal.SIGTERM), self._start("rabbitmq", rabbitmq)
            ),
            Fault("rabbitmq away (killed)", self._end("rabbitmq", signal.SIGKILL), self._start("rabbitmq", rabbitmq)),
            Fault("rabbitmq wiped", self._wipe, self._start("rabbitmq", rabbitmq)),
        ]
        for name in ("database", "broker", "dovecot", "postfix"):
            proxy = self._stand.proxies[name]
            found += [
                Fault(f"connections to the {name} cut", _sync(proxy.cut), _nothing),
                Fault(f"network to the {name} silent", _sync(proxy.silence), proxy.resume),
                Fault(f"network to the {name} away", proxy.leave, proxy.resume),
            ]
        for name, left in (("postgres", 0), ("rabbitmq", LEFT)):
            fill = partial(asyncio.to_thread, self._stand.disks[name].fill, left)
            found.append(Fault(f"disk of {name} full", fill, self._make_room(name), MOST_AFTER_A_FULL_DISK))
        found += [Fault(f"clock moved by {by}", self._clock(by), _nothing) for by in ("2 hours", "-2 hours", "0 hours")]
        return found

    async def measure(self, fault: Fault) -> Recovered:
        """Cause a fault, end it, and measure the recovery."""
        slow_before = await asyncio.to_thread(measure_slowness)
        await fault.begin()
        tasks = []
        meanwhile: list[tuple[str, str]] = []
        if fault.end is not _nothing:
            for _ in range(3):
                offered, task = await self._offer()
                meanwhile.append(offered)
                tasks.append(task)
                await asyncio.sleep(LASTS_SECONDS / 3)
        await fault.end()
        ended = time.monotonic()
        (inward, outward), task = await self._offer()
        try:
            times = await asyncio.gather(
                self._until_read(inward, ended),
                self._until_relayed(outward, ended),
                *(self._until_read(name, ended) for name, _ in meanwhile),
                *(self._until_relayed(name, ended) for _, name in meanwhile),
            )
            slowness = max(slow_before, await asyncio.to_thread(measure_slowness))
            return Recovered(fault, times[0], times[1], max(times), slowness)
        finally:
            for each in (*tasks, task):
                each.cancel()

    # ------------------------------------------------------------------------------------------ mail

    async def _offer(self) -> tuple[tuple[str, str], asyncio.Task[None]]:
        """Offer a mail for Alex, and start a submission by Alex. Return their tokens and the task of the submission."""
        inward, outward = f"rec-in-{next(self._numbers)}", f"rec-out-{next(self._numbers)}"
        mail = f'From: {CUSTOMERS[0]}\r\nTo: "Alex" <{SUPPORT}>\r\nSubject: {inward}\r\n\r\nHello\r\n'
        await asyncio.to_thread(self._stand.provider.put, SUPPORT, mail.encode())
        alex = PEOPLE["Alex"]
        mine = f"From: {alex}\r\nTo: {CUSTOMERS[0]}\r\nSubject: {outward}\r\n\r\nHi\r\n"
        submitted = Submitted(outward, alex, mine.encode(), (CUSTOMERS[0],))
        task = asyncio.create_task(clients.submit(self._stand.system.settings.smtp_port, submitted))
        return (inward, outward), task

    async def _until_read(self, name: str, since: float) -> float:
        while time.monotonic() < since + GIVE_UP_SECONDS:
            with suppress(Gone):
                await clients.read(self._stand.system.settings.pop3_port, PEOPLE["Alex"], self._got)
            if any(name.encode() + b"\r" in mail for mail in self._got.values()):
                return time.monotonic() - since
            await asyncio.sleep(0.2)
        return float("inf")

    async def _until_relayed(self, name: str, since: float) -> float:
        while time.monotonic() < since + GIVE_UP_SECONDS:
            mails = await asyncio.to_thread(self._stand.provider.mail_of, CUSTOMERS[0])
            if any(name.encode() + b"\n" in mail for mail in mails):
                return time.monotonic() - since
            await asyncio.sleep(0.2)
        return float("inf")

    # ------------------------------------------------------------------------------------------ faults

    def _kill(self, service: str) -> Act:
        return self._signal(service, signal.SIGKILL)

    def _signal(self, service: str, number: signal.Signals) -> Act:
        async def act() -> None:
            await asyncio.to_thread(self._stand.kill, service, number)

        return act

    def _end(self, name: str, way: signal.Signals) -> Act:
        async def act() -> None:
            await self._stand.servers[name].end(way)

        return act

    async def _wipe(self) -> None:
        await self._stand.servers["rabbitmq"].end(signal.SIGKILL)
        await asyncio.to_thread(self._stand.wipe_broker)

    def _start(self, name: str, answers: Callable[[], bool]) -> Act:
        async def act() -> None:
            self._stand.servers[name].start()
            await self._stand.answering(answers)

        return act

    def _make_room(self, name: str) -> Act:
        async def act() -> None:
            await asyncio.to_thread(self._stand.disks[name].empty)
            self._stand.servers[name].start()  # does nothing if the server has survived

        return act

    def _clock(self, by: str) -> Act:
        async def act() -> None:
            await asyncio.to_thread(self._stand.ask, "update skewed.clock set ahead = %s::interval", by)

        return act


async def _nothing() -> None:
    """Do nothing: the fault has no duration."""


def _sync(act: Callable[[], object]) -> Act:
    async def acts() -> None:
        act()

    return acts


def main() -> None:
    """Run the command. The exit status is 1 if mail flowed too late after a fault."""
    wanted = sys.argv[1:]
    with scratch() as folder, Stand(folder).running() as stand:

        async def work() -> list[Recovered]:
            found = []
            async with stand.open():
                recovery = Recovery(stand)
                for fault in recovery.faults():
                    if not wanted or any(word in fault.name for word in wanted):
                        found.append(await recovery.measure(fault))
                        print(found[-1], flush=True)
            return found

        print(
            f"{'fault':42} {'mail in':>8} {'mail out':>8} {'all':>8} {'slowness':>8} {'most':>6}  (seconds after it)",
            flush=True,
        )
        sys.exit(0 if all(each.well for each in asyncio.run(work())) else 1)


if __name__ == "__main__":
    main()
