"""The lock of a data folder: one command at a time runs a system on it, or restores it. Other commands ask who does.

``up.lock`` is locked for the life of that process, so a killed one leaves no lock. The text in it is for people, and
says whether the system is ready.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from shared.errors import Permanent

FolderState = Literal["starting", "ready", "stopping", "at work"]
"""What the holder of the lock does; ``at work``: a command that serves no other one, such as restore."""
_LOCK_FILE = "up.lock"
_LOCK_SECONDS = 1.0
"""Limits the wait for the lock: seconds; commands that ask for its holder have it for an instant."""
_TEXT_OCTETS = 64
"""The length of the text in the lock file: octets; constant, so that one write replaces all of it."""


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that uses a data folder."""

    command: str  # up, demo, restore
    pid: int
    state: FolderState

    def __str__(self) -> str:
        return f"'mailgroup {self.command}' (process {self.pid}, {self.state})"


def find_holder(folder: Path) -> LockHolder | None:
    """Return the process that uses a data folder; None if there is none, or the lock file cannot be read."""
    try:
        with (folder / _LOCK_FILE).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_holder(file)
    except OSError:
        return None
    return None


def is_up(folder: Path) -> bool:
    """Whether a process uses this data folder: it locks ``up.lock`` until it ends."""
    return find_holder(folder) is not None


def require_unused(folder: Path) -> None:
    """:raises Permanent: a process uses this data folder."""
    if (holder := find_holder(folder)) is not None:
        raise Permanent(_describe_use(folder, holder))


def _describe_use(folder: Path, holder: LockHolder | None) -> str:
    by = f"by {holder}" if holder is not None else "by another mailgroup"
    return f"{folder}: is in use {by}; stop it, or give another --data"


def _read_holder(file: BinaryIO) -> LockHolder:
    command, _, rest = file.read(_TEXT_OCTETS).decode("utf-8", "replace").strip().partition(" ")
    pid, _, state = rest.partition(" ")
    known: dict[str, FolderState] = {"ready": "ready", "stopping": "stopping", "at work": "at work"}
    return LockHolder(command or "up", int(pid) if pid.isdecimal() else 0, known.get(state, "starting"))


@contextmanager
def locked(folder: Path, command: str, state: FolderState = "starting") -> Iterator[Callable[[FolderState], None]]:
    """Hold the lock of a data folder, and yield a function that changes the state. ``run.json`` is removed: it is old.

    :raises Permanent: another process holds it; the text names it.
    """
    with open(os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Permanent(_describe_use(folder, find_holder(folder))) from error
            time.sleep(0.05)

        def set_state(new: FolderState) -> None:
            text = f"{command} {os.getpid()} {new}"
            os.pwrite(file.fileno(), text.ljust(_TEXT_OCTETS - 1).encode() + b"\n", 0)

        set_state(state)
        (folder / "run.json").unlink(missing_ok=True)
        yield set_state
