"""Authorizations of external accounts, each waiting for a person or ended, and all SQL on them (table oauth_requests).

Who works on one has claimed it for a while, so no two processes ask the provider the same at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from shared.db.database import Connection, storable

State = Literal["waits", "authorized", "failed"]
CLAIM_SECONDS = 75.0
"""Longer than any exchange with a provider takes."""
_COLUMNS = "external_id, key, state, words, begun_by, begun_at, ends_at, ends_at <= clock_timestamp(), request"


@dataclass(frozen=True, slots=True)
class OAuthRequest:
    """One. words: why it failed, or what was wrong at the latest try. late: nobody is waited for any more.

    request: sealed; empty once it has ended.
    """

    external_id: int
    key: str
    state: State
    words: str
    begun_by: str
    begun_at: datetime
    ends_at: datetime
    expired: bool
    request: bytes = field(repr=False)


async def load_latest(connection: Connection, external_id: int) -> OAuthRequest | None:
    """Of this account."""
    cursor = await connection.execute(
        f"select {_COLUMNS} from oauth_requests where external_id = %s".encode(), (external_id,)
    )
    row = await cursor.fetchone()
    return None if row is None else OAuthRequest(*row)


async def list_waiting(connection: Connection) -> list[OAuthRequest]:
    """All that wait for a person."""
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
    """Begin one instead of the one of this key ('': of none). False: somebody else began one meanwhile.

    :param seconds: it is too late then. :param first_try: seconds; None: a browser brings the answer.
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
    """Those whose time has come, of one account or of all; nobody else gets them for a while."""
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
    """For whoever brings the answer to this one; False if another one has brought it, or it has ended."""
    cursor = await connection.execute(
        """update oauth_requests set next_try_at = clock_timestamp() + make_interval(secs => %s)
           where key = %s and state = 'waits' and next_try_at = 'infinity' and ends_at > clock_timestamp()""",
        (CLAIM_SECONDS, key),
    )
    return cursor.rowcount == 1


async def postpone(connection: Connection, key: str, request: bytes, seconds: float, words: str) -> None:
    """Ask again after so many seconds. words: what was wrong this time."""
    await connection.execute(
        """update oauth_requests
           set request = %s, words = %s, next_try_at = clock_timestamp() + make_interval(secs => %s)
           where key = %s and state = 'waits'""",
        (request, storable(words), seconds, key),
    )


async def finish_request(connection: Connection, key: str, state: State, words: str = "") -> bool:
    """End one that waits; False if it did not any more."""
    cursor = await connection.execute(
        "update oauth_requests set state = %s, words = %s, request = '' where key = %s and state = 'waits'",
        (state, storable(words), key),
    )
    return cursor.rowcount == 1
