"""The process of the console: one web server on the event loop of the service, and its background tasks."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from services.admin.access import users
from services.admin.accounts import oauth_flow
from services.admin.context import AdminContext
from services.admin.mail.indexing import SearchIndexer
from services.admin.maintenance.background import run_background
from services.admin.monitoring.background_work import repeat
from services.admin.web.app import build_app
from services.admin.web.listener import GRACE_SECONDS, MAX_CONNECTIONS, ConsoleServer, listen
from services.admin.web.page_context import PageContext
from shared.amqp import publications
from shared.auth.passwords import HashingPool
from shared.errors import Temporary
from shared.net.listening import limit_by_open_files
from shared.runtime.process import Service, run
from shared.store import maillog

_RETRY_SECONDS = 1.0
INDEX_SECONDS, INDEX_PAUSE_SECONDS = 3.0, 0.05
"""Pause of the search index after it is complete or has failed, and between two batches: seconds."""
AUTHORIZE_SECONDS = 2.0
"""Interval between two checks for due token requests: seconds; providers allow a request every five (RFC 8628)."""


log = structlog.get_logger()


async def serve(service: Service, max_connections: int = MAX_CONNECTIONS) -> None:
    """Serve pages until the service stops. :raises Permanent: the port is in use."""
    settings = service.settings
    with listen(settings) as listener:
        system = AdminContext(settings, service.database, HashingPool(), service.broker)
        background = asyncio.create_task(run_background(service), name="background")
        if not await _create_initial_admin(service, system):
            await background
            return
        context = PageContext(system, service.stopping)
        server = ConsoleServer(settings, build_app(context), max_connections)
        checking = asyncio.create_task(context.status.run(), name="status")
        indexing = asyncio.create_task(_index_mail(service), name="search index")
        authorizing = asyncio.create_task(_poll_authorizations(service, system), name="authorizations")
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="console")
        stopping = asyncio.create_task(service.stopping.wait())
        try:
            await asyncio.wait({serving, checking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            stopping.cancel()
            checking.cancel()
            indexing.cancel()
            await serving
            # a cancelled token request would stay claimed, and other processes would wait for the end of the claim
            await asyncio.wait({authorizing}, timeout=GRACE_SECONDS)
            authorizing.cancel()
            context.close()
            if not service.stopping.is_set():
                background.cancel()
            await asyncio.gather(background, return_exceptions=True)
        if checking.done() and not checking.cancelled():
            await checking  # it failed: raise its error


async def _index_mail(service: Service) -> None:
    """Add new mail to the search index in small batches. No delivery waits for the index."""
    indexer = SearchIndexer(service.database, service.settings.language)

    async def index_new() -> None:
        while not service.stopping.is_set():
            batch = await indexer.index_next()
            maillog.announce([note.event for note in batch.notes])
            service.broker.publish_behind(publications.routed((n.inbound_id, n.recipients) for n in batch.notes))
            if not batch.mails:
                return
            await asyncio.sleep(INDEX_PAUSE_SECONDS)

    await repeat("indexing", INDEX_SECONDS, index_new, service.database, service.wait_for_stop)


async def _poll_authorizations(service: Service, system: AdminContext) -> None:
    """Poll the pending OAuth authorizations, whether their pages are open or not."""

    async def poll() -> None:
        await oauth_flow.poll_pending(system)

    await repeat("authorization poll", AUTHORIZE_SECONDS, poll, service.database, service.wait_for_stop)


async def _create_initial_admin(service: Service, system: AdminContext) -> bool:
    """Create the first administrator; waits for the database. :return: False: the service is to stop."""
    while True:
        try:
            async with service.database.transaction() as connection:
                await users.create_initial_admin(connection, service.settings.admin_password, system.passwords)
                return True
        except Temporary:
            if await service.wait_for_stop(_RETRY_SECONDS):
                return False


def main() -> None:
    """``python -m services.admin console``."""
    max_connections = limit_by_open_files(MAX_CONNECTIONS)
    run("admin", partial(serve, max_connections=max_connections), broker="optional")
