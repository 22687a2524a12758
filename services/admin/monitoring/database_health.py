"""The state of the PostgreSQL server: age of transaction ids, replication slots, archiving of the write-ahead log.

All of it is visible to a role without privileges, on a server of any kind: no exporter is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.admin.monitoring.problem_kinds import Problem
from shared.db.database import Connection

OLD_FACTOR = 2
"""Age of ids that is a problem: times autovacuum_freeze_max_age, at which autovacuum has to freeze them."""
OLD_IDS = 1_200_000_000
"""Age of ids that is a problem with any setting: PostgreSQL refuses all writes at about 2.1e9 (manual 24.1.5)."""
RETAINED_OCTETS = 1024**3
"""Write-ahead log that a replication slot may retain: octets; the default of max_wal_size."""
SLOT_SECONDS = ARCHIVE_SECONDS = 600.0
"""Seconds that a standby may be away, and that archiving may fail, before it is reported: a restart takes less."""


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    """The state of the server now. Ages count transactions, or multixacts."""

    xid_age: int = 0  # of the oldest transaction id that is not frozen, in all databases
    xid_limit: int = 1  # autovacuum_freeze_max_age
    multixact_age: int = 0
    multixact_limit: int = 1  # autovacuum_multixact_freeze_max_age
    active_slots: int = 0  # replication slots with a standby that is connected
    inactive_slots: int = 0
    wal_retained: int = 0  # octets of the write-ahead log that the slowest slot retains
    archive_failing: bool = False  # the latest segment could not be archived


async def load_health(connection: Connection) -> DatabaseHealth:
    """Ask the server; the cost does not depend on the data. A standby that is being read has no slots of its own."""
    cursor = await connection.execute(
        """select (select max(age(datfrozenxid)) from pg_database),
                  current_setting('autovacuum_freeze_max_age')::int,
                  (select max(mxid_age(datminmxid)) from pg_database),
                  current_setting('autovacuum_multixact_freeze_max_age')::int,
                  slots.active, slots.inactive, slots.retained,
                  current_setting('archive_mode') <> 'off'
                      and coalesce(a.last_failed_time > coalesce(a.last_archived_time, '-infinity'), false)
           from pg_stat_archiver a, (
               select count(*) filter (where active) as active, count(*) filter (where not active) as inactive,
                      coalesce(max(case when not pg_is_in_recovery()
                                        then pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) end), 0)::bigint
                          as retained
               from pg_replication_slots where not temporary) slots"""
    )
    row = await cursor.fetchone()
    return DatabaseHealth(*row) if row else DatabaseHealth()


def find_in_database(health: DatabaseHealth) -> list[Problem]:
    """Return the problems of the server. Pure."""
    found = []
    for name, age, limit in (
        ("transaction ids", health.xid_age, health.xid_limit),
        ("multixacts", health.multixact_age, health.multixact_limit),
    ):
        if age > min(OLD_FACTOR * limit, OLD_IDS):
            found.append(Problem("wraparound", name, f"PostgreSQL: the oldest {name} are {age:,} old, not frozen"))
    if health.inactive_slots:
        text = f"PostgreSQL: {health.inactive_slots} standbys are not connected (replication slots)"
        found.append(Problem("replication", "", text, SLOT_SECONDS))
    if health.wal_retained > RETAINED_OCTETS:
        text = f"PostgreSQL: {health.wal_retained >> 20} MiB of the write-ahead log wait for a standby"
        found.append(Problem("replication", "lag", text, SLOT_SECONDS))
    if health.archive_failing:
        text = "PostgreSQL: the write-ahead log is not archived (archive_command fails)"
        found.append(Problem("archiving", "", text, ARCHIVE_SECONDS))
    return found
