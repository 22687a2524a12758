"""Becomes a service, with an environment of its own.

Supervisord starts ``python -m deploy.machine.launch NAME`` for each service, with an environment that holds no secret.
This program adds what ``up`` wrote for that service alone, and replaces itself by ``python -m services.NAME``. So no
process has the secrets of another service, and no command line or configuration of supervisord contains one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.machine.programs import write_private

_FOLDER = "environment"


def write_environment(data: Path, name: str, variables: Mapping[str, str]) -> None:
    """Write the environment variables of a service, readable by the owner of the data folder only."""
    folder = data / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    write_private(folder / f"{name}.json", json.dumps(variables, indent=1) + "\n")


def remove_environments(data: Path) -> None:
    """Remove what ``write_environment`` wrote, after the services have ended."""
    shutil.rmtree(data / _FOLDER, ignore_errors=True)


def _become(name: str) -> None:
    data = Path(os.environ["MAILGROUP_UP"])
    variables: dict[str, str] = json.loads((data / _FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    words = ["console"] if name == "admin" else []  # of admin it is a command
    command = [sys.executable, "-m", f"services.{name}", *words]
    os.execve(sys.executable, command, os.environ | variables)


if __name__ == "__main__":
    _become(sys.argv[1])
