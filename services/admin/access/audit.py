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
SIGN_INS = ("signed in", "sign-in refused")
"""What the audit says of a sign-in: good, refused."""
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


async def record_sign_in(connection: Connection, who: str, peer: str, refused: bool = False) -> None:
    """Record a sign-in to the console. :param who: '' for a name that nobody has: it may be a password in the wrong
    field. :param peer: IP address of the browser."""
    did = SIGN_INS[refused]
    await record_change(connection, who or "unknown name", did, detail=f"from {peer}")


async def purge_sign_ins(connection: Connection, after: int, before: datetime, limit: int) -> tuple[int, int | None]:
    """Delete the sign-ins before this time, among the next ``limit`` entries after this id.

    :return: their number; and the id to continue after, None at the end.
    """
    cursor = await connection.execute(
        """with next as materialized (select id from audit where id > %(after)s order by id limit %(limit)s),
           gone as (delete from audit a using next where a.id = next.id and a.did = any(%(did)s) and a.at < %(before)s
                    returning a.id)
           select (select max(id) from next), (select count(*) from gone)""",
        {"after": after, "limit": limit, "did": list(SIGN_INS), "before": before},
    )
    last, count = await cursor.fetchone() or (None, 0)
    return int(count), last


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
