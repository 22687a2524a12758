"""Measures honest POP3 logins on the real services, while 150 addresses guess passwords.

    python -m bench.guessing --rounds 2

The addresses guess at one account, at 150 accounts, or at the 24 accounts of honest users. Each round restarts
pop3_out, which empties its memory, and starts all guessers at once. Logins are *cold* in the first two seconds, *with
them* in the same instant, *steady* after all guessers have failed before. A user is *remembered* (the password was
verified a moment ago), *known* (logged in from this address before the restart), or *never seen* (from this address).
Times are from opening the connection to the reply to PASS.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import uvloop

from bench import Wrong
from bench.baselines import PASSWORD
from bench.gateway import DOMAIN, Gateway, external, person
from tests.servers import scratch

GUESSERS = 150
EACH = 6
"""Honest logins of each kind in each phase of a round."""
COLD_SECONDS, STEADY_AFTER_SECONDS, STEADY_SECONDS = 2.0, 5.0, 8.0
ONE, MANY, THEIRS = "one account", f"{GUESSERS} accounts", "their own accounts"
VICTIMS = 4 * EACH
"""Accounts under attack whose owners log in: two kinds of users in two phases."""
_LONGEST_SECONDS = 60.0

Kind = tuple[str, str]
"""remembered, known or never seen; cold, with them or steady."""


@dataclass(slots=True)
class Round:
    """The measurements of a round."""

    port: int
    seconds: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))  # of honest logins
    guesses: int = 0  # whose passwords were checked


async def attempt(port: int, source: str, name: str, password: str) -> AsyncGenerator[bytes, None]:
    """Log in over one connection until the server closes it; yield the replies to PASS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        await reader.readline()
        while True:
            writer.write(f"USER {name}@{DOMAIN}\r\n".encode())
            await reader.readline()
            writer.write(f"PASS {password}\r\n".encode())
            if not (answer := await reader.readline()):
                return
            yield answer
    finally:
        writer.close()


async def log_in(found: Round, kind: Kind, name: str, source: str, at: float = 0.0) -> None:
    """Log in as an honest user. :param at: seconds from now. :raises Wrong: the login is refused."""
    if at:
        await asyncio.sleep(at)
    began = time.perf_counter()
    async with asyncio.timeout(_LONGEST_SECONDS):
        async with aclosing(attempt(found.port, source, name, PASSWORD)) as answers:
            answer = await anext(answers)
    if not answer.startswith(b"+OK"):
        raise Wrong(f"{name}, {kind}: {answer!r}")
    found.seconds[kind].append(time.perf_counter() - began)


async def guess(found: Round, name: str, source: str) -> None:
    """Guess at an account until cancelled."""
    while True:
        with suppress(OSError):
            async with aclosing(attempt(found.port, source, name, "guess")) as answers:
                async for answer in answers:
                    found.guesses += b"[AUTH]" in answer
                    if answer.startswith(b"+OK"):
                        raise Wrong("a guess was right")


def known_at(number: int) -> str:
    """Return the address of a known user."""
    return f"127.1.0.{number + 1}"


async def meet(port: int) -> None:
    """Log in all known users from their addresses."""
    found = Round(port)
    for phase in ("cold", "steady"):
        for name, number in (*owners("known", phase, MANY), *owners("known", phase, THEIRS)):
            await log_in(found, ("known", phase), name, known_at(number))


def owners(seen: str, phase: str, at: str) -> list[tuple[str, int]]:
    """Return the honest users of a measurement: names, and the numbers in their addresses."""
    first = (
        ("known", "never seen", "remembered").index(seen) * 3 + ("cold", "steady", "with them").index(phase)
    ) * EACH
    if at != THEIRS:
        return [(f"honest{number}", number) for number in range(first, first + EACH)]
    first = (seen == "never seen") * 2 * EACH + (phase == "steady") * EACH
    return [(f"victim{number}", 100 + number) for number in range(first, first + EACH)]


async def measure(found: Round, at: str, number: int) -> None:
    """Measure one round. :param number: of the round, unique."""
    kinds = ("known", "never seen") if at == THEIRS else ("remembered", "known", "never seen")
    for phase in ("cold", "steady") if at != THEIRS else ():
        for name, owner in owners("remembered", phase, at):
            await log_in(Round(found.port), ("remembered", phase), name, known_at(owner))
    targets = {
        ONE: ["target0"],
        MANY: [f"target{n}" for n in range(GUESSERS)],
        THEIRS: [f"victim{n}" for n in range(VICTIMS)],
    }[at]
    guessers = [(targets[n % len(targets)], f"127.{10 + n}.{number}.{n + 1}") for n in range(GUESSERS)]

    def new_address(owner: int) -> str:
        return f"127.2.{number}.{owner + 1}"

    def honest(phase: str, seconds: float) -> list[asyncio.Task[None]]:
        """Start logins one after the other, alternating between the kinds."""
        turns = zip(*(owners(seen, phase, at) for seen in kinds), strict=True)
        logins = [
            (seen, name, new_address(owner) if seen == "never seen" else known_at(owner))
            for turn in turns
            for seen, (name, owner) in zip(kinds, turn, strict=True)
        ]
        return [
            asyncio.create_task(log_in(found, (seen, phase), name, source, (place + 1) * seconds / len(logins)))
            for place, (seen, name, source) in enumerate(logins)
        ]

    amid = owners("never seen", "with them", at) if at != THEIRS else []
    attack, together = [], []
    for place, (name, source) in enumerate(guessers):
        attack.append(asyncio.create_task(guess(found, name, source)))
        if amid and place % (GUESSERS // EACH) == GUESSERS // EACH // 2:
            name, owner = amid.pop()
            together.append(asyncio.create_task(log_in(found, ("never seen", "with them"), name, new_address(owner))))
    try:
        began = time.monotonic()
        await asyncio.gather(*together, *honest("cold", COLD_SECONDS))
        await asyncio.sleep(began + STEADY_AFTER_SECONDS - time.monotonic())
        checked = found.guesses
        await asyncio.gather(*honest("steady", STEADY_SECONDS))
        print(f"  {at}: {(found.guesses - checked) / STEADY_SECONDS:.0f} guesses checked a second", file=sys.stderr)
        for task in attack:
            if task.done():
                task.result()
    finally:
        for task in attack:
            task.cancel()
        await asyncio.gather(*attack, return_exceptions=True)


def median_and_max(seconds: Sequence[float]) -> str:
    """Return median and maximum as text."""
    return f"{statistics.median(seconds):.2f} / {max(seconds):.2f} s" if seconds else ""


def main() -> None:
    """Read the command line and run all rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with scratch() as folder, Gateway(folder / "gateway") as gateway:
        names = [
            *(f"target{n}" for n in range(GUESSERS)),
            *(f"honest{n}" for n in range(9 * EACH)),
            *(f"victim{n}" for n in range(VICTIMS)),
        ]
        own = "own@company.example"
        gateway.add([external(own)], [person(name, own) for name in names])
        port = gateway.settings.pop3_port
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(meet(port))
            print("| guesses at | who logs in | cold | in the same instant | steady |\n| --- | --- | --- | --- | --- |")
            for place, at in enumerate((ONE, MANY, THEIRS)):
                found = Round(port)
                for number in range(rounds):
                    gateway.restart("pop3_out")
                    runner.run(measure(found, at, place * rounds + number))
                for seen in ("remembered", "known", "never seen"):
                    cells = [
                        median_and_max(found.seconds.get((seen, phase), ()))
                        for phase in ("cold", "with them", "steady")
                    ]
                    if any(cells):
                        print(f"| {at} | {seen} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
