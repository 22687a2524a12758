"""The facts about a machine and its programs, without which figures say nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from bench.gateway import Gateway

_PACKAGES = {
    "RabbitMQ": "rabbitmq-server",
    "Dovecot": "dovecot-pop3d",
    "Postfix": "postfix",
    "mpop": "mpop",
    "fetchmail": "fetchmail",
    "maildrop": "maildrop",
}


def facts(gateway: Gateway, folder: Path) -> dict[str, str]:
    """By name. :param gateway: a running one. :param folder: where the data of both sides lie."""
    settings = {
        name: str(gateway.value(f"show {name}")) for name in ("fsync", "synchronous_commit", "full_page_writes")
    }
    return {
        "CPU": f"{processor()}, {os.cpu_count()} cores",
        "RAM": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "Kernel": platform.release(),
        "File system": _said("stat", "--file-system", "--format=%T", str(folder)),
        "Python": platform.python_version(),
        "PostgreSQL": f"{gateway.value('show server_version')}, "
        + ", ".join(f"{name} = {value}" for name, value in settings.items()),
        **{name: _said("dpkg-query", "--show", "--showformat=${Version}", deb) for name, deb in _PACKAGES.items()},
    }


def processor() -> str:
    """Model of the CPU."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    return found.group(1).strip() if found else platform.machine()


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
