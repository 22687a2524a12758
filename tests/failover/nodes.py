"""Three RabbitMQ nodes on one machine that form a cluster, configured as in ``deploy/k8s``."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.machine.programs import Program, give, write_private
from deploy.machine.rabbitmq import USER, RabbitMQ

_FIRST = "mailgroup1@localhost"
_CLUSTER = ("cluster_partition_handling = pause_minority", "cluster_formation.peer_discovery_backend = classic_config")
"""A node that sees no majority pauses, so that two parts of the cluster never serve the same queue."""


@dataclass(frozen=True, slots=True)
class Node(RabbitMQ):
    """A named node. The nodes of a cluster share one port mapper, one cookie and one user."""

    number: int  # from 1; all other nodes join node 1 when they start
    cookie: str = field(repr=False)

    def _name(self) -> str:
        return f"mailgroup{self.number}@localhost"

    def prepare(self) -> None:
        """Write the configuration."""
        RabbitMQ.prepare(self)
        file = self.folder / "rabbitmq.conf"
        members = dict.fromkeys((_FIRST, self._name()))
        lines = [f"cluster_formation.classic_config.nodes.{at} = {name}" for at, name in enumerate(members, 1)]
        write_private(file, file.read_text(encoding="utf-8") + "\n".join((*_CLUSTER, *lines, "")))
        write_private(self.folder / ".erlang.cookie", self.cookie)
        give(self.folder, USER)

    def _environment(self) -> dict[str, str]:
        return RabbitMQ._environment(self) | {"RABBITMQ_NODENAME": self._name()}


class Nodes:
    """The nodes of a cluster."""

    def __init__(self, folder: Path, ports: Sequence[int], count: int) -> None:
        """:param ports: one for the port mapper and two for each node: AMQP, clustering."""
        password, cookie = secrets.token_hex(16), secrets.token_hex(16)
        self.nodes = [
            Node(folder / f"rabbitmq-{number}", (amqp, ports[0], cluster), password, number, cookie)
            for number, amqp, cluster in zip(range(1, count + 1), ports[1::2], ports[2::2], strict=True)
        ]
        for node in self.nodes:
            node.prepare()

    @property
    def first(self) -> Node:
        """The node that the others join."""
        return self.nodes[0]

    def mapper(self) -> Program:
        """Return the port mapper (epmd) of all nodes."""
        return self.first.programs()[0]

    def replicas(self) -> dict[str, int]:
        """Return the number of replicas of each queue that outlives its connection, by its name."""
        queues = json.loads(self.first.control("list_queues", "name", "members", "durable", "--formatter", "json"))
        return {queue["name"]: len(queue["members"]) for queue in queues if queue["durable"]}
