"""The way to PostgreSQL: one pool a process, short transactions, failures as Temporary.

Every SQL statement stands in the module that owns its table; those functions take a connection and never commit.
Who calls them opens the transaction, so what belongs together commits together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from shared.db.psycopg_connection import WatchedConnection
from shared.errors import Temporary

Row = tuple[Any, ...]
Connection = psycopg.AsyncConnection[Row]

TRANSACTION_SECONDS = 60.0
"""No transaction lasts longer: a server that hangs is a failed server."""
IDLE_SECONDS = 75.0
"""So long the server lets a process do nothing within a transaction: it is stopped, or its machine is gone."""

FUTURE = "now() + interval '5 seconds'"
"""SQL: what is said to have happened later than this happened before the server's clock was set back."""


def storable(text: str) -> str:
    """The text as PostgreSQL takes it: without NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class Database:
    """A pool of connections. ``ready`` tells whether the server answers."""

    def __init__(self, url: str, name: str, connections: int = 8) -> None:
        """Opens nothing yet. :param url: a libpq URL. :param name: shown in pg_stat_activity."""
        self._url = url
        self._options: dict[str, Any] = {
            "autocommit": True,
            "application_name": f"mailgroup-{name}",
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "prepare_threshold": 2,
        }
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            connection_class=WatchedConnection,
            kwargs=self._options,
            min_size=1,
            max_size=connections,
            open=False,
            configure=_configure,
            timeout=20,
            reconnect_timeout=0,
            name=name,
        )

    async def open(self) -> None:
        """Start the pool. It connects in the background and goes on trying."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """End every connection."""
        await self._pool.close(timeout=2)

    @asynccontextmanager
    async def transaction(self, seconds: float = TRANSACTION_SECONDS) -> AsyncIterator[Connection]:
        """A transaction: committed when the block ends, rolled back when it raises.

        :raises Temporary: the server is away, refused, or took longer than ``seconds``.
        """
        async with self.statement(seconds) as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def statement(self, seconds: float | None = TRANSACTION_SECONDS) -> AsyncIterator[Connection]:
        """A connection on which each statement is a transaction by itself: for one statement, in one round trip.

        :param seconds: for all of it. None: it is kept, and who keeps it watches the time.
        :raises Temporary: as ``transaction``; a statement that writes may have been committed then.
        """
        with _failures(seconds):
            async with asyncio.timeout(seconds), self._pool.connection() as connection:
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # the pool of Python 3.11 loses cancellations
                    raise asyncio.CancelledError
                yield connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """A connection beside the pool, for what lasts as long as a session does. :raises Temporary: it ended."""
        with _failures(None):
            async with await WatchedConnection.connect(self._url, **self._options) as connection:
                await _configure(connection)
                yield connection

    @asynccontextmanager
    async def snapshot(self, seconds: float = TRANSACTION_SECONDS) -> AsyncIterator[Connection]:
        """A transaction that only reads; all its statements see the same moment. :raises Temporary: as above."""
        async with self.transaction(seconds) as connection:
            await connection.execute("set transaction isolation level repeatable read, read only")
            yield connection

    async def connection_error(self) -> str | None:
        """Why the server cannot be used, in its own words or libpq's; the pool only tells that it waited in vain."""
        try:
            connection = await psycopg.AsyncConnection.connect(self._url, connect_timeout=5)
        except psycopg.Error as error:
            return f"database: {' '.join(str(error).split())}"
        await connection.close()
        return None

    async def ready(self) -> bool:
        """Whether the server answers a query within two seconds."""
        try:
            async with self.statement(2.0) as connection:
                await connection.execute("select 1")
        except Temporary:
            return False
        return True


async def _configure(connection: Connection) -> None:
    """How the server watches this connection from its side."""
    await connection.execute(
        f"""set idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)};
            set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3"""
    )


@contextmanager
def _failures(seconds: float | None) -> Iterator[None]:
    """What goes wrong with the server, as Temporary."""
    try:
        yield
    except psycopg.errors.ProgramLimitExceeded:
        raise  # an OperationalError to psycopg, but waiting does not help: a value is too large for an index
    except (
        psycopg.OperationalError,
        psycopg.InterfaceError,
        psycopg.errors.IdleInTransactionSessionTimeout,  # an InternalError to psycopg
        PoolTimeout,
    ) as error:
        raise Temporary(f"database: {type(error).__name__}: {str(error).strip()}") from error
    except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable) as error:
        # An upgrade is under way, or has not been run: no mail is at fault.
        raise Temporary(f"database: its schema is not that of this version: {str(error).strip()}") from error
    except TimeoutError as error:
        raise Temporary(f"database: no answer within {seconds} s") from error
