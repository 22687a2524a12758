"""The SMTP servers of external accounts (relays) and their state, and all SQL on them (table relays).

Relays of an account have positions from 0. A relay is *in trouble* while it fails, is paused, or is full. The first one
without trouble gets the mail (shared/store/relay_queue.py). Times are by the database's clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.db.database import FUTURE, Connection, storable
from shared.model import Relay, Server

OF_ACCOUNT = """(select json_agg(json_build_object('host', r.host, 'port', r.port, 'tls', r.tls, 'tls_fingerprint',
        r.tls_fingerprint, 'auth', r.auth, 'connections', r.connections, 'login', r.login,
        'password', convert_from(r.password, 'UTF8'), 'tokens_of', r.tokens_of, 'mails_per_minute', r.mails_per_minute,
        'recipients_per_day', r.recipients_per_day, 'position', r.position, 'size', r.size, 'refused', r.refused)
        order by r.position) from relays r where r.external_id = external_accounts.id)"""
"""SQL: the relays of an external account, for ``read_relays``."""
IN_TROUBLE = "({0}.failures > 0 or {0}.paused_at is not null or coalesce({0}.full_until > now(), false))"
"""SQL: whether the relay of this alias is in trouble."""
IS_DUE = "({0}.next_try_at <= now() and coalesce({0}.full_until <= now(), true))"
"""SQL: whether the relay of this alias may be tried now."""


def read_relays(stored: Sequence[Mapping[str, Any]]) -> tuple[Relay, ...]:
    """Return the relays of a column ``OF_ACCOUNT``."""
    return tuple(
        Relay(
            Server(row["host"], row["port"], row["tls"], row["tls_fingerprint"]),
            row["auth"],
            row["connections"],
            row["login"],
            None if row["password"] is None or row["tokens_of"] is not None else row["password"].encode(),
            row["tokens_of"],
            row["mails_per_minute"],
            row["recipients_per_day"],
            row["position"],
            row["size"],
            row["refused"],
        )
        for row in stored
    )


async def lock_relays(connection: Connection, external_id: int) -> None:
    """Lock the relays of an account before the account is changed: a sender that has locked one of them, to store a
    learnt size, then needs the version of the accounts."""
    await connection.execute("select from relays where external_id = %s order by position for update", (external_id,))


async def save_relays(connection: Connection, external_id: int, relays: Sequence[Relay]) -> None:
    """Store the relays of an account, in this order. What was learnt of them is forgotten, as it may have changed."""
    await connection.execute("delete from relays where external_id = %s and position >= %s", (external_id, len(relays)))
    for position, relay in enumerate(relays):
        values = {
            "host": relay.server.host,
            "port": relay.server.port,
            "tls": relay.server.tls,
            "tls_fingerprint": relay.server.tls_fingerprint,
            "auth": relay.auth,
            "connections": relay.connections,
            "login": relay.login,
            "password": b"" if relay.tokens_of is not None else relay.password,
            "tokens_of": relay.tokens_of,
            "mails_per_minute": relay.mails_per_minute,
            "recipients_per_day": relay.recipients_per_day,
            "size": None,
            "refused": None,
            "refused_at": None,
        }
        await connection.execute(
            f"""insert into relays (external_id, position, {", ".join(values)})
                values (%(external_id)s, %(position)s, {", ".join(f"%({name})s" for name in values)})
                on conflict (external_id, position) do update
                set {", ".join(f"{name} = excluded.{name}" for name in values)}""".encode(),
            values | {"external_id": external_id, "position": position},
        )


async def save_password(connection: Connection, external_id: int, position: int, password: bytes) -> None:
    """Store another sealed form of a relay's own password."""
    await connection.execute(
        "update relays set password = %s where external_id = %s and position = %s", (password, external_id, position)
    )


async def follow_address(connection: Connection, old: str, new: str) -> None:
    """Let the relays that use the access tokens of an external account name it by its new address."""
    await connection.execute("update relays set tokens_of = %s where lower(tokens_of) = lower(%s)", (new, old))


async def erase_passwords(connection: Connection, external_ids: Collection[int]) -> None:
    """Erase the own passwords of these accounts' relays."""
    await connection.execute(
        "update relays set password = '' where external_id = any(%s) and password <> ''", (list(external_ids),)
    )


# ---------------------------------------------------------------------------------------------- state


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """The state of a relay. Times: UTC."""

    external_id: int
    failures: int  # consecutive failures to connect or log in
    next_try_at: datetime.datetime
    paused_at: datetime.datetime | None
    connections_limit: int | None
    last_success_at: datetime.datetime | None
    last_error: str | None
    last_error_kind: str | None
    last_error_at: datetime.datetime | None
    position: int = 0
    host: str = ""
    connections: int = 0  # limit of the operator
    full_until: datetime.datetime | None = None  # None: no limit of the operator is reached
    full_why: str | None = None
    of: int = 1  # relays of the account

    @property
    def in_trouble(self) -> bool:
        """Whether the account's mail goes to the next relay, if there is one."""
        return self.failures > 0 or self.paused_at is not None or self.full_until is not None


async def load_status(
    connection: Connection, external_ids: Collection[int] | None = None
) -> dict[int, list[RelayStatus]]:
    """Load the states of all relays, in their order, by id of the account; only of these accounts, if any are given."""
    cursor = await connection.execute(
        """select external_id, failures, next_try_at, paused_at, connections_limit, last_success_at, last_error,
                  last_error_kind, last_error_at, position, host, connections,
                  case when full_until > now() then full_until end, full_why,
                  count(*) over (partition by external_id)
           from relays where %(ids)s::bigint[] is null or external_id = any(%(ids)s)
           order by external_id, position""",
        {"ids": None if external_ids is None else list(external_ids)},
    )
    found: dict[int, list[RelayStatus]] = {}
    for row in await cursor.fetchall():
        found.setdefault(row[0], []).append(RelayStatus(*row))
    return found


async def record_success(connection: Connection, external_id: int, position: int = 0) -> bool:
    """Record a successful login: it ends backoff and pause. :return: whether there was one."""
    cursor = await connection.execute(
        """with before as (select external_id, position, failures > 0 or paused_at is not null as troubled
                           from relays where external_id = %s and position = %s for update)
           update relays r set failures = 0, paused_at = null, next_try_at = now(), last_success_at = now()
           from before where (r.external_id, r.position) = (before.external_id, before.position) returning troubled""",
        (external_id, position),
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def record_failure(
    connection: Connection,
    external_id: int,
    kind: str,
    error: str,
    delay: float,
    *,
    pause: bool = False,
    position: int = 0,
) -> None:
    """Record that the provider is unreachable, or refuses the login (``pause``): no try for ``delay`` seconds."""
    await connection.execute(
        """update relays set failures = failures + 1, last_error = %s, last_error_kind = %s, last_error_at = now(),
               next_try_at = now() + make_interval(secs => %s),
               paused_at = case when %s then coalesce(paused_at, now()) else paused_at end
           where external_id = %s and position = %s""",
        (storable(error), kind, delay, pause, external_id, position),
    )


async def postpone(connection: Connection, external_id: int, position: int, seconds: float) -> None:
    """Let nobody else try a relay that is in trouble, while the caller does."""
    await connection.execute(
        """update relays set next_try_at = now() + make_interval(secs => %s)
           where external_id = %s and position = %s""",
        (seconds, external_id, position),
    )


async def record_full(connection: Connection, external_id: int, position: int, why: str, seconds: float) -> None:
    """Record that a limit of the operator is reached: the relay takes no mail for ``seconds``."""
    await connection.execute(
        """update relays set full_why = %s, full_until = now() + make_interval(secs => %s)
           where external_id = %s and position = %s""",
        (why, seconds, external_id, position),
    )


async def lower_connections(connection: Connection, external_id: int, limit: int, position: int = 0) -> None:
    """Lower the limit of connections to this relay."""
    await connection.execute(
        """update relays set connections_limit = least(coalesce(connections_limit, %(limit)s), %(limit)s)
           where external_id = %(id)s and position = %(position)s""",
        {"limit": limit, "id": external_id, "position": position},
    )


async def lift_limits(connection: Connection) -> None:
    """Reset the lowered limits of connections of all relays."""
    await connection.execute("update relays set connections_limit = null where connections_limit is not null")


async def unpause(connection: Connection, external_id: int, positions: Collection[int] | None = None) -> None:
    """End backoff, pause and lowered limit of an account that is new, changed or tested.

    :param positions: of relays that work; None: all of the account.
    """
    await connection.execute(
        """update relays set paused_at = null, failures = 0, next_try_at = now(), connections_limit = null,
               full_until = null
           where external_id = %(id)s and (%(positions)s::int[] is null or position = any(%(positions)s))""",
        {"id": external_id, "positions": None if positions is None else sorted(positions)},
    )


async def skip_backoff(connection: Connection, external_ids: Collection[int]) -> None:
    """End the backoff of these accounts at the operator's request; a pause stays."""
    await connection.execute(
        "update relays set next_try_at = now(), failures = 0, full_until = null where external_id = any(%s)",
        (sorted(external_ids),),
    )


async def end_idle_failures(connection: Connection) -> None:
    """End the backoff of accounts for which no mail waits any more: no try would show that the provider is back.

    A refused login (a pause) and a changed certificate need the operator in any case; they stay. A relay before another
    one is tried without mail.
    """
    await connection.execute(
        """update relays r set failures = 0, next_try_at = now()
           where failures > 0 and paused_at is null and last_error_kind is distinct from 'certificate'
             and not exists (select from relays n where n.external_id = r.external_id and n.position > r.position)
             and not exists (select from submissions s where s.external_id = r.external_id and s.state = 'queued')"""
    )


async def fix_clock_jump(connection: Connection) -> int:
    """Make relays due whose time was set before the clock was set back. :return: their number.

    Without a failure no relay is due in the future.
    """
    cursor = await connection.execute(
        f"""update relays set next_try_at = least(next_try_at, now()), full_until = null
            where next_try_at > now()
                  and (failures = 0 and next_try_at > {FUTURE} or greatest(last_success_at, last_error_at) > {FUTURE})
              or full_until > now() + interval '25 hours'"""
    )
    return cursor.rowcount


# ---------------------------------------------------------------------------------------------- learnt sizes


async def learn_size(connection: Connection, external_id: int, octets: int | None, position: int = 0) -> None:
    """Store the SIZE limit that a relay announces; None: it announces no limit."""
    await connection.execute(
        "update relays set size = %s where external_id = %s and position = %s", (octets, external_id, position)
    )


async def learn_refused(connection: Connection, external_id: int, octets: int, position: int = 0) -> None:
    """Store that a relay refused a mail of this size as too large."""
    await connection.execute(
        """update relays set refused = least(refused, %s), refused_at = now()
           where external_id = %s and position = %s""",
        (octets, external_id, position),
    )


async def forget_sizes(connection: Connection, external_id: int) -> None:
    """Forget the learnt size limits of an account's relays, which may have changed."""
    await connection.execute(
        "update relays set size = null, refused = null, refused_at = null where external_id = %s", (external_id,)
    )


async def forget_refused(connection: Connection) -> None:
    """Forget refusals for size that are older than a week."""
    await connection.execute(
        "update relays set refused = null, refused_at = null where refused_at < now() - interval '7 days'"
    )
