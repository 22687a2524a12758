"""A program that is kept running: what is started, as which user, and how it ends."""

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
    """environment: the whole of it; None for that of the parent. user: None for our own.

    priority: lower ones start first and stop last. stop_seconds: from the signal until it is killed.
    on_demand: not started with the others.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] | None
    folder: Path
    priority: int
    user: str | None = None
    stop_signal: Literal["TERM", "INT"] = "TERM"
    stop_seconds: int = 20
    on_demand: bool = False

    def arguments(self) -> list[str]:
        """The command with what sets up its process: it gets the stop signal too when the one who started it dies."""
        setting = (
            []
            if self.environment is None
            else ["env", "-i", *(f"{name}={value}" for name, value in self.environment.items())]
        )
        return ["setpriv", f"--pdeathsig={self.stop_signal}", *identity(self.user), *setting, *self.command]

    def start(self, log: Path) -> Process:
        """Start it once, as a child. From the main thread, since it ends with the thread that started it."""
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
        """:raises Temporary: it has ended, with the last lines of its log."""
        if self.child.poll() is not None:
            raise Temporary(f"{self.program.name} ended with status {self.child.returncode}: {tail(self.log)}")

    def stop(self) -> None:
        """Ask it to end, wait, kill it if it does not."""
        if self.child.poll() is None:
            self.child.send_signal(getattr(signal, f"SIG{self.program.stop_signal}"))
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(self.program.stop_seconds)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self.child.kill()
        self.child.wait()


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log, for an error message."""
    with suppress(OSError):
        return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""


def identity(user: str | None) -> list[str]:
    """Arguments of setpriv that take on a user; nothing to do unless we are root."""
    if user is None or os.geteuid() != 0:
        return []
    return [f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]


def give(path: Path, user: str) -> None:
    """Make a user the owner of a folder and all that is in it; nothing to do unless we are root."""
    if os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.chown(path, entry.pw_uid, entry.pw_gid)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(Path(folder, name), entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, at once or not at all."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
