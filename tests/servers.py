"""The servers that the tests run against: real ones, private, on free ports, made by the code that ``up`` uses."""

from __future__ import annotations

import itertools
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from deploy.machine import ports
from deploy.machine.folders import make_sockets
from deploy.machine.postgres import SOCKET, USER, Postgres
from deploy.machine.programs import Process, give
from deploy.machine.rabbitmq import RabbitMQ
from shared.db.database import Connection, Database
from shared.db.migrations.migrate import migrate

_START_SECONDS = 60.0
_VHOSTS_AT_ONCE = 25


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder below /tmp that the servers' users can enter (pytest's own are for us alone); removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mailgroup-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres(durable: bool = False) -> Iterator[Postgres]:
    """A PostgreSQL with an empty cluster. Without ``durable`` it is faster and loses data in a power cut."""
    with scratch() as folder, ExitStack() as stack:
        give(folder, USER)
        sockets = make_sockets(folder, USER, SOCKET)
        port = ports.choose(1, str(folder))[0]
        server = Postgres(folder, sockets, port, secrets.token_hex(16), secrets.token_hex(16), durable)
        server.prepare()
        process = server.program().start(folder / "log")
        stack.callback(process.stop)
        wait_for(server.answers, process)
        yield server


@contextmanager
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ without any queue."""
    with scratch() as folder, ExitStack() as stack:
        one, two, three = ports.choose(3, str(folder))
        server = RabbitMQ(folder, (one, two, three), secrets.token_hex(16))
        server.prepare()
        for program in server.programs():
            process = program.start(folder / f"{program.name}.log")
            stack.callback(process.stop)
        wait_for(server.answers, process)
        yield server


def wait_for(answers: Callable[[], bool], process: Process, seconds: float = _START_SECONDS) -> None:
    """Wait until a server answers; fail with its log if it ends, or takes too long."""
    deadline = time.monotonic() + seconds
    while not answers():
        process.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{process.program.name} does not answer after {seconds:g} s: {process.log}")
        time.sleep(0.1)


class Databases:
    """Fresh, migrated databases: the migrations run once, into a template."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        server.create("migrated")
        migrate(server.url_of("migrated"))

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a new one, dropped at the end."""
        name = f"test{next(self._numbers)}"
        self._server.create(name, template="migrated")
        try:
            yield self._server.url_of(name)
        finally:
            self._server.drop(name)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """The database at this URL, closed in the end."""
    database = Database(url, "mailgroup-test", connections=8)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def rows_read(connection: Connection, *tables: str) -> int:
    """Return how many rows of these tables, or of all, the connection has read since its numbers were last published.

    Compare two values of one transaction: it publishes none meanwhile.
    """
    cursor = await connection.execute(
        """select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::int
           from pg_stat_xact_user_tables where relname = any(%(tables)s) or %(tables)s = '{}'""",
        {"tables": list(tables)},
    )
    [row] = await cursor.fetchall()
    return int(row[0])


async def make_read_only(database: Database, read_only: bool, *others: Database) -> None:
    """Make every further transaction read-only, as a full disk's guard does, or writable; end the sessions of today.

    :param others: pools of connections to the same database, which would lend the ended ones.
    """
    async with database.statement() as connection:
        await connection.execute("set default_transaction_read_only = off")
        cursor = await connection.execute("select current_database()")
        [name] = await cursor.fetchone() or ("",)
        await connection.execute(f"alter database {name} set default_transaction_read_only = {read_only}".encode())
        await connection.execute(
            """select pg_terminate_backend(pid, 60000) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid()"""
        )
    for each in (database, *others):
        await each._pool.check()  # drops the connections that have ended: the server has waited for their end


class Vhosts:
    """Fresh virtual hosts of one RabbitMQ, made many at a time because that costs seconds."""

    def __init__(self, server: RabbitMQ) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        self._ready: list[str] = []

    def fresh(self) -> str:
        """The URL of a new one; it stays until the server ends."""
        if not self._ready:
            self._ready = [f"test{next(self._numbers)}" for _ in range(_VHOSTS_AT_ONCE)]
            self._server.add_vhosts(self._ready)
        return self._server.url_of(self._ready.pop(0))
