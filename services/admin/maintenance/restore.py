"""Restore of a backup: the database, the key, and the state that the time since the backup has made wrong.

Mail that was fetched after the backup is fetched again if the provider still has it. Submissions that waited to be
relayed may have been relayed after the backup: they are parked until the operator decides, so none is sent twice
unnoticed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from deploy.machine import backups, folders, servers
from deploy.machine.postgres import Postgres
from deploy.machine.programs import tail, write_private
from shared.data_folder import locked, require_unused
from shared.db import leases
from shared.db.database import Database
from shared.db.migrations.migrate import migrate
from shared.errors import Permanent, Temporary
from shared.settings import Settings
from shared.store import account_changes, alerts, folder_mails, inbound_admin, maillog, polls, submissions_admin
from shared.store.folders import renew_uidvalidities
from shared.store.maillog import MailEvent

_NEW = "mailgroup_restored"
_START_SECONDS = 120.0
"""Time limit for the start of PostgreSQL: seconds."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore."""

    made_at: str  # time of the backup
    queue: list[int]  # ids of the submissions that waited to be relayed
    held: bool  # they are parked
    key: bool  # the backup contained the key, or the settings have it


def restore(
    settings: Settings,
    file: Path,
    *,
    replace: bool,
    send_queue: bool,
    say: Callable[[str], None],
    progress: backups.Progress,
) -> Restored:
    """Restore a data folder, or the database that the settings name, to the state of the backup.

    An old database is dropped only after the backup is loaded completely.

    :param replace: replace an existing database and key. :param send_queue: relay the waiting submissions again.
    :param progress: is called while the dump is loaded.
    :raises Permanent: the file is no backup, a system runs there, or one exists and is not to be replaced.
    """
    require_unused(settings.data.absolute())
    with backups.opened(file) as backup, _target(settings, replace, say) as url:
        say("Restoring the database")
        backups.load(backup, url, progress)
        if revisions := migrate(url):
            say(f"Database brought to revision {revisions[-1]}")
        queue = asyncio.run(prepare_restored(url, backup.made_at, send_queue))
        if backup.key is not None and settings.secret_key is None:
            write_private(settings.data / "secret.key", backup.key + "\n")
        elif backup.key is not None and backup.key != settings.secret_key:
            say("MAILGROUP_SECRET_KEY is not the key of the backup: add the key of the backup behind it")
        return Restored(backup.made_at, queue, not send_queue, backup.key is not None)


def prepare_loaded(settings: Settings, *, send_queue: bool) -> Restored:
    """Do the same for a database that pg_restore has filled. No other process may use it meanwhile.

    :raises Permanent: the settings name no database, it is empty, or a system runs on the data folder.
    """
    require_unused(settings.data.absolute())
    url = settings.database_url
    if url is None:
        raise Permanent("--loaded: MAILGROUP_DATABASE_URL names no database")
    if _is_empty(url):
        raise Permanent(
            "--loaded: the database that MAILGROUP_DATABASE_URL names is empty: fill it by pg_restore first"
        )
    migrate(url)
    return Restored(
        "", asyncio.run(prepare_restored(url, "", send_queue)), not send_queue, settings.secret_key is not None
    )


@contextmanager
def _target(settings: Settings, replace: bool, say: Callable[[str], None]) -> Iterator[str]:
    """Yield the URL of an empty database; when the block succeeds, this database replaces the old one."""
    if settings.database_url is not None:
        if not _is_empty(settings.database_url):
            raise Permanent("the database that MAILGROUP_DATABASE_URL names is not empty; name an empty one")
        yield settings.database_url
        return
    data = folders.make_data_folder(settings.data)
    with locked(data, "restore", "at work"):
        key = data / "secret.key"
        if key.exists() and not replace:
            raise Permanent(f"{data}: a system exists already; --replace replaces it by the one in the backup")
        server = servers.prepare(data, postgres=True, rabbitmq=False).postgres
        assert server is not None
        with _running(server, data, say):
            server.drop(_NEW)
            server.create(_NEW)
            yield server.url_of(_NEW)
            server.drop("mailgroup")
            server.rename(_NEW, "mailgroup")


@contextmanager
def _running(server: Postgres, data: Path, say: Callable[[str], None]) -> Iterator[None]:
    say("Starting PostgreSQL")
    (data / "log").mkdir(mode=0o700, exist_ok=True)
    process = server.program().start(data / "log" / "postgres.log")
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not server.answers():
            process.check()
            if time.monotonic() > deadline:
                raise Temporary(f"PostgreSQL does not answer after {_START_SECONDS:g} s: {tail(process.log)}")
            time.sleep(0.1)
        yield
    finally:
        process.stop()


def _is_empty(url: str) -> bool:
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone()
    return row == (0,)


async def prepare_restored(url: str, made_at: str, send_queue: bool) -> list[int]:
    """Adapt a restored database to the present: park the waiting submissions, or mark them. :return: their ids."""
    of = f" of {made_at}" if made_at else ""
    reason = f"restored from a backup{of}: it may have been relayed since; 'parked requeue' sends it, perhaps again"
    database = Database(url, "mailgroup-restore", connections=2)
    await database.open()
    try:
        async with database.transaction(3600.0) as connection:
            await folder_mails.reserve_uidl_gap(connection)
            await renew_uidvalidities(connection)
            await inbound_admin.reserve_id_gap(connection)
            await polls.poll_all_now(connection)
            await account_changes.renew_version(connection)
            await leases.end_all_leases(connection)
            await alerts.drop_posts(connection)
            if send_queue:
                queue = await submissions_admin.requeue_restored(connection)
            else:
                queue = await submissions_admin.park_restored(connection, reason)
            await maillog.record_events(
                connection,
                [
                    MailEvent(
                        "uncertain" if send_queue else "parked", submission_id=id_, reply=f"restored from a backup{of}"
                    )
                    for id_ in queue
                ],
            )
    finally:
        await database.close()
    return queue
