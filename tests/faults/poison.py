"""Mails that end the process which reads them, as a crash in C code or the kernel's OOM killer would.

The services contain no test code: functions that read mail are wrapped when a process starts. Before each call the
wrapper reads a file with the name of the task. If the arguments contain the text in that file, the process ends.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.store import poison

POISONS = "FAULTS_POISONS"
"""Environment variable: the folder of the files."""

RETRY_SECONDS = "FAULTS_RETRY_SECONDS"
"""Environment variable: pause between two tries of a suspected message, in seconds; unset: 4."""

READERS = {
    "router": {"router": "shared.routing:read_facts"},
    "mailbox": {"mailbox": "shared.store.folder_mails:deliver_copies"},
    "sender": {
        "sender": "services.sender.submission_worker:inside_arrivals",
        "relay": "services.sender.outgoing_message:parse_header",
    },
}
"""By service: the name of a task, and the function that reads mail for it."""


def arm(service: str) -> None:
    """Wrap the reading functions of this service, in this process, and shorten the pause between two tries."""
    poison.RETRY_SECONDS = float(os.environ.get(RETRY_SECONDS, "4"))
    for name, target in READERS.get(service, {}).items():
        module_name, _, function = target.partition(":")
        module = importlib.import_module(module_name)
        setattr(module, function, _deadly(getattr(module, function), Path(os.environ[POISONS]) / name))


def _deadly(function: Callable[..., Any], file: Path) -> Callable[..., Any]:
    @functools.wraps(function)
    def read(*arguments: Any, **named: Any) -> Any:
        if file.exists() and file.read_text(encoding="ascii") in repr(arguments):
            os._exit(1)
        return function(*arguments, **named)

    return read
