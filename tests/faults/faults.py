"""Causes the faults. Each kind has its own seeded random generator, so one seed makes the same choices again."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from tests.faults.plan import Plan
from tests.faults.stand import Stand
from tests.faults.steps import STEPS, order
from tests.scripted_pop3 import Answer, cut, say
from tests.scripted_smtp import CLOSE, SWALLOW

SERVICES = ("fetcher", "router", "mailbox", "pop3_out", "imap_out", "smtp_in", "sender")
STEP_SECONDS = 5.0
"""Wait for a service to reach the step at which it is to die: seconds; then it is killed at a random moment."""

CLOCKS = ("10 minutes", "-10 minutes", "2 hours", "-2 hours", "1 day", "0")

PROMPT_REPLIES = (
    ("END", CLOSE),
    ("END", SWALLOW),
    ("END", SWALLOW),
    ("DATA", CLOSE),
    ("MAIL", CLOSE),
    ("GREETING", CLOSE),
)
SLOW_REPLIES = (
    ("GREETING", "421 4.3.2 too busy"),
    ("MAIL", "451 4.3.0 not now"),
    ("AUTH", "454 4.7.0 not now"),
)
"""Replies after which the sender waits a minute or more, as it should."""


class Faults:
    """The faults of one run. happened: number of faults by name."""

    def __init__(self, stand: Stand, plan: Plan, seed: int) -> None:
        self.happened: Counter[str] = Counter()
        self._stand, self._plan, self._seed = stand, plan, seed
        self._down: set[str] = set()
        self._steps = Random(f"{seed} steps").sample(STEPS, len(STEPS))

    async def happen(self) -> None:
        """Cause the faults of all kinds concurrently, each kind spread over the time of the run."""
        plan = self._plan
        kinds: tuple[tuple[int, Callable[[Random, int], Awaitable[None]]], ...] = (
            (plan.kills, self._kill),
            (plan.restarts, self._restart_postgres),
            (plan.restarts + plan.wipes, self._restart_rabbitmq),
            (2 * plan.restarts, self._restart_provider),
            (plan.stops, self._stop_for_a_while),
            (plan.cuts, self._trouble_the_network),
            (plan.disks * 2, self._fill_a_disk),
            (plan.clocks, self._move_the_clock),
            (plan.misbehaviours, self._misbehave),
        )
        async with asyncio.TaskGroup() as group:
            for count, act in kinds:
                group.create_task(self._spread(count, act))

    async def _spread(self, count: int, act: Callable[[Random, int], Awaitable[None]]) -> None:
        chance = Random(f"{self._seed} {act.__name__}")
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(count):
            at = start + self._plan.seconds * (number + chance.random()) / count
            await asyncio.sleep(max(0.0, at - loop.time()))
            await act(chance, number)

    def note(self, what: str) -> None:
        """Count a fault, and print it."""
        self.happened[what] += 1
        print(f"{asyncio.get_running_loop().time():.1f} {what}", file=sys.stderr, flush=True)

    async def keep(self) -> None:
        """Restart servers that ended, as a supervisor does; never returns."""
        while True:
            for name, server in self._stand.servers.items():
                if not server.runs and name not in self._down:
                    self.note(f"{name} started again")
                    server.start()
            await asyncio.sleep(0.5)

    async def heal(self) -> None:
        """End every fault that still lasts."""
        stand = self._stand
        for disk in stand.disks.values():
            disk.empty()
        for proxy in stand.proxies.values():
            await proxy.resume()
        stand.pop3.answers = stand.imap.answers = {}
        stand.smtp.answers.clear()
        for file in stand.orders.iterdir():
            file.unlink(missing_ok=True)
        for service in SERVICES:
            await asyncio.to_thread(stand.kill, service, signal.SIGCONT)

    # ------------------------------------------------------------------------------------------ services

    async def _kill(self, chance: Random, number: int) -> None:
        """Kill two of three services at a named step, in turn, and the others at any moment."""
        if number % 3:
            step = self._steps[(number // 3 * 2 + number % 3 - 1) % len(STEPS)]
            if await self._reached(order(self._stand.orders, step)):
                self.note(f"killed: {step.service}: {step.name}")
                return
            service = step.service
        else:
            service = chance.choice(SERVICES)
        while not await asyncio.to_thread(self._stand.kill, service):  # noqa: ASYNC110  # the service is starting
            await asyncio.sleep(0.2)
        self.note(f"killed: {service}: at any moment")

    async def _reached(self, file: Path) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STEP_SECONDS
        while not (gone := not await asyncio.to_thread(file.exists)) and loop.time() < deadline:  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.05)
        await asyncio.to_thread(file.unlink, missing_ok=True)
        return gone

    async def _stop_for_a_while(self, chance: Random, number: int) -> None:
        service = chance.choice(SERVICES)
        if number % 4 == 3:
            self.note("starved")
            for _ in range(30):
                await asyncio.to_thread(self._stand.kill, service, signal.SIGSTOP)
                await asyncio.sleep(0.09)
                await asyncio.to_thread(self._stand.kill, service, signal.SIGCONT)
                await asyncio.sleep(0.01)
            return
        self.note("stopped and continued")
        await asyncio.to_thread(self._stand.kill, service, signal.SIGSTOP)
        await asyncio.sleep(chance.choice((0.3, 2.0, 8.0)))
        await asyncio.to_thread(self._stand.kill, service, signal.SIGCONT)

    # ------------------------------------------------------------------------------------------ servers

    async def _restart_postgres(self, chance: Random, number: int) -> None:
        way = (signal.SIGINT, signal.SIGQUIT)[number % 2]
        await self._restart("postgres", way, chance.choice((0.0, 2.0)))
        self.note(f"postgres restarted: {'immediate' if way == signal.SIGQUIT else 'fast'}")

    async def _restart_rabbitmq(self, chance: Random, number: int) -> None:
        every = (self._plan.restarts + self._plan.wipes) // max(1, self._plan.wipes)
        wiped = number % every == every - 1 and self.happened["rabbitmq wiped"] < self._plan.wipes
        await self._restart("rabbitmq", chance.choice((signal.SIGTERM, signal.SIGKILL)), 0.0, wiped)
        self.note("rabbitmq wiped" if wiped else "rabbitmq restarted")
        await self._stand.answering(self._stand.rabbitmq.answers)

    async def _restart(self, name: str, way: signal.Signals, pause: float, wiped: bool = False) -> None:
        server = self._stand.servers[name]
        self._down.add(name)
        if server.runs:
            await server.end(way)
        await asyncio.sleep(pause)
        if wiped:
            self._stand.wipe_broker()
        server.start()
        self._down.discard(name)

    async def _restart_provider(self, chance: Random, number: int) -> None:
        provider = self._stand.provider
        name = ("dovecot", "postfix")[number % 2]
        await asyncio.to_thread(provider.stop_program, name)
        await asyncio.sleep(chance.choice((0.0, 1.0)))
        provider.start_program(name)
        self.note(f"{name} restarted")

    # ------------------------------------------------------------------------------------------ the rest

    async def _trouble_the_network(self, chance: Random, number: int) -> None:
        name = chance.choice(list(self._stand.proxies))
        proxy = self._stand.proxies[name]
        what = chance.choice(("cut", "slow", "silent", "away"))
        self.note(f"network {what}")
        match what:
            case "cut":
                proxy.cut()
            case "slow":
                proxy.delay = chance.choice((0.02, 0.2))
                await asyncio.sleep(2.0)
            case "silent":
                proxy.silence()
                await asyncio.sleep(chance.choice((0.5, 4.0)))
            case "away":
                await proxy.leave()
                await asyncio.sleep(chance.choice((0.5, 3.0)))
        await proxy.resume()

    async def _fill_a_disk(self, chance: Random, number: int) -> None:
        name = ("postgres", "rabbitmq")[number % 2]
        self.note(f"disk of {name} full")
        await asyncio.to_thread(self._stand.disks[name].fill)
        await asyncio.sleep(chance.choice((3.0, 12.0)))
        self._stand.disks[name].empty()

    async def _move_the_clock(self, chance: Random, number: int) -> None:
        ahead = CLOCKS[number % len(CLOCKS)]
        for _ in range(50):
            try:
                await asyncio.to_thread(self._stand.ask, "update skewed.clock set ahead = %s::interval", ahead)
            except Exception:  # the server is restarting
                await asyncio.sleep(0.5)
            else:
                self.note("clock moved")
                return

    async def _misbehave(self, chance: Random, number: int) -> None:
        """Let the provider of sales@ or desk@ fail in a way that real providers fail."""
        stand = self._stand
        if number % 4 == 2:
            await self._misbehave_by_imap(chance)
            return
        if number % 2:
            verb, reply = chance.choice(PROMPT_REPLIES + (SLOW_REPLIES if self._plan.slow_retries else ()))
            stand.smtp.say(verb, reply)
            self.note(f"provider: {verb} {reply[:9]}")
            return
        what: dict[str, Answer] = chance.choice(
            (
                {"QUIT": cut()},
                {"PASS": say(b"-ERR [IN-USE] mailbox is locked\r\n")},
                {"PASS": say(b"-ERR [SYS/TEMP] not now\r\n")},
                {"UIDL": cut(b"+OK\r\n1 ")},
                {"UIDL": say(b"* garbage\r\n")},
                {"RETR 1": cut(b"+OK\r\nSubject: half a ma")},
                {"RETR 2": cut()},
                {"greeting": cut()},
            )
        )
        stand.pop3.answers = what
        self.note(f"provider: {next(iter(what))}")
        await asyncio.sleep(1.5)
        stand.pop3.answers = {}

    async def _misbehave_by_imap(self, chance: Random) -> None:
        stand = self._stand
        what: dict[str, Answer] = chance.choice(
            (
                {"greeting": cut()},
                {"greeting": say(b"* BYE [UNAVAILABLE] too busy\r\n")},
                {"AUTHENTICATE": say(b"<tag> NO [UNAVAILABLE] not now\r\n")},
                {"AUTHENTICATE": say(b"<tag> NO [THROTTLED] slow down\r\n")},
                {"EXAMINE": say(b"<tag> BAD User is authenticated but not connected.\r\n")},
                {"UID SEARCH": cut(b"* ESEARCH (TAG")},
                {"UID SEARCH": say(b"* garbage\r\n")},
                {"UID FETCH": cut(b"* 1 FETCH (UID 1 BODY[] {500}\r\nSubject: half a ma")},
                {"UID EXPUNGE": cut()},
                {"UID STORE": say(b"* BYE idle for too long\r\n")},
                {"IDLE": cut(b"+ idling\r\n* BYE Session invalidated\r\n")},
            )
        )
        stand.imap.answers = what
        self.note(f"provider: {next(iter(what))} by IMAP")
        for writer in list(stand.imap.idlers):  # those that wait must notice it, too
            writer.close()
        await asyncio.sleep(1.5)
        stand.imap.answers = {}
