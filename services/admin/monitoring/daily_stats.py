"""Numbers of the last 24 hours, for the first page of the console."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from shared.db.database import Connection
from shared.store import accounts, inbound_admin, relay_queue, submissions_admin
from shared.store.inbound_admin import UnstartedMail

HOURS = 24


@dataclass(frozen=True, slots=True)
class DailyStats:
    """Numbers of the last 24 hours, and of what waits now."""

    externals: int  # external accounts
    people: int  # local accounts
    hours: list[tuple[datetime.datetime, int, int]]  # start, mails fetched, mails submitted; the oldest first
    waiting: int  # submissions in the relay queue
    oldest: float  # seconds of the oldest of them
    held: int  # mails on hold, those of accounts that are not started included
    parked: int  # mails and submissions that need attention
    unstarted: list[UnstartedMail]  # the external accounts that are not started

    @property
    def is_set_up(self) -> bool:
        """Whether there are accounts of both kinds, and an external account is started."""
        return self.externals > len(self.unstarted) and self.people > 0

    @property
    def fetched(self) -> int:
        """Mails fetched in all hours."""
        return sum(fetched for _, fetched, _ in self.hours)

    @property
    def sent(self) -> int:
        """Mails submitted in all hours."""
        return sum(sent for _, _, sent in self.hours)


async def load_daily_stats(connection: Connection, now: datetime.datetime) -> DailyStats:
    """Load the numbers. :param now: UTC."""
    externals, people = await accounts.count_accounts(connection)
    fetched = await inbound_admin.count_per_hour(connection, HOURS)
    sent = await submissions_admin.count_per_hour(connection, HOURS)
    waiting, oldest = await relay_queue.measure_backlog(connection)
    held, parked, _ = await inbound_admin.count_problems(connection)
    unstarted = await inbound_admin.count_unstarted(connection)
    held += sum(account.mails for account in unstarted)
    stuck, _ = await submissions_admin.count_parked(connection)
    current = now.replace(minute=0, second=0, microsecond=0)
    hours = [current - datetime.timedelta(hours=back) for back in range(HOURS - 1, -1, -1)]
    rows = [(hour, fetched.get(hour, 0), sent.get(hour, 0)) for hour in hours]
    return DailyStats(externals, people, rows, waiting, oldest, held, parked + stuck, unstarted)
