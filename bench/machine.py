"""The facts about the machine and its programs that the figures depend on."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench.gateway import Gateway

_PACKAGES = {
    "RabbitMQ": "rabbitmq-server",
    "Dovecot": "dovecot-pop3d",
    "Postfix": "postfix",
    "mpop": "mpop",
    "fetchmail": "fetchmail",
    "maildrop": "maildrop",
    "getmail6": "getmail6",
    "mbsync": "isync",
}


GOALS_COUNT_BELOW = 100e-6
"""Limits the duration of an fsync: seconds; on slower machines both sides wait for the disk, and so do the ratios."""
_WRITES, _WRITE_OCTETS = 200, 8_192
"""Number and size of the writes that are measured; the size is a page of PostgreSQL's WAL."""


def fsync_seconds(folder: Path) -> float:
    """Return the median duration of an fsync in this folder after a small overwrite, as in a WAL file."""
    seconds = []
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(_WRITES + 1):
            os.pwrite(file.fileno(), b"x" * _WRITE_OCTETS, 0)
            began = time.perf_counter()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first one also extends the file


def words(fsync: float) -> str:
    """Return the duration of an fsync as text. :param fsync: seconds."""
    return f"{fsync * 1e6:,.0f} µs" + ("" if fsync < GOALS_COUNT_BELOW else " (no goal counts on such a machine)")


def facts(gateway: Gateway, folder: Path, fsync: float) -> dict[str, str]:
    """Return the facts by name.

    :param gateway: must run. :param folder: with the data of both sides. :param fsync: its duration in seconds.
    """
    settings = {
        name: str(gateway.value(f"show {name}")) for name in ("fsync", "synchronous_commit", "full_page_writes")
    }
    return {
        "CPU": f"{processor()}, {os.cpu_count()} cores",
        "RAM": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "Kernel": platform.release(),
        "File system": _said("stat", "--file-system", "--format=%T", str(folder)),
        "fsync": words(fsync),
        "Python": platform.python_version(),
        "PostgreSQL": f"{gateway.value('show server_version')}, "
        + ", ".join(f"{name} = {value}" for name, value in settings.items()),
        **{name: _said("dpkg-query", "--show", "--showformat=${Version}", deb) for name, deb in _PACKAGES.items()},
    }


def processor() -> str:
    """Return the model of the CPU."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    return found.group(1).strip() if found else platform.machine()


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
