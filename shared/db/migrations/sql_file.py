"""The loaders of the revisions: execute the SQL file beside the revision's Python file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from alembic import op
from sqlalchemy import Connection

from shared.db.migrations.statements import split

_NO_PARAMETERS = {"no_parameters": True}
"""op.execute would read ":name" as a parameter. Without parameters, the driver does not interpret "%" and accepts
several statements at once."""
_BATCH = re.compile(r"(update|delete|insert|with)\b", re.IGNORECASE)
_INDEX = re.compile(r"create (?:unique )?index concurrently if not exists (\w+)", re.IGNORECASE)


def upgrade_with(revision_file: str) -> Callable[[], None]:
    """Build the ``upgrade`` of a revision: its SQL runs in one transaction.

    :param revision_file: its ``__file__``; the SQL file has the same name.
    """
    sql_file = Path(revision_file).with_suffix(".sql")

    def upgrade() -> None:
        op.get_bind().exec_driver_sql(sql_file.read_text(encoding="utf-8"), execution_options=_NO_PARAMETERS)

    return upgrade


def upgrade_online_with(revision_file: str) -> Callable[[], None]:
    """Build the ``upgrade`` of a revision whose work on large tables must not hold a lock for long.

    Each statement is committed by itself. One that changes rows is repeated until it finds none, so it has to limit
    their number. An attempt that was interrupted is repeated from the first statement. Parameters: as ``upgrade_with``.
    """
    sql_file = Path(revision_file).with_suffix(".sql")

    def upgrade() -> None:
        context = op.get_context()
        with context.autocommit_block():
            connection = context.connection
            assert connection is not None
            for statement in split(sql_file.read_text(encoding="utf-8")):
                if "concurrently" in statement.lower():
                    _execute_concurrently(connection, statement)
                else:
                    _execute(connection, statement)

    return upgrade


def _execute(connection: Connection, statement: str) -> None:
    while True:
        done = connection.exec_driver_sql(statement, execution_options=_NO_PARAMETERS)
        if not _BATCH.match(statement) or done.rowcount == 0:
            return


def _execute_concurrently(connection: Connection, statement: str) -> None:
    """Execute ``create index concurrently`` and the like, which waits for older transactions without a lock that mail
    needs: without a limit, since a backup may be among them."""
    [limit] = connection.exec_driver_sql("show lock_timeout").one()
    connection.exec_driver_sql("set lock_timeout = 0")
    if (found := _INDEX.match(statement)) and _is_invalid(connection, found[1]):
        connection.exec_driver_sql(f"drop index concurrently if exists {found[1]}")
    connection.exec_driver_sql(statement, execution_options=_NO_PARAMETERS)
    connection.exec_driver_sql(f"set lock_timeout = '{limit}'")


def _is_invalid(connection: Connection, index: str) -> bool:
    """Return whether an interrupted attempt has left the index unfinished."""
    row = connection.exec_driver_sql(
        "select not indisvalid from pg_index where indexrelid = to_regclass(%s)", (index,)
    ).one_or_none()
    return row is not None and bool(row[0])
