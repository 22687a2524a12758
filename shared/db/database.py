"""Access to PostgreSQL: one pool for each process, short transactions, failures as Temporary.

Every SQL statement is in the module that owns its table. The functions there take a connection and never commit; their
caller opens the transaction, so changes that belong together commit together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import psycopg
import structlog
from prometheus_client import Gauge
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from shared.db.errors import DatabaseCorrupted, as_temporary
from shared.db.migrations import revisions
from shared.db.psycopg_connection import WatchedConnection
from shared.errors import Temporary

CORRUPTED_AT = Gauge(
    "mailgroup_database_corrupted_timestamp_seconds",
    "When PostgreSQL last reported corrupted data to this process (SQLSTATE XX001, XX002); 0: never.",
)

log = structlog.get_logger()

Missing = Literal["database", "migration"]
"""What a service waits for: the server, or the schema of its version."""
Row = tuple[Any, ...]
Connection = psycopg.AsyncConnection[Row]

TRANSACTION_SECONDS = 60.0
"""Limit of a transaction, in seconds: a server that does not answer for so long counts as failed."""
IDLE_SECONDS = 75.0
"""Limit that the server sets for an idle transaction, in seconds: its process is stopped, or its machine is gone."""

FUTURE = "now() + interval '5 seconds'"
"""SQL: a stored time after this one is in the future. The row was written before the server's clock was set back."""


def storable(text: str) -> str:
    """Make a text storable in PostgreSQL: replace NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class Database:
    """A pool of connections, and single ones beside it."""

    def __init__(self, url: str, name: str, connections: int = 5, *, few_rows: bool = False) -> None:
        """Configure the pool without opening it.

        :param url: a libpq URL. :param name: application_name, shown in pg_stat_activity.
        :param connections: limit of the pool.
        :param few_rows: statements find their rows by an index, whatever the size of a table was when the server
            planned them. It keeps plans: one from a quiet time would read the whole table for each mail of a busy one.
        """
        self._url = url
        self._options: dict[str, Any] = {
            "autocommit": True,
            "application_name": name,
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "prepare_threshold": 2,
        }
        self._few_rows = few_rows
        self._pool: AsyncConnectionPool[WatchedConnection[Row]] = AsyncConnectionPool(
            url,
            connection_class=WatchedConnection,
            kwargs=self._options,
            min_size=1,
            max_size=connections,
            open=False,
            configure=self._configure,
            timeout=20,
            reconnect_timeout=0,
            name=name,
        )
        self._question: asyncio.Task[Missing | None] | None = None  # of find_missing()
        self._sessions = asyncio.Semaphore(max(1, connections // 2))  # the others are for transactions

    async def open(self) -> None:
        """Start the pool. It connects in the background and retries until the server answers."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        if self._question is not None:
            self._question.cancel()
            await asyncio.gather(self._question, return_exceptions=True)
        await self._pool.close(timeout=2)

    @asynccontextmanager
    async def transaction(
        self, seconds: float = TRANSACTION_SECONDS, *, kept: bool = True
    ) -> AsyncIterator[Connection]:
        """Open a transaction: it is committed when the block ends, and rolled back when the block raises.

        :param kept: False rolls it back in any case, for a dry run.
        :raises Temporary: the server is unavailable, refused the connection, or took longer than ``seconds``.
        """
        async with self.statement(seconds) as connection, connection.transaction(force_rollback=not kept):
            yield connection

    @asynccontextmanager
    async def statement(self, seconds: float | None = TRANSACTION_SECONDS) -> AsyncIterator[Connection]:
        """Lend a connection in autocommit mode: for one statement, in one round trip.

        :param seconds: limit of the block. None: no limit; the caller limits the time itself.
        :raises Temporary: as ``transaction``; a statement that writes may have been committed then.
        """
        with _failures(seconds):
            async with asyncio.timeout(seconds), self._pool.connection() as connection:
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # Python 3.11: the pool loses cancellations
                    raise asyncio.CancelledError
                if not connection.gives_numbers:
                    await self._configure(connection)
                yield connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """Lend a connection for a session with advisory locks, which end with the block.

        Half of the pool may be lent so. :raises Temporary: the connection was lost.
        """
        async with self._sessions, self.statement(None) as connection:
            try:
                yield connection
                await connection.execute("select pg_advisory_unlock_all()")
            except BaseException:
                await connection.close()
                raise

    @asynccontextmanager
    async def own_connection(self) -> AsyncIterator[Connection]:
        """Open a connection outside the pool, until the block ends. :raises Temporary: the connection was lost."""
        with _failures(None):
            async with await WatchedConnection.connect(self._url, **self._options) as connection:
                await self._configure(connection)
                yield connection

    @asynccontextmanager
    async def snapshot(self, seconds: float = TRANSACTION_SECONDS) -> AsyncIterator[Connection]:
        """Open a read-only transaction whose statements all see the same snapshot. :raises Temporary: as above."""
        async with self.transaction(seconds) as connection:
            await connection.execute("set transaction isolation level repeatable read, read only")
            yield connection

    async def _configure(self, connection: WatchedConnection[Row]) -> None:
        """Set the server's own limits on this connection, and skip the numbers that a failover lost.

        Statements are not compiled (jit): that takes longer than the few rows of a mail. A bitmap of an index holds the
        entries of old rows, too, each time; a scan of the index drops them.
        A connection to a standby stays open while the standby is promoted. So this is repeated before each use, until
        the connection accepts changes.
        """
        plans = "set enable_seqscan = off; set enable_bitmapscan = off;" if self._few_rows else ""
        cursor = await connection.execute(
            f"""set idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)};
                set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3;
                set jit = off; {plans}
                {_SKIP_LOST_NUMBERS};
                select current_setting('transaction_read_only') = 'off'"""
        )
        while cursor.nextset():
            pass
        connection.gives_numbers = await cursor.fetchone() == (True,)

    async def connection_error(self) -> str | None:
        """Return why the server cannot be used, as the server or libpq says it; None if it can.

        The pool reports only its timeout.
        """
        try:
            connection = await psycopg.AsyncConnection.connect(self._url, connect_timeout=5)
        except psycopg.Error as error:
            return f"database: {' '.join(str(error).split())}"
        await connection.close()
        return None

    async def ready(self, seconds: float = 2.0) -> bool:
        """Return whether the server answers a query within ``seconds``, whatever its schema."""
        return await self.find_missing(seconds) != "database"

    async def find_missing(self, seconds: float = 2.0) -> Missing | None:
        """Return what a service has to wait for: "database" if the server does not answer within ``seconds``,
        "migration" if this version does not work with its schema; None if the database can be used.

        A server that hangs does not confirm that it cancelled the query before: that takes longer, and is not awaited.
        """
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask(seconds))
        await asyncio.wait({self._question}, timeout=seconds)
        return self._question.result() if self._question.done() else "database"

    async def _ask(self, seconds: float) -> Missing | None:
        try:
            async with self.statement(seconds) as connection:
                cursor = await connection.execute(revisions.SCHEMA_QUERY)
                revision, oldest = await cursor.fetchone() or (None, None)
        except Temporary as error:
            return "migration" if isinstance(error.__cause__, psycopg.errors.UndefinedTable) else "database"
        return None if revisions.is_usable(revision, oldest) else "migration"


_SKIP_LOST_NUMBERS = """
    do $$ begin
        if to_regproc('skip_lost_numbers') is not null and current_setting('transaction_read_only') = 'off' then
            perform skip_lost_numbers();
        end if;
    end $$"""
"""SQL: a promoted standby gives no number that the old primary has given. A database that is not migrated yet has no
numbers, and a read-only one gives none."""


async def is_read_only(connection: Connection) -> bool:
    """Return whether the server accepts no changes: it is a standby, or it was set so."""
    cursor = await connection.execute(
        "select pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool"
    )
    return (await cursor.fetchone() or (False,))[0] is True


@contextmanager
def _failures(seconds: float | None) -> Iterator[None]:
    """Wrap the failures that the data of the statement does not cause as Temporary."""
    try:
        yield
    except (psycopg.Error, PoolTimeout) as error:
        temporary = as_temporary(error)
        if temporary is None:
            raise
        if isinstance(temporary, DatabaseCorrupted):
            CORRUPTED_AT.set_to_current_time()
            log.error("database corrupted", error=str(temporary))
        raise temporary from error
    except TimeoutError as error:
        raise Temporary(f"database: no answer within {seconds} s") from error
