"""The connection of a command to the running system: settings, key, database and broker."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from shared.amqp import publications
from shared.amqp.broker import Broker
from shared.auth.passwords import HashingPool
from shared.data_folder import find_holder
from shared.db.database import Database
from shared.db.migrations.revisions import check_revision
from shared.errors import Permanent, Temporary
from shared.provider.vault import Vault
from shared.settings import Settings, load
from shared.store import accounts

HINT_SECONDS = 2.0
"""Limits the wait of a command for the broker, for a hint: seconds. Without broker, watchers look every two seconds."""
START_SECONDS = 300.0
"""Limits the wait for a system that is starting: seconds; ``up`` gives each of its parts 120 s."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AdminContext:
    """The system that commands and pages work on."""

    settings: Settings
    database: Database
    passwords: HashingPool
    connected: Broker | None = None  # of a process that keeps its connection; a command connects on demand

    @property
    def vault(self) -> Vault:
        """Return the vault of the key. :raises SettingsError: the key is missing or malformed."""
        return Vault.from_settings(self.settings)

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Broker]:
        """Yield the broker, perhaps not connected yet. :raises Permanent: there is no URL."""
        if self.connected is not None:
            yield self.connected
            return
        if self.settings.broker_url is None:
            raise Permanent("MAILGROUP_BROKER_URL: not set")
        broker = Broker(self.settings.broker_url, "admin")
        await broker.open()
        try:
            yield broker
        finally:
            await broker.close()

    async def announce_changes(self, addresses: Collection[str]) -> None:
        """Publish that the mailboxes of these people have changed, after the commit: it wakes their mail clients.

        A hint that cannot be published is left out, since watchers also look from time to time. Never fails.
        """
        if not addresses or (self.connected is None and self.settings.broker_url is None):
            return
        try:
            async with self.database.statement() as connection:
                people = await accounts.locals_by_login(connection, list(addresses))
            async with self.broker() as broker:
                if self.connected is None:
                    await broker.wait_until_ready(HINT_SECONDS)
                await broker.publish(publications.changed((each.id, each.address) for each in people.values()))
        except (Temporary, Permanent) as failure:
            log.info("hint not published", addresses=list(addresses), error=str(failure))


def _say(line: str) -> None:
    print(f"mailgroup: {line}", file=sys.stderr, flush=True)


async def await_start(data: Path | None, say: Callable[[str], None] | None = _say) -> Settings:
    """Return the settings, after the end of a start of this data folder's system that is under way.

    :raises Temporary: it is not ready in time, it failed, or the folder is in use by a command that runs no system.
    """
    settings = load(data=data)
    holder = find_holder(settings.data)
    deadline = time.monotonic() + START_SECONDS
    while holder is not None and holder.state != "ready":
        if holder.state != "starting" or say is None:
            raise Temporary(f"{settings.data}: {holder} uses this data folder; try again when it is done")
        if time.monotonic() > deadline:
            raise Temporary(f"{settings.data}: {holder} is not ready after {START_SECONDS:g} s")
        say(f"waiting until {holder} is ready, with the data folder {settings.data}")
        waited_for = holder
        while holder == waited_for and time.monotonic() <= deadline:
            await asyncio.sleep(0.1)
            holder = find_holder(settings.data)
        if holder is None:
            raise Temporary(
                f"{settings.data}: {waited_for} has ended before it was ready; its output and the files in "
                f"{settings.data / 'log'} say why"
            )
        settings = load(data=data)
    return settings


@asynccontextmanager
async def open_context(
    data: Path | None, require_database: bool = True, say: Callable[[str], None] | None = _say
) -> AsyncIterator[AdminContext]:
    """Open the running system: DATABASE_URL, or the one that ``up`` wrote into the data folder.

    :param require_database: fail if the database does not answer. :param say: shows a line if the system is starting,
        before it is waited for; None: do not wait.
    :raises Permanent: no system runs there. :raises Temporary: the database does not answer, or the start is not done.
    """
    settings = await await_start(data, say)
    if settings.database_url is None:
        if settings.data.exists() and not os.access(settings.data, os.R_OK | os.X_OK):
            raise Permanent(f"{settings.data}: this user may not read the data folder; run the command as its owner")
        raise Permanent(
            f"no mailgroup is running with the data folder {settings.data} (start one with 'mailgroup up', "
            "name its folder with --data, or set MAILGROUP_DATABASE_URL)"
        )
    database = Database(settings.database_url, "mailgroup-command", connections=2)
    if require_database and (why := await database.connection_error()):
        raise Temporary(why)
    if require_database:
        await check_revision(settings.database_url)
    await database.open()
    try:
        # A command serves no logins: it may use all cores.
        yield AdminContext(settings, database, HashingPool(len(os.sched_getaffinity(0))))
    finally:
        await database.close()
