"""The revisions that this version of the code knows, and the refusal of a database at any other revision.

Alembic is not imported here: its import takes a third of a second, and each command checks the revision.
"""

from __future__ import annotations

import re
from pathlib import Path

import psycopg

from shared.errors import Permanent, Temporary

FOLDER = Path(__file__).parent
"""Alembic's script folder: env.py and ``versions/``, whose files are named after their revisions."""

_BEFORE_FIRST_RELEASE = re.compile(r"\d{4}")


def known_revisions() -> list[str]:
    """Return the revisions in ``versions/``."""
    return sorted(file.stem for file in (FOLDER / "versions").glob("*.py"))


def refuse_unknown(revision: str | None) -> None:
    """Refuse a database at a revision that this version does not know.

    :param revision: from the table alembic_version; None for a database without a schema.
    :raises Permanent: the text says what was found, what is known, and what to do.
    """
    known = known_revisions()
    if revision is None or revision in known:
        return
    if _BEFORE_FIRST_RELEASE.fullmatch(revision):
        advice = (
            "it was made before the first release; run 'mailgroup export' with the version that made it, then start "
            "with a new data folder or an empty database and apply the exported accounts"
        )
    else:
        advice = "a newer version made it; use that version, or restore a backup from before the upgrade"
    raise Permanent(
        f"the database is at revision {revision}, which this version does not know (it knows: {', '.join(known)}): "
        f"{advice}"
    )


async def check_revision(database_url: str, seconds: int = 5) -> None:
    """Refuse a database as ``refuse_unknown`` does. :raises Temporary: the server does not answer in ``seconds``."""
    try:
        async with await psycopg.AsyncConnection.connect(
            database_url, autocommit=True, connect_timeout=seconds
        ) as connection:
            cursor = await connection.execute("select version_num from alembic_version")
            row = await cursor.fetchone()
    except psycopg.errors.UndefinedTable:  # no schema yet: the first statement of the command says so
        return
    except psycopg.Error as error:
        raise Temporary(f"database: {' '.join(str(error).split())}") from error
    refuse_unknown(None if row is None else str(row[0]))
