"""Computes the structures of new mails before a client asks for them (structure_store.py).

One process at a time does this, some seconds after the arrival, for people who read by IMAP. It works at most half of
the time. A mail that it passes over is computed by the first FETCH, as each mail was that it has not reached yet.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

import structlog

from services.imap_out.structure_store import StructureStore
from shared.db.database import Connection, Database
from shared.db.leases import take_lease
from shared.errors import Temporary
from shared.runtime.memory_budget import MemoryBudget

LOOK_SECONDS = 5.0
"""Interval of the looks for new mails: seconds."""
AGE_SECONDS = 5
"""Age at which a mail is looked at: seconds; by then it is usually in the mailboxes."""
LOGIN_DAYS = 30
"""Age of a person's last login by IMAP up to which new mail gets a structure: days."""
MAILS = 200
"""Mails of one look."""
LEASE = "mail structures"
LEASE_SECONDS = 20.0
"""Time after which another process takes over: seconds. If a look takes longer, both compute the same, without harm."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NextMails:
    """The next mails in the order of their blob ids."""

    wanted: dict[int, int]  # octets by blob id, of those that need a structure
    last: int | None  # the last blob id, wanted or not; None: there is no further mail yet


class StructuresAhead:
    """Computes the structures of new mails."""

    def __init__(self, database: Database, structures: StructureStore, budget: MemoryBudget) -> None:
        """:param budget: memory for mails."""
        self._database = database
        self._structures = structures
        self._budget = budget
        self._owner = secrets.token_hex(8)
        self._passed: int | None = None  # blob id up to which there is nothing left to do

    async def run(self) -> None:
        """Compute from time to time, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                while await self.compute_next():
                    pass
            except Temporary as failure:
                log.info("structures not computed ahead, retrying", error=str(failure))
            except Exception:  # a defect must not end the task
                log.exception("structures not computed ahead")

    async def compute_next(self) -> bool:
        """Compute the structures of the next mails, and pause as long as this took.

        :return: whether there may be further mails. :raises Temporary: the database is unavailable.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        async with self._database.statement() as connection:
            if self._passed is None:
                self._passed = await load_newest(connection)
            following = await list_next(connection, self._passed, MAILS)
        if following.last is None:
            return False
        if following.wanted:
            async with self._database.transaction() as connection:
                if not await take_lease(connection, LEASE, self._owner, LEASE_SECONDS):
                    return False  # another process computes them
        self._passed = following.last  # before the work: a mail that fails must not be tried again and again
        if following.wanted:
            try:
                await self._structures.load(following.wanted, self._budget)
            except Temporary:
                self._passed = min(following.wanted) - 1
                raise
        await asyncio.sleep(clock() - began)
        return True


async def load_newest(connection: Connection) -> int:
    """Return the blob id of the newest mail with a structure; 0: no mail has one."""
    cursor = await connection.execute("select coalesce(max(blob_id), 0) from mail_structures")
    [row] = await cursor.fetchall()
    return int(row[0])


async def list_next(connection: Connection, after: int, limit: int) -> NextMails:
    """List the next mails after this blob id that are old enough, and which of them need a structure: mails without one
    in a folder of a person who reads by IMAP.
    """
    # Each OFFSET makes a look into an index of what could be a join of whole tables.
    cursor = await connection.execute(
        """select n.id, n.octets,
               not exists (select from mail_structures s where s.blob_id = n.id offset 0) and exists (
               select from (
                   select folder_id from folder_mails m where m.blob_id = n.id and m.expunged_at is null offset 0) m
               where exists (
                   select from folders f
                   where f.id = m.folder_id and f.deleted_at is null and exists (
                       select from last_logins l
                       where l.local_id = f.local_id and l.protocol = 'imap'
                           and l.at > now() - make_interval(days => %s) offset 0)
                   offset 0)
               offset 0)
           from (select id, octets from blobs where id > %s and created_at < now() - make_interval(secs => %s)
                 order by id limit %s) n
           order by n.id""",
        (LOGIN_DAYS, after, AGE_SECONDS, limit),
    )
    rows = await cursor.fetchall()
    return NextMails({blob_id: octets for blob_id, octets, wanted in rows if wanted}, rows[-1][0] if rows else None)
