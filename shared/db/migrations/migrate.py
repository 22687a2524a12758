"""Migrates a database to the schema of this version of the code.

One process at a time migrates, under an advisory lock; the others wait for it. Each revision has a transaction of its
own, or none if its statements must not have one (``sql_file.upgrade_online_with``). A process that dies in the middle
leaves the revisions that it has finished; the next attempt continues with the others.

A statement that waits for the lock of a table makes every later statement on this table wait behind it, and a backup
(pg_dump) holds its locks until it ends. So the wait is short, the revision is rolled back, and mail continues until
the next attempt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.pool import NullPool

from shared.db.errors import is_caused_by_data
from shared.db.migrations import revisions
from shared.errors import Permanent, Temporary

LOCK = 7_165_402_881
"""Key of the advisory lock: a number that nothing else in this database uses."""

LOCK_SECONDS = 0.5
"""Limit of the wait for the lock of a table: seconds. Mail may wait this long behind the migration. In a deadlock the
migration gives way, as PostgreSQL looks for one after 1 s (deadlock_timeout)."""
LOCK_PAUSE_SECONDS = 5.0
"""Pause before the next attempt: seconds; mail that waited is finished by then."""
MAX_LOCK_SECONDS = 6 * 3600.0
"""Limit of all attempts: seconds; longer than the backup of a large database."""
_PAUSE_SECONDS = 0.2
"""Pause between two attempts to connect, or to get the advisory lock: seconds."""

log = structlog.get_logger()


def migrate(database_url: str, seconds: float = 60.0) -> list[str]:
    """Apply the pending revisions; wait for the server if it is still starting, and for a backup that holds locks.

    :param database_url: a libpq URL.
    :param seconds: how long to wait for the server to answer.
    :return: the applied revisions, oldest first; empty if none was pending, or if a newer version has migrated the
        database and this version works with its schema.
    :raises Temporary: the server did not answer in time, refused changes, or did not give a lock.
    :raises Permanent: this version cannot use the schema (``revisions.refuse_unknown``), or a statement failed.
    """
    deadline = time.monotonic() + MAX_LOCK_SECONDS
    applied: list[str] = []
    while True:
        try:
            _apply(database_url, seconds, applied)
            return applied
        except Temporary as error:
            if not _is_lock_missing(error) or time.monotonic() > deadline:
                raise
            log.warning("migration waits for a lock, retrying", retry_seconds=LOCK_PAUSE_SECONDS, error=str(error))
            time.sleep(LOCK_PAUSE_SECONDS)


def _apply(database_url: str, seconds: float, applied: list[str]) -> None:
    """Apply the pending revisions, and add each to ``applied`` when it is committed."""
    with _connection(database_url, seconds) as connection:
        _await_turn(connection)
        config = _config()
        due = _due(connection, config)
        connection.exec_driver_sql(f"set lock_timeout = {int(LOCK_SECONDS * 1000)}")
        connection.commit()  # Alembic opens the transactions of the revisions
        config.attributes["connection"] = connection
        for revision in due:
            command.upgrade(config, revision)
            applied.append(revision)


def _await_turn(connection: Connection) -> None:
    """Take the advisory lock, which ends with the connection.

    A statement that waits for it would be a transaction for whose end ``create index concurrently`` of the process that
    has the lock waits: a deadlock. So the lock is asked for, again and again.
    """
    while not connection.exec_driver_sql(f"select pg_try_advisory_lock({LOCK})").scalar():
        connection.commit()
        time.sleep(_PAUSE_SECONDS)
    connection.commit()


def _is_lock_missing(error: Temporary) -> bool:
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and isinstance(
        cause.orig, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected
    )


def pending(database_url: str, seconds: float = 5.0) -> list[str]:
    """Return the revisions that ``migrate`` would apply, oldest first. Parameters and errors: as ``migrate``."""
    with _connection(database_url, seconds) as connection:
        return _due(connection, _config())


def _config() -> Config:
    config = Config()
    # ConfigParser reads "%" as an interpolation.
    config.set_main_option("script_location", str(revisions.FOLDER).replace("%", "%%"))
    return config


def _due(connection: Connection, config: Config) -> list[str]:
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in revisions.known_revisions():
        revisions.refuse_unknown(*connection.exec_driver_sql(revisions.SCHEMA_QUERY).one())
        return []
    steps = ScriptDirectory.from_config(config).iterate_revisions("head", current or "base")
    return [script.revision for script in steps][::-1]


@contextmanager
def _connection(database_url: str, seconds: float) -> Iterator[Connection]:
    """Open a connection as soon as the server answers, until the block ends."""
    engine = create_engine(
        "postgresql+psycopg://", poolclass=NullPool, creator=lambda: psycopg.connect(database_url, connect_timeout=5)
    )
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = engine.connect()
            break
        except DBAPIError as error:
            if time.monotonic() > deadline:
                raise Temporary(f"database: {str(error.orig).strip()}") from error
            time.sleep(_PAUSE_SECONDS)
    try:
        with connection:
            yield connection
    except DBAPIError as error:
        kind = Permanent if _is_fault_of_migration(error) else Temporary
        raise kind(f"database: {str(error.orig).strip()}") from error
    except PendingRollbackError as error:  # Alembic begins a transaction after a revision that has none
        raise Temporary("database: the connection was lost") from error


def _is_fault_of_migration(error: DBAPIError) -> bool:
    """Return whether the statement caused the error: by the rows that it found, or by its text (class 42)."""
    cause = error.orig
    return isinstance(cause, psycopg.Error) and (is_caused_by_data(cause) or (cause.sqlstate or "").startswith("42"))
