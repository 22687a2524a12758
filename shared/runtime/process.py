"""The skeleton of a process: settings, logs, health, database, broker, graceful stop.

``run(name, work)`` is all that a service's ``__main__`` calls. ``work(service)`` is to return when ``service.stopping``
is set and what was in hand is finished.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from shared.amqp.broker import Broker
from shared.db.database import Database
from shared.errors import Permanent
from shared.runtime.health import Health
from shared.runtime.logs import configure
from shared.settings import Settings, SettingsError, load

STOP_SECONDS = 15.0
"""What is in hand when the service is to stop gets so long, where the service does not ask for more. Nobody is to kill
it before 45 s have passed."""

log = structlog.get_logger()


class Service:
    """What a service works with.

    name: of the service. owner: unique to this process, for claims. stopping: set by SIGTERM and SIGINT.
    alone: held while mails of a stage are in hand, so that a death of the process is about them.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        """:raises SettingsError: a setting that this service needs is missing."""
        if settings.database_url is None:
            raise SettingsError("MAILGROUP_DATABASE_URL: not set: the URL of the PostgreSQL database is needed")
        if settings.broker_url is None:
            raise SettingsError("MAILGROUP_BROKER_URL: not set: the URL of the RabbitMQ server is needed")
        self.name = name
        self.settings = settings
        self.owner = f"{name}@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.database = Database(settings.database_url, name)
        self.broker = Broker(settings.broker_url, name)
        self.stopping = asyncio.Event()
        self.exclusive = asyncio.Lock()

    async def wait_for_stop(self, seconds: float) -> bool:
        """Wait up to ``seconds``; True as soon as the service is to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return False
        return True


async def _serve(
    service: Service, work: Callable[[Service], Awaitable[None]], needs_broker: bool, stop_seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stopping.set)
    broker = service.broker if needs_broker else None
    async with Health(service.settings, service.name, service.database, broker):
        await service.database.open()
        try:
            log.info("started", owner=service.owner)
            worker = asyncio.ensure_future(work(service))
            await asyncio.sleep(0)  # work() registers its consumers before its first wait
            if broker is not None:
                await broker.open()
            await _finish(service, worker, stop_seconds)
        finally:
            await service.broker.close()
            await service.database.close()
            log.info("stopped")


async def _finish(service: Service, worker: asyncio.Future[None], seconds: float) -> None:
    """Until the work has ended; it is ended ``seconds`` after it is to stop. What was open is rolled back, and done
    again later."""
    stopping = asyncio.ensure_future(service.stopping.wait())
    either: set[asyncio.Future[Any]] = {worker, stopping}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            await asyncio.wait({worker}, timeout=seconds)
    finally:
        stopping.cancel()
    if not worker.done():
        log.warning("not finished in time", seconds=seconds)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return
    await worker


def run(
    name: str,
    work: Callable[[Service], Awaitable[None]],
    needs_broker: bool = True,
    stop_seconds: float = STOP_SECONDS,
) -> None:
    """Run a service until SIGTERM or SIGINT. Exits with a clear line on a wrong setting or a port that is taken.

    :param needs_broker: False for a service that neither consumes nor publishes; it is ready without the broker.
    :param stop_seconds: what is in hand when it is to stop gets so long.
    """
    try:
        settings = load()
        configure(settings.log_format, name)
    except ValueError as error:
        sys.exit(f"mailgroup: {error}")

    async def main() -> None:
        await _serve(Service(name, settings), work, needs_broker, stop_seconds)

    try:
        _run(main())
    except (SettingsError, Permanent) as error:
        sys.exit(f"mailgroup: {error}")


def _run(main: Coroutine[None, None, None]) -> None:
    """On uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
