"""The private servers of a data folder: their ports and passwords, stored in ``servers.json`` at the first start.

``python -m deploy.machine.servers DATA`` writes the configuration of the folder's RabbitMQ node and becomes this node,
so that the node starts again even after its whole folder was deleted.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.machine import folders, ports
from deploy.machine.postgres import SOCKET, Postgres
from deploy.machine.postgres import USER as POSTGRES_USER
from deploy.machine.programs import Program, write_private
from deploy.machine.rabbitmq import USER as RABBITMQ_USER
from deploy.machine.rabbitmq import RabbitMQ
from shared.errors import Permanent

_FILE = "servers.json"


@dataclass(frozen=True, slots=True)
class PrivateServers:
    """The servers of one data folder; None where a setting names another server."""

    data: Path
    postgres: Postgres | None
    rabbitmq: RabbitMQ | None

    def programs(self) -> list[Program]:
        """Return the programs to keep running."""
        programs = []
        if self.postgres is not None:
            programs.append(self.postgres.program())
        if self.rabbitmq is not None:
            mapper, node = self.rabbitmq.programs()
            programs += [
                mapper,
                Program(
                    "rabbitmq",
                    (sys.executable, "-m", __name__, str(self.data)),
                    None,
                    self.data,
                    node.priority,
                    stop_seconds=node.stop_seconds,
                ),
            ]
        return programs

    def tidy(self) -> None:
        """Remove what is outside of their folders, after the last server has ended."""
        if self.postgres is not None:
            folders.remove_sockets(self.postgres.sockets, POSTGRES_USER)


def prepare(data: Path, postgres: bool, rabbitmq: bool) -> PrivateServers:
    """Prepare these servers: choose free ports, create the cluster, write the configuration.

    :raises Permanent: a package is missing.
    """
    known = _read(data)
    if postgres:
        (known["postgres_port"],) = _still_free(data, [known.get("postgres_port", 0)])
        if "postgres_password" in known and "postgres_admin_password" not in known:
            raise Permanent(
                f"{data}: its database was made before the first release; run 'mailgroup export' with the version that "
                "made it, then start with a new data folder and apply the exported accounts"
            )
        known.setdefault("postgres_password", secrets.token_hex(16))
        known.setdefault("postgres_admin_password", secrets.token_hex(16))
        if "postgres_sockets" in known:  # left by a start that was killed
            folders.remove_sockets(Path(known["postgres_sockets"]), POSTGRES_USER)
        home = _postgres_home(data)
        known["postgres_sockets"] = str(folders.make_sockets(home, POSTGRES_USER, SOCKET))
    if rabbitmq:
        wanted = known.get("rabbitmq_ports", [0, 0, 0])
        known["rabbitmq_ports"] = _still_free(data, wanted, taken=[known.get("postgres_port", 0)])
        known.setdefault("rabbitmq_password", secrets.token_hex(16))
    write_private(data / _FILE, json.dumps(known, indent=1) + "\n")
    servers = PrivateServers(
        data, _postgres(data, known) if postgres else None, _rabbitmq(data, known) if rabbitmq else None
    )
    if servers.postgres is not None:
        servers.postgres.prepare()
    if servers.rabbitmq is not None:
        servers.rabbitmq.prepare()
    return servers


def _still_free(data: Path, wanted: Sequence[int], taken: Sequence[int] = ()) -> list[int]:
    """Return these ports if all are free, otherwise others."""
    if all(port and ports.is_free(port) for port in wanted):
        return list(wanted)
    return ports.choose(len(wanted), str(data), taken=taken)


def _read(data: Path) -> dict[str, Any]:
    file = data / _FILE
    try:
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Permanent(f"{file}: not JSON: {error}") from error
    return known


def _postgres(data: Path, known: dict[str, Any]) -> Postgres:
    return Postgres(
        _postgres_home(data),
        Path(known["postgres_sockets"]),
        known["postgres_port"],
        known["postgres_password"],
        known["postgres_admin_password"],
    )


def _postgres_home(data: Path) -> Path:
    home = folders.place(data, "postgres", [POSTGRES_USER])
    if os.geteuid() == 0:
        shutil.chown(home, POSTGRES_USER)  # the folder alone: that user creates its contents
    return home


def _rabbitmq(data: Path, known: dict[str, Any]) -> RabbitMQ:
    amqp, mapper, cluster = known["rabbitmq_ports"]
    return RabbitMQ(
        folders.place(data, "rabbitmq", [RABBITMQ_USER]), (amqp, mapper, cluster), known["rabbitmq_password"]
    )


def _become_rabbitmq(data: Path) -> None:
    server = _rabbitmq(data, _read(data))
    server.prepare()
    node = server.programs()[-1]
    os.chdir(node.folder)
    marked = {**(node.environment or {}), "MAILGROUP_UP": os.environ.get("MAILGROUP_UP", "")}
    arguments = Program(node.name, node.command, marked, node.folder, node.priority, node.user).arguments()
    os.execvp(arguments[0], arguments)  # a fixed command


if __name__ == "__main__":
    _become_rabbitmq(Path(sys.argv[1]))
