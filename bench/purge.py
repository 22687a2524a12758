"""Measures the purge of old mail in a large database, beside variants whose tables are partitioned by age.

    python -m bench.purge --mails 1000000 --purged 100000 --octets 10240

The oldest mails are deleted and their retention time is over. *deletes* is the purge of the service admin
(services/admin/maintenance/retention.py). *bytes* purges the rows in the same way and drops a partition of the tables
with the bytes (blobs, blob_chunks). *whole* drops a partition of all tables of mail: it is the best that partitions
could reach, and is possible only if nobody keeps a single mail in it. Meanwhile kept mails and mailboxes are read.
PostgreSQL runs with the settings of an installation, durable; vacuum runs afterwards, as autovacuum would.

It writes bench/PURGE.md. Needs root, and disk for the mails two to three times.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import psycopg

from bench import Wrong, machine, partitions
from bench.fill import fill
from bench.processes import cpu_seconds, tree
from bench.table import number
from deploy.machine.postgres import Postgres
from services.admin.maintenance import retention
from services.admin.maintenance.retention import Purge
from shared.db.database import Connection, Database
from shared.db.migrations.migrate import migrate
from shared.errors import Temporary
from shared.store import blobs, folder_admin
from tests.servers import opened, postgres

FILE = Path(__file__).with_name("PURGE.md")
SIDES = ("deletes", "bytes", "whole")
PEOPLE, EXTERNALS = 1_000, 200
READ_PAUSE_SECONDS, IDLE_SECONDS = 0.01, 10.0
"""Pause between two reads, and time for which reads are measured without a purge: seconds."""
_RETENTION_DAYS = 14
_VACUUMED = ("blobs", "blob_chunks", "inbound", "deliveries", "folder_mails", "uidl_ledger", "sent_mail")
_MEBI = 2**20


@dataclass(slots=True)
class Cost:
    """What a piece of work cost."""

    seconds: float = 0.0
    processor: float = 0.0  # seconds of a core, of PostgreSQL
    wal: int = 0  # octets


@dataclass(slots=True)
class Result:
    """The result of one side."""

    purge: Cost = field(default_factory=Cost)
    vacuum: Cost = field(default_factory=Cost)
    again: Cost = field(default_factory=Cost)  # a purge that finds nothing to delete
    idle: list[float] = field(default_factory=list)  # seconds of a read without a purge
    reads: list[float] = field(default_factory=list)  # seconds of a read during the purge
    before: int = 0  # octets of the database
    after: int = 0
    fsync: float = 0.0  # seconds


class Side:
    """A database with the mails."""

    def __init__(self, server: Postgres, name: str, options: argparse.Namespace) -> None:
        self.name, self._server, self._options = name, server, options
        self._pid = int((server.folder / "data/postmaster.pid").read_text(encoding="utf-8").split()[0])
        self._kept = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=_RETENTION_DAYS)
        server.create(name)
        self.url = server.url_of(name)
        migrate(self.url)
        if name != "deletes":
            with psycopg.connect(self.url) as connection:  # as the owner of the tables
                for statement in partitions.partition(name == "whole", options.mails, options.purged):
                    connection.execute(statement.encode())
        self.admin = psycopg.connect(server.admin_url_of(name), autocommit=True)
        self.admin.execute("set synchronous_commit = off")
        fill(
            self.admin,
            options.mails,
            PEOPLE,
            EXTERNALS,
            "nobody",
            1,
            86_400,
            options.octets,
            options.purged,
            self._kept,
        )

    def value(self, sql: str) -> int:
        """Return the number that a query answers."""
        row = self.admin.execute(sql.encode()).fetchone()
        return int(row[0]) if row else 0

    @contextmanager
    def cost(self, cost: Cost) -> Iterator[None]:
        """Measure the block."""
        wal = "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
        octets, processor, began = self.value(wal), cpu_seconds(tree(self._pid)), time.perf_counter()
        yield
        cost.seconds = time.perf_counter() - began
        cost.processor = cpu_seconds(tree(self._pid)) - processor
        cost.wal = self.value(wal) - octets

    async def measure(self) -> Result:
        """Purge, then vacuum. :raises Wrong: other mails are gone than those that are to be purged."""
        result = Result(before=self.value("select pg_database_size(current_database())"))
        async with opened(self.url) as database:
            async with self._reading(database, result.idle):
                await asyncio.sleep(IDLE_SECONDS)
            async with self._reading(database, result.reads):
                with self.cost(result.purge):
                    await self._purge(database)
            with self.cost(result.vacuum):
                for table in _VACUUMED:
                    self.admin.execute(f"vacuum {table}".encode())
            with self.cost(result.again):
                await self._rows(database).run()
        wanted = self._options.mails - self._options.purged
        for table in ("blobs", "inbound", "deliveries", "folder_mails"):
            if (found := self.value(f"select count(*) from {table}")) != wanted:
                raise Wrong(f"{self.name}: {table} has {found} rows instead of {wanted}")
        result.after = self.value("select pg_database_size(current_database())")
        result.fsync = machine.fsync_seconds(self._server.folder)
        return result

    async def _purge(self, database: Database) -> None:
        if self.name == "whole":
            await _execute(database, partitions.drop_whole(0, self._options.purged))
        purge = self._rows(database)
        if self.name == "deletes":
            await purge.run()
        else:
            with mock.patch.object(blobs, "purge_blobs", _keep_blobs):
                await purge.run()
        if self.name == "bytes":
            await _execute(database, partitions.drop_bytes(0))

    def _rows(self, database: Database) -> Purge:
        return Purge(database, _RETENTION_DAYS, asyncio.Event(), batch=self._options.batch)

    @asynccontextmanager
    async def _reading(self, database: Database, seconds: list[float]) -> AsyncIterator[None]:
        """Read mails and mailboxes that are kept, in turn, during the block."""
        over = asyncio.Event()
        chance = random.Random(1)
        kept = self.value("select min(id) from blobs") + self._options.purged
        left = self._options.mails - self._options.purged
        people = self.value("select min(local_id) from folders")

        async def read() -> None:
            while not over.is_set():
                began = time.perf_counter()
                mail, person = chance.randrange(kept, kept + left), people + chance.randrange(PEOPLE)
                while not await _is_done(partial(_read, database, mail, person)):
                    pass
                seconds.append(time.perf_counter() - began)
                await asyncio.sleep(READ_PAUSE_SECONDS)

        task = asyncio.create_task(read())
        try:
            yield
        finally:
            over.set()
            await task

    def close(self) -> None:
        """Drop the database."""
        self.admin.close()
        self._server.drop(self.name)


async def _is_done(work: Callable[[], Awaitable[object]]) -> bool:
    """Return False after a deadlock: PostgreSQL ends a read or the drop of a partition if each waits for the other."""
    try:
        await work()
    except Temporary as error:
        if not isinstance(error.__cause__, psycopg.errors.DeadlockDetected):
            raise
        return False
    return True


async def _read(database: Database, mail: int, person: int) -> None:
    """Read a mail and list a mailbox."""
    async with database.transaction() as connection:
        await blobs.heads(connection, [mail])
    async with database.transaction() as connection:
        await folder_admin.list_mails(connection, person)


async def _keep_blobs(connection: Connection, ids: object) -> int:
    """Stand in for ``blobs.purge_blobs``: the bytes go with their partition."""
    return 0


async def _execute(database: Database, statements: Iterator[str]) -> None:
    """Commit each statement by itself: with the exclusive locks of several, it would wait for readers in a circle."""
    for statement in statements:
        while not await _is_done(partial(_commit, database, statement)):
            pass


async def _commit(database: Database, statement: str) -> None:
    async with database.statement(600.0) as connection:
        await connection.execute(statement.encode())


# ------------------------------------------------------------------------------------------ the report


def _cost(cost: Cost) -> str:
    return f"{number(cost.seconds)} s, {number(cost.processor)} s of a core, {number(cost.wal / _MEBI)} MiB of WAL"


def _reads(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    ninety_nine = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return " / ".join(number(1e3 * each) for each in (statistics.median(ordered), ninety_nine, ordered[-1])) + " ms"


_LINES: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("purge", lambda result: _cost(result.purge)),
    ("vacuum afterwards", lambda result: _cost(result.vacuum)),
    ("a purge that finds nothing", lambda result: _cost(result.again)),
    ("a read before: median / 99 % / longest", lambda result: _reads(result.idle)),
    ("a read meanwhile", lambda result: _reads(result.reads)),
    (
        "the database before, after",
        lambda result: f"{number(result.before / _MEBI)}, {number(result.after / _MEBI)} MiB",
    ),
    ("fsync", lambda result: f"{number(result.fsync * 1e6)} µs"),
)


def report(results: dict[str, Result], options: argparse.Namespace) -> str:
    """Return the section of one run."""
    command = f"python -m bench.purge {' '.join(sys.argv[1:])}".strip()
    rows = [["", *results], ["---"] * (len(results) + 1)]
    rows += [[name, *(cell(result) for result in results.values())] for name, cell in _LINES]
    return (
        f"## {options.purged:,} of {options.mails:,} mails of {options.octets:,} octets\n\n"
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, `{command}`, on {machine.processor()} with "
        f"{os.cpu_count()} cores; batches of {options.batch}, scans of {retention.SCAN_FACTOR * options.batch:,} rows, "
        f"pauses of {retention.PAUSE_SECONDS:g} s\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
    )


def main() -> None:
    """Measure, print the report, and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.purge")
    parser.add_argument("--mails", type=int, default=1_000_000)
    parser.add_argument("--purged", type=int, default=100_000, help="the oldest of them")
    parser.add_argument("--octets", type=int, default=10_240, help="of each mail")
    parser.add_argument("--batch", type=int, default=retention.BATCH, help="mails in a transaction of the deletes")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    results = {}
    with postgres(durable=True) as server:
        with psycopg.connect(server.admin_url_of("postgres"), autocommit=True) as connection:
            connection.execute("alter system set autovacuum = off")
            connection.execute("select pg_reload_conf()")
        for name in options.sides:
            print(f"{name}: fills", file=sys.stderr, flush=True)
            side = Side(server, name, options)
            print(f"{name}: purges", file=sys.stderr, flush=True)
            results[name] = asyncio.run(side.measure())
            side.close()
    section = report(results, options)
    print(section)
    if not options.no_write:
        before = FILE.read_text(encoding="utf-8") if FILE.exists() else "# Results of `bench.purge`\n"
        others = [
            part for part in before.split("\n## ")[1:] if part.partition("\n")[0] != section[3:].partition("\n")[0]
        ]
        FILE.write_text(
            "\n## ".join([before.split("\n## ")[0].rstrip() + "\n", *others, section[3:]]), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
