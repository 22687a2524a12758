"""shared/runtime/health.py: the health pages stay reachable, whatever others send to their port."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.request
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deploy.machine import ports
from services.admin.web import listener
from shared.db.database import Database
from shared.net import listening
from shared.runtime import health
from shared.runtime.health import Health
from shared.settings import SERVICES, Settings
from tests.polling import until


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The metrics port of a service that is ready."""

    async def find_missing(seconds: float) -> None:
        return None

    first = ports.choose_run(len(SERVICES), "health", ports.OURS)
    database = cast(Database, SimpleNamespace(find_missing=find_missing))
    async with Health(Settings(metrics_port=first), "fetcher", database, None) as served:
        await until(lambda: not served._missing)
        yield first


async def test_health_pages_mail_ports_and_console_listen_on_ipv6_alone() -> None:
    async def ready(seconds: float) -> bool:
        return True

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    first = ports.choose_run(len(SERVICES) + 2, "IPv6", ports.OURS)
    mail, console = first + len(SERVICES), first + len(SERVICES) + 1
    settings = Settings(bind="::", admin_bind="::", metrics_port=first, admin_port=console)
    database = cast(Database, SimpleNamespace(ready=ready))
    async with Health(settings, "fetcher", database, None):
        with listening.listen(settings, "POP3_PORT", mail), listener.listen(settings):
            for port in (first, mail, console):
                socket.create_connection(("::1", port), timeout=60).close()


def half_sent(port: int, source: str = "127.0.0.1") -> socket.socket:
    """A connection that sends the beginning of a request."""
    client = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0))
    client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    return client


def get(port: int, page: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=60) as answer:
        return str(answer.read().decode())


async def ask(port: int, page: str) -> str:
    return await asyncio.to_thread(get, port, page)


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


async def test_half_sent_requests_take_the_health_pages_from_nobody(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # given many connections of one address, and some of others, that never finish their requests, and no deadline
    monkeypatch.setattr(health, "REQUEST_SECONDS", 3600.0)
    monkeypatch.setattr(health._Quiet, "timeout", 3600.0)
    before = threading.active_count()
    clients = [half_sent(port) for _ in range(300)]
    clients += [half_sent(port, f"127.0.0.{host}") for host in range(2, 12) for _ in range(20)]
    # when somebody asks from the same address
    for page in ("livez", "readyz"):
        assert await ask(port, page) == "ok\n"
    assert "process_open_fds" in await ask(port, "metrics")
    # then no more than the limit are served, and the oldest of each address made room
    await until(lambda: threading.active_count() - before <= health.MAX_CONNECTIONS + 8)
    assert is_closed(clients[0])
    for client in clients:
        client.close()


async def test_a_request_that_does_not_arrive_in_time_is_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REQUEST_SECONDS", 1.0)
    client = half_sent(port)

    def is_ended() -> bool:
        try:
            client.send(b"x")
        except OSError:
            return True
        return False

    # a client that sends an octet now and then gets no more time
    await until(is_ended)
    client.close()


async def test_a_request_is_read_up_to_its_limit(port: int) -> None:
    client = half_sent(port)

    def flood() -> Any:
        try:
            client.sendall(b"x" * 20_000_000)
        except OSError:  # it is closed before all is sent
            return b""
        return client.recv(100)

    assert len(await asyncio.to_thread(flood)) <= 100
    assert await ask(port, "livez") == "ok\n"
    client.close()
