"""The stand of ``tests.faults`` with two PostgreSQL servers and three RabbitMQ nodes.

The gateway connects through proxies, as it does in Kubernetes: the Service of CloudNativePG forwards to the primary,
and the Service of RabbitMQ to any node that serves. A failover changes the target of the proxy, not the gateway's URL.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path

from deploy.machine import ports
from tests.failover.nodes import Nodes
from tests.failover.pair import Pair
from tests.faults.proxy import Proxy
from tests.faults.stand import Server, Stand

NODES = 3


class FailoverStand(Stand):
    """The stand with a pair of PostgreSQL servers and the nodes of a RabbitMQ cluster."""

    deletes_by_imap = False  # what a lag undoes can be fetched again

    def __init__(self, folder: Path, synchronous: bool) -> None:
        super().__init__(folder)
        chosen = ports.choose(2 * NODES + 4, f"{folder} servers")
        self.pair = Pair(folder, (chosen[0], chosen[1]), synchronous)
        self.replication = Proxy(chosen[2])
        self.replication.away = True
        self.nodes = Nodes(folder, chosen[3:], NODES)
        self.postgres, self.rabbitmq = self.pair.primary, self.nodes.first
        self.node_servers: dict[int, Server] = {}  # by the number of the node, from 1

    def _start_servers(self, stack: ExitStack) -> None:
        self._serve(self.nodes.mapper(), stack)
        stack.callback(self._kill_nodes)
        self.start_node(1)  # the others join it
        self.pair.start_primary(stack)

    def _kill_nodes(self) -> None:
        for server in self.node_servers.values():
            server.kill()

    async def _servers_answer(self) -> None:
        await self.answering(self.postgres.answers)
        await self.answering(self.nodes.first.answers)
        for node in self.nodes.nodes[1:]:
            self.start_node(node.number)
        await self.replicate()
        for node in self.nodes.nodes[1:]:
            await self.answering(node.answers)

    def _broker_ports(self) -> tuple[int, ...]:
        return tuple(node.ports[0] for node in self.nodes.nodes)

    # ------------------------------------------------------------------------------------------ PostgreSQL

    async def replicate(self) -> None:
        """Create the standby. Returns when it streams and, if it is synchronous, commits wait for it."""
        await self.replication.resume()
        self.replication.targets = (self.pair.primary.port,)
        await asyncio.to_thread(self.pair.copy_primary, self.replication.port)
        self.pair.start_standby()
        self.pair.require_standby()
        await self.answering(self.pair.replicates)

    async def end_replication(self) -> None:
        """Cut the standby off. An asynchronous standby lags from now on."""
        await self.replication.leave()

    def kill_primary(self) -> None:
        """Kill the primary as a power failure does."""
        self.pair.kill_primary()

    async def promote(self) -> None:
        """Promote the standby, and forward the gateway to it. Returns when it accepts writes."""
        await self.replication.leave()
        await asyncio.to_thread(self.pair.promote)
        self.postgres = self.pair.primary
        self.proxies["database"].targets = (self.postgres.port,)

    # ------------------------------------------------------------------------------------------ RabbitMQ

    async def kill_node(self, number: int) -> None:
        """Kill a node as a power failure does."""
        await self.node_servers[number].end(signal.SIGKILL)

    def start_node(self, number: int) -> None:
        """Start a node with its existing data."""
        node = self.nodes.nodes[number - 1]
        server = Server(node.programs()[1], self.folder / f"{node.folder.name}.log")
        self.node_servers.setdefault(number, server).start()
