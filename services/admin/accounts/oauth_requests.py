"""OAuth authorizations of external accounts, waiting or finished, and all SQL on them (table oauth_requests).

A process claims an authorization before it asks the provider, so two processes never ask at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from shared.db.database import Connection, storable

State = Literal["waits", "authorized", "failed"]
CLAIM_SECONDS = 75.0
"""Seconds that a claim lasts: longer than any exchange with a provider."""
_COLUMNS = "external_id, key, state, words, begun_by, begun_at, ends_at, ends_at <= clock_timestamp(), request"


@dataclass(frozen=True, slots=True)
class OAuthRequest:
    """The latest authorization of an external account."""

    external_id: int
    key: str
    state: State
    words: str  # why it failed, or the error of the latest try
    begun_by: str  # user of the console, or of the command
    begun_at: datetime
    ends_at: datetime
    expired: bool  # it waits no longer
    request: bytes = field(repr=False)  # sealed; empty once it has finished


async def load_latest(connection: Connection, external_id: int) -> OAuthRequest | None:
    """Load the latest authorization of an account."""
    cursor = await connection.execute(
        f"select {_COLUMNS} from oauth_requests where external_id = %s".encode(), (external_id,)
    )
    row = await cursor.fetchone()
    return None if row is None else OAuthRequest(*row)


async def list_waiting(connection: Connection) -> list[OAuthRequest]:
    """List the authorizations that wait for a person."""
    cursor = await connection.execute(f"select {_COLUMNS} from oauth_requests where state = 'waits'".encode())
    return [OAuthRequest(*row) for row in await cursor.fetchall()]


async def start_request(
    connection: Connection,
    external_id: int,
    key: str,
    request: bytes,
    who: str,
    *,
    seconds: float,
    first_try: float | None,
    instead_of: str,
) -> bool:
    """Start an authorization, which replaces the one with the key ``instead_of`` ('': there is none).

    :param seconds: until it expires. :param first_try: seconds until the first poll; None: a browser brings the answer.
    :return: False if another authorization was started meanwhile.
    """
    cursor = await connection.execute(
        """insert into oauth_requests as a (external_id, key, state, request, begun_by, ends_at, next_try_at)
           values (%(external)s, %(key)s, 'waits', %(request)s, %(who)s,
                   clock_timestamp() + make_interval(secs => %(seconds)s),
                   coalesce(clock_timestamp() + make_interval(secs => %(first)s), 'infinity'))
           on conflict (external_id) do update
           set key = excluded.key, state = excluded.state, words = '', request = excluded.request,
               begun_by = excluded.begun_by, begun_at = now(), ends_at = excluded.ends_at,
               next_try_at = excluded.next_try_at
           where a.key = %(instead)s""",
        {
            "external": external_id,
            "key": key,
            "request": request,
            "who": storable(who),
            "seconds": seconds,
            "first": first_try,
            "instead": instead_of,
        },
    )
    return cursor.rowcount == 1


async def claim_due(connection: Connection, external_id: int | None = None) -> list[OAuthRequest]:
    """Claim the due authorizations of one account or of all for ``CLAIM_SECONDS``."""
    cursor = await connection.execute(
        f"""update oauth_requests set next_try_at = clock_timestamp() + make_interval(secs => %(seconds)s)
            where external_id in (
                select external_id from oauth_requests
                where state = 'waits'
                  and (next_try_at <= clock_timestamp() or next_try_at = 'infinity' and ends_at <= clock_timestamp())
                  and (%(external)s::bigint is null or external_id = %(external)s)
                for update skip locked)
            returning {_COLUMNS}""".encode(),
        {"seconds": CLAIM_SECONDS, "external": external_id},
    )
    return [OAuthRequest(*row) for row in await cursor.fetchall()]


async def claim_answer(connection: Connection, key: str) -> bool:
    """Claim an authorization for its answer; False if another answer came first, or it has finished."""
    cursor = await connection.execute(
        """update oauth_requests set next_try_at = clock_timestamp() + make_interval(secs => %s)
           where key = %s and state = 'waits' and next_try_at = 'infinity' and ends_at > clock_timestamp()""",
        (CLAIM_SECONDS, key),
    )
    return cursor.rowcount == 1


async def postpone(connection: Connection, key: str, request: bytes, seconds: float, words: str) -> None:
    """Poll again after this number of seconds. :param words: the error of this try."""
    await connection.execute(
        """update oauth_requests
           set request = %s, words = %s, next_try_at = clock_timestamp() + make_interval(secs => %s)
           where key = %s and state = 'waits'""",
        (request, storable(words), seconds, key),
    )


async def finish_request(connection: Connection, key: str, state: State, words: str = "") -> bool:
    """Finish a waiting authorization; False if it waits no longer."""
    cursor = await connection.execute(
        "update oauth_requests set state = %s, words = %s, request = '' where key = %s and state = 'waits'",
        (state, storable(words), key),
    )
    return cursor.rowcount == 1
