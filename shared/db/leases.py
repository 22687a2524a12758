"""Leases: work that one process does for the whole system, whatever the number of replicas (table leases)."""

from __future__ import annotations

from shared.db.database import Connection


async def take_lease(connection: Connection, name: str, owner: str, seconds: float) -> bool:
    """Take or renew a lease for ``seconds``. Return False while another owner has it.

    A lease that was set before the clock was set back expires ``seconds`` from now: its owner may have ended.
    """
    await connection.execute(
        """update leases set expires = clock_timestamp() + make_interval(secs => %(seconds)s)
           where name = %(name)s and owner <> %(owner)s
               and expires > clock_timestamp() + 2 * make_interval(secs => %(seconds)s)""",
        {"name": name, "owner": owner, "seconds": seconds},
    )
    cursor = await connection.execute(
        """insert into leases (name, owner, expires)
           values (%(name)s, %(owner)s, clock_timestamp() + make_interval(secs => %(seconds)s))
           on conflict (name) do update set owner = excluded.owner, expires = excluded.expires
           where leases.owner = excluded.owner or leases.expires < clock_timestamp()""",
        {"name": name, "owner": owner, "seconds": seconds},
    )
    return cursor.rowcount == 1


async def end_all_leases(connection: Connection) -> None:
    """Delete every lease, after a restore: their owners do not exist any more."""
    await connection.execute("delete from leases")


async def release_lease(connection: Connection, name: str, owner: str) -> None:
    """Release a lease, so that another process can take it at once."""
    await connection.execute("delete from leases where name = %s and owner = %s", (name, owner))
