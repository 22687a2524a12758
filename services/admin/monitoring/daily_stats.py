"""The last day in numbers, for the first page of the console."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from shared.db.database import Connection
from shared.store import accounts, inbound_admin, relay_queue, submissions_admin

HOURS = 24


@dataclass(frozen=True, slots=True)
class DailyStats:
    """externals, people: accounts. hours: beginning, mails fetched, mails handed in; the oldest first.

    waiting: submissions to be sent, oldest: seconds. held, parked: mails.
    """

    externals: int
    people: int
    hours: list[tuple[datetime.datetime, int, int]]
    waiting: int
    oldest: float
    held: int
    parked: int

    @property
    def fetched(self) -> int:
        """In all hours."""
        return sum(fetched for _, fetched, _ in self.hours)

    @property
    def sent(self) -> int:
        """In all hours."""
        return sum(sent for _, _, sent in self.hours)


async def load_daily_stats(connection: Connection, now: datetime.datetime) -> DailyStats:
    """:param now: UTC."""
    externals, people = await accounts.count_accounts(connection)
    fetched = await inbound_admin.count_per_hour(connection, HOURS)
    sent = await submissions_admin.count_per_hour(connection, HOURS)
    waiting, oldest = await relay_queue.measure_backlog(connection)
    held, parked, _ = await inbound_admin.count_problems(connection)
    stuck, _ = await submissions_admin.count_parked(connection)
    this = now.replace(minute=0, second=0, microsecond=0)
    hours = [this - datetime.timedelta(hours=back) for back in range(HOURS - 1, -1, -1)]
    rows = [(hour, fetched.get(hour, 0), sent.get(hour, 0)) for hour in hours]
    return DailyStats(externals, people, rows, waiting, oldest, held, parked + stuck)
