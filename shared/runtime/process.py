"""Runs a service process: settings, logs, health, database, broker, graceful stop.

A service's ``__main__`` only calls ``run(name, work)``. ``work(service)`` must return when ``service.stopping`` is
set and the work in progress is finished.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

import structlog

from shared.amqp.broker import Broker
from shared.db import connection_budget
from shared.db.database import Database
from shared.errors import Permanent
from shared.runtime.health import Health
from shared.runtime.logs import configure
from shared.settings import Settings, SettingsError, load, readers_of

STOP_SECONDS = 15.0
"""Default time limit for the work in progress after a stop signal: seconds. A supervisor must wait 45 s before it kills
the process."""

BrokerUse = Literal["required", "optional"]
"""How a service uses the broker. required: it is not ready without it. optional: it publishes what sweeps can publish
later, or hints that may be lost."""

log = structlog.get_logger()


class Service:
    """The dependencies of a service.

    owner: unique to this process, for claims. database_name: application_name of its connections. stopping: set by
    SIGTERM and SIGINT. exclusive: locked while a stage processes mails, so that a crash of the process can be
    attributed to them.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        """:raises SettingsError: a setting that this service needs is missing."""
        if settings.database_url is None:
            raise SettingsError("MAILGROUP_DATABASE_URL: not set: the URL of the PostgreSQL database is needed")
        if settings.broker_url is None and name in readers_of("broker_url"):
            raise SettingsError("MAILGROUP_BROKER_URL: not set: the URL of the RabbitMQ server is needed")
        self.name = name
        self.settings = settings
        token = secrets.token_hex(4)
        self.owner = f"{name}@{socket.gethostname()}:{os.getpid()}:{token}"
        self.database_name = connection_budget.share_name(name, settings.database_connections, token)
        # One connection is beside the pool: that of the check at the start.
        self.database = Database(
            settings.database_url, self.database_name, settings.database_connections - 1, few_rows=name != "admin"
        )
        self._broker = Broker(settings.broker_url, name) if settings.broker_url is not None else None
        self.stopping = asyncio.Event()
        self.exclusive = asyncio.Lock()

    @property
    def broker(self) -> Broker:
        """Return the broker of a service that uses it."""
        if self._broker is None:
            raise RuntimeError(f"{self.name} uses no broker")
        return self._broker

    async def wait_for_stop(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for a stop signal; return whether it came."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return False
        return True


async def _serve(
    service: Service, work: Callable[[Service], Awaitable[None]], use: BrokerUse, stop_seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stopping.set)
    broker = service.broker
    needed_broker = broker if use == "required" else None
    async with Health(service.settings, service.name, service.database, needed_broker, service.stopping):
        await service.database.open()
        checking = asyncio.ensure_future(_check_database(service))
        try:
            log.info("service started", owner=service.owner)
            worker = asyncio.ensure_future(work(service))
            await asyncio.sleep(0)  # work() registers its consumers before its first wait
            await broker.open()
            await _finish(service, worker, stop_seconds)
            if checking.done():
                await checking  # raises why the service had to end
        finally:
            checking.cancel()
            await broker.close()
            await service.database.close()
            log.info("service stopped")


async def _check_database(service: Service) -> None:
    """Check the database beside the work, which waits for an unavailable one; stop the service if it does not suit."""
    try:
        await connection_budget.check_server(
            service.database, service.settings.database_connections, service.database_name, service.wait_for_stop
        )
    except Permanent as error:
        log.error("service ends, database does not suit", error=str(error))
        service.stopping.set()
        raise


async def _finish(service: Service, worker: asyncio.Future[None], seconds: float) -> None:
    """Wait for the end of the work; cancel it ``seconds`` after the stop signal. Open transactions are rolled back, and
    their work is repeated later."""
    stopping = asyncio.ensure_future(service.stopping.wait())
    either: set[asyncio.Future[Any]] = {worker, stopping}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            await asyncio.wait({worker}, timeout=seconds)
    finally:
        stopping.cancel()
    if not worker.done():
        log.warning("service work cancelled at stop", seconds=seconds)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return
    await worker


def run(
    name: str,
    work: Callable[[Service], Awaitable[None]],
    broker: BrokerUse = "required",
    stop_seconds: float = STOP_SECONDS,
) -> None:
    """Run a service until SIGTERM or SIGINT. Exit with a clear message on a wrong setting or a port in use.

    :param broker: how the service uses the broker.
    :param stop_seconds: time limit for the work in progress after the stop signal.
    """
    try:
        settings = load().of_service(name)
        configure(settings.log_format, name)
    except ValueError as error:
        sys.exit(f"mailgroup: {error}")

    async def main() -> None:
        await _serve(Service(name, settings), work, broker, stop_seconds)

    try:
        _run(main())
    except (SettingsError, Permanent) as error:
        sys.exit(f"mailgroup: {error}")


def _run(main: Coroutine[None, None, None]) -> None:
    """Run on uvloop if it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
