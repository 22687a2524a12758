"""Users, sessions and API tokens of the console, and all SQL on them (tables console_users, console_sessions,
api_tokens).

A session is a random token in a cookie; only its digest is stored. It is valid until the password is changed: a new
password ends all earlier sessions.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from shared.auth.passwords import HashingPool
from shared.db.database import Connection, storable
from shared.errors import Permanent

Role = Literal["administrator", "observer", "person"]
FIRST = "admin"
"""The name of the first administrator, whose password the setting ADMIN_PASSWORD gives."""
IDLE_HOURS, OLD_DAYS = 12, 7
"""A session ends after this time without a request, and after this time since the sign-in."""
SESSIONS_OF_ONE, FLASHES = 50, 20
"""Sessions of one user, and messages that wait for the next page of a session; the oldest ones end."""
TOKEN_DAYS, MAX_TOKEN_DAYS = 365, 3650
"""Days until a new token expires: the usual number, and the largest one."""
_SEEN_SECONDS = 60
"""Seconds between two updates of a session's last request."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of the console or a local account that has signed in, with the password hash of the check."""

    user_id: int | None
    local_id: int | None
    name: str
    password_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CurrentUser:
    """The user of a request."""

    session_id: int
    role: Role
    name: str  # of the user of the console, or address of the local account (role person)
    user_id: int | None
    local_id: int | None


@dataclass(frozen=True, slots=True)
class ConsoleUser:
    """A user of the console as shown to administrators."""

    id: int
    name: str
    role: Role
    created_at: datetime
    signed_in_at: datetime | None
    version: str  # differs for each role and password


class UserChanged(Permanent):
    """A user is not as the page showed it."""


# ------------------------------------------------------------------------------------------ users


async def create_initial_admin(connection: Connection, given: str | None, passwords: HashingPool) -> None:
    """Create the first administrator, or set the password of the setting if the setting has changed.

    A password that was changed in the console stays as long as the setting stays the same; to reset a lost password,
    change the setting. :raises Permanent: there is no administrator, and no password for the first one.
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
    """Load the user of the console with this name, case-insensitively."""
    cursor = await connection.execute(
        "select id, name, password_hash from console_users where lower(name) = lower(%s)", (storable(name),)
    )
    row = await cursor.fetchone()
    return None if row is None else Identity(row[0], None, row[1], row[2])


async def list_users(connection: Connection) -> list[ConsoleUser]:
    """List the users of the console, by name."""
    cursor = await connection.execute(
        f"select id, name, role, created_at, signed_in_at, {_VERSION} from console_users order by lower(name)".encode()
    )
    return [ConsoleUser(*row) for row in await cursor.fetchall()]


def _check(name: str, role: str) -> None:
    if not name or "@" in name or len(name.encode()) > 100 or not name.isprintable():
        raise Permanent(f"Name: {name!r}: has 1 to 100 letters and no @; people with an address need no user here.")
    if role not in ("administrator", "observer"):
        raise Permanent(f"Role: {role!r}: is administrator or observer.")


async def add(connection: Connection, name: str, role: str, password_hash: str) -> None:
    """Add a user. :raises Permanent: the name or the role is invalid, or the user exists."""
    _check(name, role)
    cursor = await connection.execute(
        """insert into console_users (name, role, password_hash) values (%s, %s, %s)
           on conflict (lower(name)) do nothing returning id""",
        (name, role, password_hash),
    )
    if await cursor.fetchone() is None:
        raise Permanent(f"Name: {name}: is there already.")


_VERSION = "left(encode(sha256(convert_to(role || ' ' || password_hash, 'UTF8')), 'hex'), 24)"


async def require_version(connection: Connection, id_: int, version: str) -> None:
    """Lock a user who has this version. :raises UserChanged: the user has another one, or is removed."""
    await connection.execute("select pg_advisory_xact_lock(hashtext('mailgroup console'))")
    cursor = await connection.execute(
        f"select name, role, {_VERSION} from console_users where id = %s for update".encode(), (id_,)
    )
    row = await cursor.fetchone()
    if row is None:
        raise UserChanged("The user was removed meanwhile")
    if row[2] != version:
        raise UserChanged(f"{row[0]} was changed meanwhile, is {row[1]} now or has another password")


async def set_password(connection: Connection, id_: int, password_hash: str) -> str:
    """Set a password; all sessions of the user end. :return: the name. :raises Permanent: there is no such user."""
    return await _one(
        connection, "update console_users set password_hash = %s where id = %s returning name", (password_hash, id_)
    )


async def set_role(connection: Connection, id_: int, role: str) -> str:
    """Set the role. :return: the name. :raises Permanent: no administrator would be left, or there is no such user."""
    _check("x", role)
    name = await _one(connection, "update console_users set role = %s where id = %s returning name", (role, id_))
    await _require_administrator(connection)
    return name


async def remove(connection: Connection, id_: int) -> str:
    """Remove a user. :return: the name. :raises Permanent: no administrator would be left, or no such user."""
    name = await _one(connection, "delete from console_users where id = %s returning name", (id_,))
    await _require_administrator(connection)
    return name


async def _one(connection: Connection, statement: str, parameters: tuple[object, ...]) -> str:
    await connection.execute("select pg_advisory_xact_lock(hashtext('mailgroup console'))")
    cursor = await connection.execute(statement.encode(), parameters)
    row = await cursor.fetchone()
    if row is None:
        raise Permanent("That is not there any more.")
    return str(row[0])


async def _require_administrator(connection: Connection) -> None:
    cursor = await connection.execute("select 1 from console_users where role = 'administrator'")
    if await cursor.fetchone() is None:
        raise Permanent("Somebody has to stay administrator.")


# ------------------------------------------------------------------------------------------ tokens


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token with which a program uses the REST API."""

    id: int
    name: str
    role: Role
    made_by: str  # administrator who created it
    created_at: datetime
    used_at: datetime | None
    expires_at: datetime | None  # None: never; from before tokens had an end
    expired: bool


async def create_token(connection: Connection, name: str, role: str, made_by: str, days: int) -> str:
    """Create a token. :param days: until it expires. :return: the token; only its digest is stored.

    :raises Permanent: name, role or days are invalid.
    """
    _check(name, role)
    if not 1 <= days <= MAX_TOKEN_DAYS:
        raise Permanent(f"Days: {days}: is a number from 1 to {MAX_TOKEN_DAYS}.")
    token = "mg_" + secrets.token_urlsafe(32)
    await connection.execute(
        """insert into api_tokens (name, role, token_sha256, made_by, expires_at)
           values (%s, %s, %s, %s, now() + make_interval(days => %s))""",
        (name, role, _digest(token), made_by, days),
    )
    return token


async def list_tokens(connection: Connection) -> list[ApiToken]:
    """List the tokens that are not revoked, also those that have expired."""
    cursor = await connection.execute(
        """select id, name, role, made_by, created_at, used_at, expires_at, coalesce(expires_at <= now(), false)
           from api_tokens order by id"""
    )
    return [ApiToken(*row) for row in await cursor.fetchall()]


async def end_token(connection: Connection, id_: int) -> str:
    """Revoke a token. :return: its name. :raises Permanent: there is no such token."""
    return await _one(connection, "delete from api_tokens where id = %s returning name", (id_,))


async def user_for_token(connection: Connection, token: str) -> CurrentUser | None:
    """Return the user of a token; None if the token is not valid."""
    cursor = await connection.execute(
        "select id, name, role, used_at is null or used_at < now() - interval '1 minute' from api_tokens "
        "where token_sha256 = %s and (expires_at is null or expires_at > now())",
        (_digest(token),),
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    if row[3]:
        await connection.execute("update api_tokens set used_at = now() where id = %s", (row[0],))
    return CurrentUser(0, row[2], f"token {row[1]}", None, None)


# ------------------------------------------------------------------------------------------ sessions


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


async def begin_session(connection: Connection, who: Identity, peer: str, agent: str) -> str:
    """Start a session. :return: the token for the browser."""
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
    await connection.execute(
        """delete from console_sessions where id in (
               select id from console_sessions where user_id = %s or local_id = %s order by id desc offset %s)""",
        (who.user_id, who.local_id, SESSIONS_OF_ONE),
    )
    await connection.execute("update console_users set signed_in_at = now() where id = %s", (who.user_id,))
    return token


async def user_for_session(connection: Connection, token: str) -> CurrentUser | None:
    """Return the user of a session token; None if the session is unknown or has ended."""
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
    return CurrentUser(*row[:5])


async def end_session(connection: Connection, session_id: int) -> None:
    """End a session (sign out)."""
    await connection.execute("delete from console_sessions where id = %s", (session_id,))


async def end_sessions_of(connection: Connection, local_id: int) -> int:
    """End all sessions of a local account. :return: their number."""
    cursor = await connection.execute("delete from console_sessions where local_id = %s", (local_id,))
    return cursor.rowcount


async def add_flash(connection: Connection, session_id: int, notices: Sequence[str]) -> None:
    """Store lines for the next page of this browser; of many, the latest."""
    await connection.execute(
        """update console_sessions s set notices = kept.lines
           from (select id, notices || %s::text[] as lines from console_sessions where id = %s for update) every,
                lateral (select every.lines[greatest(1, cardinality(every.lines) - %s + 1):] as lines) kept
           where s.id = every.id""",
        ([storable(line) for line in notices], session_id, FLASHES),
    )


async def pop_flash(connection: Connection, session_id: int) -> list[str]:
    """Return the stored lines and delete them."""
    cursor = await connection.execute(
        """update console_sessions s set notices = '{}' from console_sessions before
           where s.id = %s and before.id = s.id and s.notices <> '{}' returning before.notices""",
        (session_id,),
    )
    row = await cursor.fetchone()
    return [] if row is None else list(row[0])


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """A browser that is signed in."""

    id: int
    who: str  # user of the console or address of the local account
    peer: str
    agent: str
    created_at: datetime
    seen_at: datetime


async def list_sessions(connection: Connection, local_id: int | None = None) -> list[ConsoleSession]:
    """List the sessions of a local account, or else those of all users of the console, the latest first."""
    cursor = await connection.execute(
        """select s.id, coalesce(u.name, l.address), s.peer, s.agent, s.created_at, s.seen_at
           from console_sessions s left join console_users u on u.id = s.user_id
               left join local_accounts l on l.id = s.local_id
           where case when %(local)s::bigint is null then s.user_id is not null else s.local_id = %(local)s end
             and s.password_hash = coalesce(u.password_hash, l.password_hash)
             and s.created_at > now() - make_interval(days => %(days)s)
             and s.seen_at > now() - make_interval(hours => %(hours)s)
           order by s.seen_at desc limit 100""",
        {"local": local_id, "days": OLD_DAYS, "hours": IDLE_HOURS},
    )
    return [ConsoleSession(*row) for row in await cursor.fetchall()]
