"""deploy/machine/instance.py: the private RabbitMQ is restarted on its own evidence, never on a client's word."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.machine import instance as instance_module
from deploy.machine import ports
from deploy.machine.instance import Instance
from deploy.machine.rabbitmq import RabbitMQ
from deploy.machine.servers import PrivateServers
from deploy.machine.supervise import Supervisor
from shared.amqp.broker import Broker
from shared.settings import SERVICES, Settings
from tests import servers


class Recorder(Supervisor):
    """In the place of supervisord. calls: what it was told, in order."""

    def __init__(self, data: Path) -> None:
        super().__init__(data, [], {})
        self.calls: list[str] = []

    def start_program(self, name: str) -> None:
        self.calls.append(f"start {name}")

    def stop_program(self, name: str) -> None:
        self.calls.append(f"stop {name}")


class Waiting(BaseHTTPRequestHandler):
    """A service that says for ever that it waits for the broker, whatever the broker does."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b"waiting for broker\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def stale_router(port: int) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", port), Waiting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    """A node of this module alone, which it breaks."""
    with servers.rabbitmq() as server:
        yield server


async def test_a_healthy_node_is_not_restarted_on_a_clients_word(
    node: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "_ASK_SECONDS", 0.0)
    settings = Settings(
        data=tmp_path, metrics_port=ports.choose_run(len(SERVICES), str(tmp_path), ports.OURS), broker_url=node.url
    )
    broker = Broker(node.url, "test")  # declares the queues
    await broker.open()
    await broker.wait_until_ready(30)
    await broker.close()
    said: list[str] = []
    up = Instance(settings, said.append, ("router",))
    supervisor = Recorder(tmp_path)
    up._supervisor, up._servers = supervisor, PrivateServers(tmp_path, None, node)
    with stale_router(settings.metrics_port_of("router")):
        # given a healthy node, and a service that says that it waits for it
        for _ in range(4):
            up._restart_broken_rabbitmq()
        assert supervisor.calls == [] and said == []
        # when the processes of its queues have ended, as after a full disk
        node.control("eval", "supervisor:terminate_child(ra_sup, ra_systems_sup).")
        assert node.answers()
        # then it is restarted after the second bad answer
        up._restart_broken_rabbitmq()
        assert supervisor.calls == []
        up._restart_broken_rabbitmq()
    assert supervisor.calls == ["stop rabbitmq", "start rabbitmq"]
    assert said == ["RabbitMQ reports that its queues have ended; restarting it"]
