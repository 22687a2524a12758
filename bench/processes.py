"""Runs load generators in processes, and measures the processor time and memory of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import Wrong
from deploy.machine.programs import Process, Program
from deploy.machine.supervise import ROOT

PROC = Path("/proc")
_LONGEST_SECONDS = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2
"""Kernel constant (posix-timers.h): the clock counts processor time in nanoseconds."""
_QUIET_SECONDS, _QUIET_SHARE, _LONGEST_TAIL_SECONDS = 0.2, 0.05, 5.0
"""A side is quiet when it has used less than the share (of one core) for the first time (seconds); the last value
limits the wait for this: seconds."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one side."""

    items: int  # mails or sessions
    seconds: float
    cpu: float | None = None  # the generator's share of one core; None: no generator
    octets: int = 0
    session: float = 0.0  # median seconds of a session, if there are sessions
    latencies: tuple[float, ...] = ()  # seconds
    processor: Mapping[str, float] = field(default_factory=dict)  # seconds of a core by process name

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds


def generate(module: str, *words: str, **options: object) -> Run:
    """Run a load generator to its end.

    :raises Wrong: it found an error, with its message.
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
    """Return the command line of a generator; an option that is True has no value."""
    found = [sys.executable, "-m", f"bench.{module}", *words]
    for name, value in options.items():
        found.append(f"--{name.replace('_', '-')}")
        if value is not True:
            found.append(str(value))
    return found


@contextmanager
def beside(name: str, arguments: Sequence[str], folder: Path) -> Iterator[Process]:
    """Run a process during the block; its output is in ``folder/NAME.out``."""
    program = Program(name, tuple(arguments), None, ROOT, 50, stop_seconds=5)
    process = program.start(folder / f"{name}.out")
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def holding(module: str, *words: str, **options: object) -> Iterator[None]:
    """Run a generator, from its report that it is ready to the end of the block.

    :raises Wrong: it does not become ready, with its message.
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


def measured(work: Callable[[], Run], used: Callable[[], Mapping[str, float]]) -> Run:
    """Do the work and measure its processor time until the side is quiet, as some work follows the replies.

    :param used: returns the seconds so far, by name, of all processes of the side.
    """
    before = used()
    run = work()
    after, deadline = used(), time.monotonic() + _LONGEST_TAIL_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_QUIET_SECONDS)
        last, after = after, used()
        if sum(after.values()) - sum(last.values()) < _QUIET_SHARE * _QUIET_SECONDS:
            break
    return replace(run, processor={name: seconds - before.get(name, 0.0) for name, seconds in after.items()})


def processor_seconds(roots: Mapping[str, int], without: int | None = None) -> dict[str, float]:
    """Return the seconds of a core that each of these processes has used so far, with its descendants.

    :param without: a process that does not count.
    """
    children = _children()
    return {name: cpu_seconds(pid for pid in tree(root, children) if pid != without) for name, root in roots.items()}


def tree(root: int, children: Mapping[int, Sequence[int]] | None = None) -> list[int]:
    """Return a process and its descendants. :param children: of all processes; None: the current ones."""
    children = _children() if children is None else children
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    return children


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on (proc(5)). :raises OSError: the process has ended."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def memory(pids: Iterable[int]) -> int:
    """Return the memory of these processes in octets, with shared pages divided among their users (PSS)."""
    kilobytes = 0
    for pid in pids:
        with suppress(OSError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return kilobytes * 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the seconds of a core that these processes have used so far, with their ended threads and children.

    The time of the process itself comes from its clock (clock_getcpuclockid(3)): /proc/PID/stat rounds to 10 ms, which
    is much for a short run. The time of children that were waited for is cutime + cstime.
    """
    seconds = 0.0
    for pid in pids:
        with suppress(OSError):
            ended = _stat(pid)[13:15]
            seconds += time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) + sum(map(int, ended)) / _TICKS
    return seconds
