"""The revisions that this version of the code knows, and whether it works with the schema of a database.

A database is at the revision that was applied last. Newer code than the database's has to migrate it first. Older code
works on as long as the revisions that it does not know only add to the schema; a revision that takes something away
records the oldest revision whose code still works (``alembic_version.oldest_revision``).

Alembic is not imported here: its import takes a third of a second, and each command checks the revision.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import psycopg

from shared.errors import Permanent, Temporary

FOLDER = Path(__file__).parent
"""Alembic's script folder: env.py and ``versions/``, whose files are named after their revisions."""

RELEASED: dict[str, str] = {}
"""The last revision of each released version, by version as in CHANGELOG.md. A revision may take away only what a
released version has stopped using."""

UNRELEASED = "unreleased"
"""What a revision before the first release names instead (``contracts``): only its own code and later code works with
the schema. Processes of older code wait, so they have to be stopped for an upgrade."""

SCHEMA_QUERY = "select version_num, to_jsonb(v) ->> 'oldest_revision' from alembic_version v"
"""SQL: the revision of the database, and the oldest one whose code works with it; null before the first release."""

_BEFORE_FIRST_RELEASE = re.compile(r"\d{4}")
_DOWN_REVISION = re.compile(r'^down_revision = (?:"(\w+)"|None)$', re.M)


def known_revisions() -> list[str]:
    """Return the revisions in ``versions/``, oldest first."""
    return list(_read_revisions(FOLDER))


@cache
def _read_revisions(folder: Path) -> tuple[str, ...]:
    """Return the names of the revisions, oldest first. :raises Permanent: they are not one chain."""
    after: dict[str | None, str] = {}
    for file in (folder / "versions").glob("*.py"):
        found = _DOWN_REVISION.search(file.read_text(encoding="utf-8"))
        if found is None or found[1] in after:
            raise Permanent(f"{file}: down_revision has to name one other revision")
        after[found[1]] = file.stem
    chain: list[str] = []
    while (name := after.pop(chain[-1] if chain else None, None)) is not None:
        chain.append(name)
    if after:
        raise Permanent(f"{folder}/versions: no revision {', '.join(map(str, after))}")
    return tuple(chain)


def is_usable(revision: str | None, oldest: str | None) -> bool:
    """Return whether this version of the code works with a database, without a migration. Pure.

    :param revision: of the database; None without a schema.
    :param oldest: the oldest revision whose code works with it.
    """
    known = known_revisions()
    return revision == known[-1] or _is_newer_by_expansion(revision, oldest)


def _is_newer_by_expansion(revision: str | None, oldest: str | None) -> bool:
    known = known_revisions()
    return revision is not None and revision not in known and oldest in known


def refuse_unknown(revision: str | None, oldest: str | None) -> None:
    """Refuse a database at a revision with which this version does not work. Parameters: as ``is_usable``.

    :raises Permanent: the text says what was found, what is known, and what to do.
    """
    known = known_revisions()
    if revision is None or revision in known or _is_newer_by_expansion(revision, oldest):
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
            cursor = await connection.execute(SCHEMA_QUERY)
            row = await cursor.fetchone()
    except psycopg.errors.UndefinedTable:  # no schema yet: the first statement of the command says so
        return
    except psycopg.Error as error:
        raise Temporary(f"database: {' '.join(str(error).split())}") from error
    if row is not None:
        refuse_unknown(*row)
