"""When a person's mail client logged in last, and all SQL on it (table last_logins).

No login waits for it: a process remembers who logged in, and writes that down every few minutes, by one statement for
all of them. What a process that is killed had not written yet is lost; the next login tells as much.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from shared.db.arrays import array_literal
from shared.db.database import Connection, Database, storable
from shared.errors import Temporary

Protocol = Literal["pop3", "smtp"]

WRITE_SECONDS = 180.0
"""Clients poll more often than that: each of them is a row every so many seconds, however often it comes."""
STATEMENT_SECONDS = 30.0
LAST_SECONDS = 5.0
"""For what is written when a process ends."""
PEERS = "array(select peer from last_logins where local_id = l.id)"
"""Where an account's last logins came from, for ``accounts.logins``."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LastLogin:
    """A login. peer: the client's IP address."""

    protocol: Protocol
    at: datetime.datetime
    peer: str


class LastLogins:
    """What one process saw and has not written yet: no more than the latest login of each account."""

    def __init__(self, database: Database, protocol: Protocol, clock: Callable[[], float] = time.monotonic) -> None:
        """:param clock: monotonic seconds."""
        self._database = database
        self._protocol: Protocol = protocol
        self._clock = clock
        self._seen: dict[int, tuple[float, str]] = {}  # local id -> time by the clock, peer

    def remember(self, local_id: int, peer: str) -> None:
        """Somebody has logged in."""
        self._seen[local_id] = (self._clock(), peer)

    async def run(self, stop_within: Callable[[float], Awaitable[bool]]) -> None:
        """Write periodically. :param stop_within: waits for seconds; returns True as soon as the process is to stop."""
        while not await stop_within(WRITE_SECONDS):
            await self.write()

    async def write(self, seconds: float = STATEMENT_SECONDS) -> None:
        """Write down what was seen; nothing is asked of the database if that is nothing. It never fails."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        now = self._clock()
        rows = [(local_id, now - at, peer) for local_id, (at, peer) in seen.items()]
        try:
            async with self._database.statement(seconds) as connection:
                await record_logins(connection, self._protocol, rows)
        except asyncio.CancelledError:
            self._keep(seen)
            raise
        except Temporary as error:
            self._keep(seen)
            log.warning("last logins not written", protocol=self._protocol, reason=str(error))
        except Exception:  # a login is worth more than its being remembered
            log.exception("last logins lost", protocol=self._protocol, accounts=len(rows))

    def _keep(self, seen: dict[int, tuple[float, str]]) -> None:
        self._seen = seen | self._seen  # who came meanwhile came later


async def record_logins(connection: Connection, protocol: Protocol, rows: Sequence[tuple[int, float, str]]) -> None:
    """Write down logins: of which account, how many seconds ago, from where. The database's clock counts for all.

    Accounts that are gone are passed by. Rows are locked in the order of ids, so replicas do not lock each other out.
    """
    ordered = sorted(rows)
    await connection.execute(
        """insert into last_logins as l (local_id, protocol, at, peer)
           select s.local_id, %s, clock_timestamp() - make_interval(secs => s.ago), s.peer
           from unnest(%s::bigint[], %s::float8[], %s::text[]) as s (local_id, ago, peer)
               join local_accounts a on a.id = s.local_id
           order by s.local_id
           on conflict (local_id, protocol) do update set at = excluded.at, peer = excluded.peer
               where l.at < excluded.at""",
        (
            protocol,
            array_literal(local_id for local_id, _, _ in ordered),
            [ago for _, ago, _ in ordered],
            [storable(peer)[:100] for _, _, peer in ordered],
        ),
    )


async def load_last_logins(connection: Connection, local_id: int) -> list[LastLogin]:
    """The last login of an account by each protocol that it ever came by, as far as they are written."""
    cursor = await connection.execute(
        "select protocol, at, peer from last_logins where local_id = %s order by protocol", (local_id,)
    )
    return [LastLogin(*row) for row in await cursor.fetchall()]
