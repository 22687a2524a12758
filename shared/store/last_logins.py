"""The last login of each person's mail client, and all SQL on it (table last_logins).

No login waits for it: a process remembers the logins, and writes them every few minutes in one statement. A killed
process loses the logins that it had not written.
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

Protocol = Literal["imap", "pop3", "smtp"]

WRITE_SECONDS = 180.0
"""Interval of writes, in seconds. Clients poll more often, so this bounds the writes for each account."""
STATEMENT_SECONDS = 30.0
"""Limit of a periodic write, in seconds."""
LAST_SECONDS = 5.0
"""Limit of the write at the end of the process, in seconds."""
PEERS = "array(select peer from last_logins where local_id = l.id)"
"""SQL for ``accounts.load_logins``: the addresses of the account's last logins."""

IMAP_DAYS = 30
"""Time after which a login by IMAP does not show any more that a person who logs in by POP3 reads folders: days; longer
than a holiday."""
POP3_ALONE = f"""exists (select from last_logins p where p.local_id = {{local_id}} and p.protocol = 'pop3'
    and not exists (select from last_logins i where i.local_id = p.local_id and i.protocol = 'imap'
        and i.at > p.at - interval '{IMAP_DAYS} days'))"""
"""SQL: the person logs in by POP3 alone, and sees no folder but INBOX. Format it with the id of the local account."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LastLogin:
    """A login. peer: the client's IP address."""

    protocol: Protocol
    at: datetime.datetime
    peer: str


class LastLogins:
    """The logins that this process has not written: only the latest one of each account."""

    def __init__(self, database: Database, protocol: Protocol, clock: Callable[[], float] = time.monotonic) -> None:
        """:param clock: monotonic seconds."""
        self._database = database
        self._protocol: Protocol = protocol
        self._clock = clock
        self._seen: dict[int, tuple[float, str]] = {}  # by local id: monotonic seconds, peer

    def remember(self, local_id: int, peer: str) -> None:
        """Remember a login for the next write."""
        self._seen[local_id] = (self._clock(), peer)

    async def run(self, stop_within: Callable[[float], Awaitable[bool]]) -> None:
        """Write periodically. :param stop_within: waits for seconds; returns True as soon as the process must stop."""
        while not await stop_within(WRITE_SECONDS):
            await self.write()

    async def write(self, seconds: float = STATEMENT_SECONDS) -> None:
        """Write the remembered logins; without any, no statement is run. It never fails."""
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
            log.warning(
                "last logins not written, retrying at the next write", protocol=self._protocol, error=str(error)
            )
        except Exception:  # a failure here must not end the service
            log.exception("last logins lost", protocol=self._protocol, accounts=len(rows))

    def _keep(self, seen: dict[int, tuple[float, str]]) -> None:
        self._seen = seen | self._seen  # logins since then are later


async def record_logins(connection: Connection, protocol: Protocol, rows: Sequence[tuple[int, float, str]]) -> None:
    """Write logins: account id, seconds ago, peer. Their times are by the database's clock.

    Missing accounts are skipped. Rows are locked in order of id, so replicas cannot deadlock.
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
    """Load the last login of an account by each protocol, as far as it is written."""
    cursor = await connection.execute(
        "select protocol, at, peer from last_logins where local_id = %s order by protocol", (local_id,)
    )
    return [LastLogin(*row) for row in await cursor.fetchall()]


async def list_pop3_alone(connection: Connection, local_ids: Sequence[int]) -> set[int]:
    """Return those of these people who log in by POP3 alone, as far as it is written."""
    cursor = await connection.execute(
        f"select id from unnest(%s::bigint[]) as l (id) where {POP3_ALONE.format(local_id='l.id')}",
        (array_literal(local_ids),),
    )
    return {int(row[0]) for row in await cursor.fetchall()}
