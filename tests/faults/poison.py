"""Mails that end the process which reads them, as a crash in C code or the kernel's killer would.

As with the steps, the services know nothing of it. A service looks for the file that is named after what it does; where
what it is about to read contains the text in that file, the process ends.
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
"""Of the environment: the folder of the files."""

RETRY_SECONDS = "FAULTS_RETRY_SECONDS"
"""Of the environment: the pause between two tries of a suspect; without it a short one."""

READERS = {
    "router": {"router": "shared.routing:read_facts"},
    "mailbox": {"mailbox": "shared.store.maildrops:deliver_copies"},
    "sender": {
        "sender": "services.sender.submission_worker:inside_arrivals",
        "relay": "services.sender.outgoing_message:parse_header",
    },
}
"""By service: what it does, and the function that reads for it."""


def arm(service: str) -> None:
    """Make the readers of this service deadly, in this process, and let suspects be tried again soon."""
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
