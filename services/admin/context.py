"""The connection of a command to the running system: settings, key, database and broker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.amqp.broker import Broker
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.db.migrations.revisions import check_revision
from shared.errors import Permanent, Temporary
from shared.provider.vault import Vault
from shared.settings import Settings, load


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


@asynccontextmanager
async def open_context(data: Path | None, require_database: bool = True) -> AsyncIterator[AdminContext]:
    """Open the running system: DATABASE_URL, or the one that ``up`` wrote into the data folder.

    :param require_database: fail if the database does not answer.
    :raises Permanent: no system runs there. :raises Temporary: the database does not answer.
    """
    settings = load(data=data)
    if settings.database_url is None:
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
