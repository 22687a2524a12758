"""Who did what, when, and all SQL on it (table audit). Written in the transaction that it tells of."""

from __future__ import annotations

import getpass
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.db.database import Connection, storable

PAGE = 100


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that somebody did. target: an address, or the id of a mail."""

    id: int
    at: datetime
    who: str
    did: str
    target: str
    detail: str


def operator() -> str:
    """Who runs a command on this machine."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):  # a container's user without a name
        return "command line"


async def record_change(connection: Connection, who: str, did: str, target: str = "", detail: str = "") -> None:
    """Write one entry. Secrets do not belong into it."""
    await connection.execute(
        "insert into audit (who, did, target, detail) values (%s, %s, %s, %s)",
        (storable(who), did, storable(target), storable(detail)),
    )


async def record_lines(connection: Connection, who: str, lines: Sequence[str]) -> None:
    """Write what a change of accounts told: lines of the form "external account ADDRESS: WHAT"."""
    for line in lines:
        subject, _, what = line.partition(": ")
        kind, _, address = subject.rpartition(" ")
        if kind in ("external account", "local account"):
            await record_change(connection, who, f"changed {kind}", address, what)
        else:
            await record_change(connection, who, line)


async def record_mails(connection: Connection, who: str, did: str, ids: Collection[int], detail: str = "") -> None:
    """Write what was done to each of these mails."""
    await connection.execute(
        "insert into audit (who, did, target, detail) select %s, %s, id::text, %s from unnest(%s::bigint[]) id",
        (storable(who), did, storable(detail), sorted(ids)),
    )


async def page(
    connection: Connection, before: int | None = None, search: str = "", limit: int = PAGE
) -> list[AuditEntry]:
    """The latest entries before this id; with ``search``, those of whom or about which it is told."""
    cursor = await connection.execute(
        """select id, at, who, did, target, detail from audit
           where (%(before)s::bigint is null or id < %(before)s)
             and (%(search)s = '' or lower(who) = lower(%(search)s) or lower(target) = lower(%(search)s))
           order by id desc limit %(limit)s""",
        {"before": before, "search": storable(search), "limit": limit},
    )
    return [AuditEntry(*row) for row in await cursor.fetchall()]
