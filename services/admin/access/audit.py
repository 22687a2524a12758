"""The audit log: who did what, and when, and all SQL on it (table audit). An entry is written in the transaction of
the change."""

from __future__ import annotations

import getpass
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.db.database import Connection, storable

PAGE = 100
"""Entries of one page."""
_CHARACTERS = 1000
"""Longest text of an entry: characters; a detail may quote a mail that an outsider wrote."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action of a user."""

    id: int
    at: datetime
    who: str  # user of the console, API token, or user of the command line
    did: str
    target: str  # an address, or the id of a mail
    detail: str


def operator() -> str:
    """Return the name of the user who runs this command."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):  # a container's user without a name
        return "command line"


async def record_change(connection: Connection, who: str, did: str, target: str = "", detail: str = "") -> None:
    """Write one entry. It must contain no secret."""
    await connection.execute(
        "insert into audit (who, did, target, detail) values (%s, %s, %s, %s)",
        (storable(who), did[:_CHARACTERS], storable(target)[:_CHARACTERS], storable(detail)[:_CHARACTERS]),
    )


async def record_lines(connection: Connection, who: str, lines: Sequence[str]) -> None:
    """Write an entry for each line of a change of accounts: "external account ADDRESS: WHAT"."""
    for line in lines:
        subject, _, what = line.partition(": ")
        kind, _, address = subject.rpartition(" ")
        if kind in ("external account", "local account"):
            await record_change(connection, who, f"changed {kind}", address, what)
        else:
            await record_change(connection, who, line)


async def record_mails(connection: Connection, who: str, did: str, ids: Collection[int], detail: str = "") -> None:
    """Write an entry for each of these mails."""
    await connection.execute(
        "insert into audit (who, did, target, detail) select %s, %s, id::text, %s from unnest(%s::bigint[]) id",
        (storable(who), did, storable(detail)[:_CHARACTERS], sorted(ids)),
    )


async def page(
    connection: Connection, before: int | None = None, search: str = "", limit: int = PAGE
) -> list[AuditEntry]:
    """Return the latest entries before this id. :param search: a user or a target that the entries have."""
    cursor = await connection.execute(
        """select id, at, who, did, target, detail from audit
           where (%(before)s::bigint is null or id < %(before)s)
             and (%(search)s = '' or lower(who) = lower(%(search)s) or lower(target) = lower(%(search)s))
           order by id desc limit %(limit)s""",
        {"before": before, "search": storable(search), "limit": limit},
    )
    return [AuditEntry(*row) for row in await cursor.fetchall()]
