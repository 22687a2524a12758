"""Decides by SQLSTATE whether the data in the statement or the server caused an error of PostgreSQL.

A mail caused the error only if its own data cannot be stored. An error of the server, the connection, the privileges or
the version of the schema is temporary: it would be the same for every mail, and a retry loses nothing.
PostgreSQL's manual lists the codes in its appendix A; the first two characters are the class. An unknown class counts
as temporary.
"""

from __future__ import annotations

import psycopg
from psycopg_pool import PoolTimeout

from shared.errors import Temporary

DATA_CLASSES = frozenset(
    {
        "21",  # cardinality violation: one row twice in one statement
        "22",  # data exception: a value that its type does not hold
        "23",  # integrity constraint violation
        "44",  # WITH CHECK OPTION violation
        "54",  # program limit exceeded: a value too large for an index, a statement too complex
        "P0",  # raised by a function or trigger, about the row
    }
)
"""Classes of errors that the data of the statement causes. All other classes are temporary."""

_SCHEMA_CODES = frozenset(
    {
        "3F000",  # invalid schema name
        "42P01",  # undefined table
        "42P10",  # no unique index for ON CONFLICT
        "42703",  # undefined column
        "42704",  # undefined object: a type, an index
        "42804",  # datatype mismatch
        "42883",  # undefined function or operator
    }
)
"""Codes that say that a migration is running, or has not been run."""

_CORRUPTED_CODES = frozenset({"XX001", "XX002"})
"""Codes that say that PostgreSQL cannot read its own files: data corrupted, index corrupted."""

_UNKNOWN_OUTCOME = ("08", "57", "40003")
"""Codes that leave open whether a commit succeeded: connection, shutdown, statement completion unknown."""


class DatabaseCorrupted(Temporary):
    """PostgreSQL cannot read some of its data. It is Temporary because nobody knows how many mails that concerns.

    Stages isolate a mail that meets it alone, so that the other mails pass.
    """


def is_caused_by_data(error: psycopg.Error) -> bool:
    """Return whether the data of the statement caused an error; otherwise the same statement may succeed later."""
    if code := _sqlstate(error):
        return code[:2] in DATA_CLASSES
    # Errors of the client's side: of the connection, or of a value that psycopg cannot send.
    return not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def as_temporary(error: psycopg.Error | PoolTimeout) -> Temporary | None:
    """Return the error as Temporary, for ``raise … from error``; None if the data of the statement caused it."""
    if not isinstance(error, PoolTimeout) and is_caused_by_data(error):
        return None
    text = str(error).strip()
    code = _sqlstate(error) if isinstance(error, psycopg.Error) else None
    if code in _SCHEMA_CODES:
        return Temporary(f"database: its schema is not that of this version: {text}")
    if code in _CORRUPTED_CODES:
        return DatabaseCorrupted(f"database: its data is corrupted ({code}): {text}")
    return Temporary(f"database: {type(error).__name__}: {text}")


def is_outcome_unknown(error: Exception) -> bool:
    """Return whether a commit that failed with this error may have succeeded: the server has not said that it failed.

    :param error: as ``Database`` raises it.
    """
    if not isinstance(error, Temporary):
        return False
    code = _sqlstate(error.__cause__) if isinstance(error.__cause__, psycopg.Error) else None
    return code is None or code.startswith(_UNKNOWN_OUTCOME)


def _sqlstate(error: psycopg.Error) -> str | None:
    return error.sqlstate or error.diag.sqlstate  # psycopg has no class for the codes of newer servers
