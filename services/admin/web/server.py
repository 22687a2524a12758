"""The process of the console: one uvicorn on the service's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn

from services.admin.access import users
from services.admin.accounts import oauth_flow
from services.admin.context import AdminContext
from services.admin.mail import indexing, search_index
from services.admin.maintenance.background import run_background
from services.admin.web.app import build_app
from services.admin.web.page_context import PageContext
from shared.amqp import publications
from shared.auth.passwords import HashingPool
from shared.errors import Permanent, Temporary
from shared.net import server_tls
from shared.runtime.process import Service, run
from shared.settings import Settings
from shared.store import maillog

GRACE_SECONDS = 5
_AGAIN_SECONDS = 1.0
CATALOGUE_SECONDS = 3.0
"""Between two batches of at most catalogue.BATCH mails."""
AUTHORIZE_SECONDS = 2.0
"""Providers want to be asked every five seconds whether somebody has agreed."""
FORGET_ROUNDS = 1200
"""Once an hour what was purged is forgotten."""
_BACKLOG = 256


log = structlog.get_logger()


class _Server(uvicorn.Server):
    """Stopped by the service, which has the signals."""

    async def main_loop(self) -> None:
        """Set the date of the answers once a second; uvicorn's own loop wakes up ten times for that."""
        while not await self.on_tick(0):  # noqa: ASYNC110  # it waits for time, not for an event
            await asyncio.sleep(1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(service: Service) -> None:
    """Serve pages until the service is to stop. :raises Permanent: the port is taken."""
    settings = service.settings
    with _listen(settings) as listener:
        system = AdminContext(settings, service.database, HashingPool(), service.broker)
        await service.broker.open()
        tending = asyncio.create_task(run_background(service), name="upkeep")
        if not await _admit(service, system):
            await tending
            return
        context = PageContext(system, service.stopping)
        server = _Server(_configuration(settings, build_app(context)))
        watching = asyncio.create_task(context.status.run(), name="watch")
        cataloguing = asyncio.create_task(_catalogue(service), name="catalogue")
        authorizing_ = asyncio.create_task(_authorize(service, system), name="authorize")
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="console")
        stopping = asyncio.create_task(service.stopping.wait())
        try:
            await asyncio.wait({serving, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            stopping.cancel()
            watching.cancel()
            cataloguing.cancel()
            await serving
            await asyncio.wait(
                {authorizing_}, timeout=GRACE_SECONDS
            )  # what it has in hand others would leave for a while
            authorizing_.cancel()
            context.close()
            if not service.stopping.is_set():
                tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)
        if watching.done() and not watching.cancelled():
            await watching  # it ended by itself: tell why


async def _catalogue(service: Service) -> None:
    """Take new mail into the catalogue, a little at a time: nothing on a mail's way waits for it."""
    rounds = 0
    while not await service.wait_for_stop(CATALOGUE_SECONDS):
        try:
            async with service.database.transaction() as connection:
                step = await indexing.index_next(connection)
                if rounds % FORGET_ROUNDS == 0:
                    await search_index.delete_purged(connection)
            rounds += 1
            maillog.announce([note.event for note in step.notes])
            service.broker.publish_behind(publications.routed((n.inbound_id, n.recipients) for n in step.notes))
        except Temporary:
            continue
        except Exception:  # a mail that cannot be read must not end it; the log tells which batch
            log.exception("the catalogue does not go on")


async def _authorize(service: Service, system: AdminContext) -> None:
    """Go on with the authorizations that wait for a person, whether anybody looks at their pages or not."""
    while not await service.wait_for_stop(AUTHORIZE_SECONDS):
        try:
            await oauth_flow.poll_pending(system)
        except Temporary:
            continue
        except Exception:  # one that cannot be gone on with must not end it
            log.exception("authorizations do not go on")


def _listen(settings: Settings) -> socket.socket:
    address = (settings.admin_bind, settings.admin_port)
    family = socket.AF_INET6 if ":" in settings.admin_bind else socket.AF_INET
    try:
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        # where there is no uvloop, an answer's body would wait 40 ms behind its header
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise Permanent(f"MAILGROUP_ADMIN_PORT {address[0]}:{address[1]}: {error.strerror}") from error


async def _admit(service: Service, system: AdminContext) -> bool:
    """Make sure that somebody can sign in; waits for the database. False: the service is to stop."""
    while True:
        try:
            async with service.database.transaction() as connection:
                await users.create_initial_admin(connection, service.settings.admin_password, system.passwords)
                return True
        except Temporary:
            if await service.wait_for_stop(_AGAIN_SECONDS):
                return False


def _configuration(settings: Settings, app: Any) -> uvicorn.Config:
    def context(config: uvicorn.Config, default: object) -> ssl.SSLContext:
        return server_tls.server_context(settings)

    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=_BACKLOG,
        ssl_context_factory=context if settings.console_has_tls else None,
    )


def main() -> None:
    """``python -m services.admin console``."""
    run("admin", serve, needs_broker=False)  # it tells that the broker is away, and needs it for nothing else
