"""Liveness: a process locks a file while it runs, so other processes on its machine can detect its end.

The kernel releases the lock when the process ends in any way, and not before: a process that is stopped, slow, or cut
off from the database keeps it. Another process that sees the same folder therefore takes over the claims of a dead one
at once. In a pod or a container the folder outlives the process, so its successor finds the file.

A lock is valid only for the kernel that holds it. A network folder may show a lock to one machine only, or drop it when
the network fails, while the process runs. So the file names the kernel. For another kernel, also for the same machine
after a restart, the file proves nothing, and the claims of the dead process expire after their time limit.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

FOLDER = "processes"
"""Name of the folder of the locks, in the data folder."""
CHECK_SECONDS = 1.0
"""Interval of the checks for dead processes: seconds; adds so much to the delay of the mail that they had claimed."""
_KERNEL = Path("/proc/sys/kernel/random/boot_id")
"""Names the running kernel: it is another one on each machine, and after each restart."""

log = structlog.get_logger()


@contextmanager
def hold_process_lock(folder: Path, owner: str) -> Iterator[None]:
    """Hold the lock of this owner, from before its first claim. The file stays until ``forget_dead``.

    Where the folder cannot be written or locked there is no proof, and claims only expire.
    """
    try:
        file = _create_locked(folder, owner)
    except OSError as error:
        log.warning("process lock not held, claims expire only by time", folder=str(folder), error=str(error))
        yield
        return
    try:
        yield
    finally:
        os.close(file)


def _create_locked(folder: Path, owner: str) -> int:
    """Create the file under another name and lock it: under its own name it is never seen unlocked. :return: the file.

    :raises OSError: the folder cannot be written, its file system has no locks, or the kernel has no name.
    """
    kernel = _KERNEL.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{owner}"
    file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(file, kernel)
        new.rename(folder / owner)
    except OSError:
        os.close(file)
        new.unlink(missing_ok=True)
        raise
    return file


def find_dead(folder: Path, service: str) -> list[str]:
    """Return the owners of this service that have provably ended."""
    try:
        return sorted(path.name for path in folder.glob(f"{service}@*") if _is_unlocked(path))
    except OSError:
        return []


def forget_dead(folder: Path, owners: Collection[str]) -> None:
    """Delete the locks of dead processes that have no claims any more."""
    for owner in owners:
        with suppress(OSError):
            (folder / owner).unlink()


def _is_unlocked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two checks do not disturb each other
        return os.read(file, 64) == _KERNEL.read_bytes()
    except OSError:
        return False
    finally:
        os.close(file)
