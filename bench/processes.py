"""Processes: load generators that run beside us, and what any process uses, as /proc tells."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import Wrong
from deploy.machine.programs import Process, Program
from deploy.machine.supervise import ROOT

PROC = Path("/proc")
_LONGEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Run:
    """What a side did once. items: mails or sessions. cpu: of the generator, as a share of one core; None: it has none.

    session: median seconds of a session, where there are sessions.
    """

    items: int
    seconds: float
    cpu: float | None = None
    octets: int = 0
    session: float = 0.0
    latencies: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds


def generate(module: str, *words: str, **options: object) -> Run:
    """Run a load generator of ours to its end.

    :raises Wrong: it found something wrong, in its words.
    """
    done = subprocess.run(
        command(module, *words, **options),
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS,
    )  # fmt: skip
    if done.returncode:
        raise Wrong(f"{module}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return Run(
        found["items"],
        found["seconds"],
        found["cpu"],
        found.get("octets", 0),
        found.get("session", 0.0),
        tuple(found.get("latencies", ())),
    )


def command(module: str, *words: str, **options: object) -> list[str]:
    """The command line of a generator; an option that is True has no value."""
    found = [sys.executable, "-m", f"bench.{module}", *words]
    for name, value in options.items():
        found.append(f"--{name.replace('_', '-')}")
        if value is not True:
            found.append(str(value))
    return found


@contextmanager
def beside(name: str, arguments: Sequence[str], folder: Path) -> Iterator[Process]:
    """A process that runs while the block lasts; its output is in ``folder/NAME.out``."""
    program = Program(name, tuple(arguments), None, ROOT, 50, stop_seconds=5)
    process = program.start(folder / f"{name}.out")
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def holding(module: str, *words: str, **options: object) -> Iterator[None]:
    """A generator that says when it is ready, and then lasts as long as the block.

    :raises Wrong: it does not get ready, in its words.
    """
    child = subprocess.Popen(
        command(module, *words, **options), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    try:
        if not child.stdout.readline():
            raise Wrong(f"{module}: {(child.stderr.read().strip().splitlines() or ['no word'])[-1]}")
        yield
    finally:
        child.stdin.close()
        child.wait(_LONGEST_SECONDS)
        child.stdout.close()
        child.stderr.close()


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def memory(pids: Iterable[int]) -> int:
    """Octets of memory of these processes, shared pages divided among those that share them (PSS)."""
    kilobytes = 0
    for pid in pids:
        with suppress(OSError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return kilobytes * 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    """Seconds of a core that the threads of these processes have used so far."""
    nanoseconds = 0
    for pid in pids:
        for task in (PROC / str(pid) / "task").glob("*"):
            with suppress(OSError):
                nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9
