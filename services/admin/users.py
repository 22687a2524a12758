"""Who may use the console and who is signed in, and all SQL on it (tables console_users, console_sessions).

A session is a random token in a cookie, of which only a digest is stored. It is good while the password is the one that
it began with, so a new password ends every session of before.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from shared.database import Connection, storable
from shared.failures import Permanent
from shared.passwords import Pool

Role = Literal["administrator", "observer", "person"]
FIRST = "admin"
"""The name of the first administrator, whose password the setting ADMIN_PASSWORD gives."""
IDLE_HOURS, OLD_DAYS = 12, 7
_SEEN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Identity:
    """Who has shown a password: a user of the console or a local account, with the hash that it was checked against."""

    user_id: int | None
    local_id: int | None
    name: str
    password_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at a page. name: of the user of the console, or the address of the local account (role person)."""

    session_id: int
    role: Role
    name: str
    user_id: int | None
    local_id: int | None


@dataclass(frozen=True, slots=True)
class User:
    """A user of the console as shown to administrators."""

    id: int
    name: str
    role: Role
    created_at: datetime
    signed_in_at: datetime | None


# ------------------------------------------------------------------------------------------ users


async def admit_first(connection: Connection, given: str | None, passwords: Pool) -> None:
    """Make the first administrator, or give them the password of the setting if that is another one than last time.

    A password that was changed in the console stays, as long as the setting stays the same; who has lost it changes the
    setting. :raises Permanent: there is no administrator, and no password for the first one.
    """
    await connection.execute("select pg_advisory_xact_lock(hashtext('mailgroup console'))")
    cursor = await connection.execute(
        "select id, coalesce(given_hash, '') from console_users where lower(name) = lower(%s)", (FIRST,)
    )
    row = await cursor.fetchone()
    if given is None:
        cursor = await connection.execute("select 1 from console_users where role = 'administrator'")
        if await cursor.fetchone() is None:
            raise Permanent("MAILGROUP_ADMIN_PASSWORD: not set: the console's first administrator needs a password")
    elif row is None:
        hashed = await passwords.hash(given)
        await connection.execute(
            """insert into console_users (name, role, password_hash, given_hash)
               values (%s, 'administrator', %s, %s)""",
            (FIRST, hashed, hashed),
        )
    elif not await passwords.matches(row[1], given):
        hashed = await passwords.hash(given)
        await connection.execute(
            "update console_users set role = 'administrator', password_hash = %s, given_hash = %s where id = %s",
            (hashed, hashed, row[0]),
        )


async def identity(connection: Connection, name: str) -> Identity | None:
    """The user of the console of this name, in any case of letters."""
    cursor = await connection.execute(
        "select id, name, password_hash from console_users where lower(name) = lower(%s)", (storable(name),)
    )
    row = await cursor.fetchone()
    return None if row is None else Identity(row[0], None, row[1], row[2])


# ------------------------------------------------------------------------------------------ sessions


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


async def begin_session(connection: Connection, who: Identity, peer: str, agent: str) -> str:
    """Sign somebody in. :return: the token for the browser."""
    token = secrets.token_urlsafe(32)
    await connection.execute(
        """delete from console_sessions where created_at < now() - make_interval(days => %s)
               or seen_at < now() - make_interval(hours => %s)""",
        (OLD_DAYS, IDLE_HOURS),
    )
    await connection.execute(
        """insert into console_sessions (token_sha256, user_id, local_id, password_hash, peer, agent)
           values (%s, %s, %s, %s, %s, %s)""",
        (_digest(token), who.user_id, who.local_id, who.password_hash, peer, storable(agent)[:300]),
    )
    await connection.execute("update console_users set signed_in_at = now() where id = %s", (who.user_id,))
    return token


async def viewer(connection: Connection, token: str) -> Viewer | None:
    """Who has this token, if the session is still good."""
    cursor = await connection.execute(
        """select s.id, coalesce(u.role, 'person'), coalesce(u.name, l.address), s.user_id, s.local_id,
                  s.seen_at < now() - make_interval(secs => %s)
           from console_sessions s left join console_users u on u.id = s.user_id
               left join local_accounts l on l.id = s.local_id and l.enabled and l.removed_at is null
           where s.token_sha256 = %s and s.password_hash = coalesce(u.password_hash, l.password_hash)
             and s.created_at > now() - make_interval(days => %s)
             and s.seen_at > now() - make_interval(hours => %s)""",
        (_SEEN_SECONDS, _digest(token), OLD_DAYS, IDLE_HOURS),
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    if row[5]:
        await connection.execute("update console_sessions set seen_at = now() where id = %s", (row[0],))
    return Viewer(*row[:5])


async def end_session(connection: Connection, session_id: int) -> None:
    """Sign out."""
    await connection.execute("delete from console_sessions where id = %s", (session_id,))


async def tell_later(connection: Connection, session_id: int, notices: Sequence[str]) -> None:
    """Keep lines for the next page that this browser is shown."""
    await connection.execute(
        "update console_sessions set notices = notices || %s::text[] where id = %s",
        ([storable(line) for line in notices], session_id),
    )


async def take_notices(connection: Connection, session_id: int) -> list[str]:
    """The lines that were kept; they are told once."""
    cursor = await connection.execute(
        """update console_sessions s set notices = '{}' from console_sessions before
           where s.id = %s and before.id = s.id and s.notices <> '{}' returning before.notices""",
        (session_id,),
    )
    row = await cursor.fetchone()
    return [] if row is None else list(row[0])
