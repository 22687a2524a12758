"""A program that runs in the background: its command, its user, and how it is stopped."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import Temporary

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Program:
    """A program to start."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] | None  # the complete one; None: the parent's
    folder: Path  # working directory
    priority: int  # lower ones start first and stop last
    user: str | None = None  # None: the current user
    stop_signal: Literal["TERM", "INT"] = "TERM"
    stop_seconds: int = 20  # from the signal until it is killed
    on_demand: bool = False  # not started together with supervisord

    def arguments(self) -> list[str]:
        """Return the command, wrapped to get the stop signal when its parent dies, and to run as its user."""
        setting = (
            []
            if self.environment is None
            else ["env", "-i", *(f"{name}={value}" for name, value in self.environment.items())]
        )
        return ["setpriv", f"--pdeathsig={self.stop_signal}", *identity(self.user), *setting, *self.command]

    def start(self, log: Path) -> Process:
        """Start it once, as a child. Call it from the main thread: the child ends with the thread that started it."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                self.arguments(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return Process(self, child, log)


@dataclass(frozen=True, slots=True)
class Process:
    """A program that was started once."""

    program: Program
    child: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Check that it still runs. :raises Temporary: it has ended, with the last lines of its log."""
        if self.child.poll() is not None:
            raise Temporary(f"{self.program.name} ended with status {self.child.returncode}: {tail(self.log)}")

    def stop(self) -> None:
        """Send the stop signal, wait, and kill it if it does not end."""
        if self.child.poll() is None:
            self.child.send_signal(getattr(signal, f"SIG{self.program.stop_signal}"))
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(self.program.stop_seconds)
        self.kill()

    def kill(self) -> None:
        """Kill it."""
        with suppress(ProcessLookupError):
            self.child.kill()
        self.child.wait()


def tail(log: Path, lines: int = 5) -> str:
    """Return the last lines of a log, for an error message."""
    with suppress(OSError):
        return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""


def identity(user: str | None) -> list[str]:
    """Return the arguments of setpriv that change to a user; none unless this process is root."""
    if user is None or os.geteuid() != 0:
        return []
    return [f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]


def give(path: Path, user: str) -> None:
    """Make a user the owner of a folder and its contents; does nothing unless this process is root."""
    if os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.chown(path, entry.pw_uid, entry.pw_gid)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(Path(folder, name), entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
