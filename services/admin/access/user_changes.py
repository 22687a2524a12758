"""Changes of the console's users, sessions and tokens, each with its entry in the audit. Commands, pages and REST
requests share them; each change returns its line for people."""

from __future__ import annotations

from services.admin.access import audit, users
from services.admin.access.users import ConsoleUser
from shared.auth.passwords import HashingPool
from shared.db.database import Connection
from shared.errors import Permanent

MIN_CHARACTERS = 10
"""Shortest password of a console user: characters."""


async def hash_password(passwords: HashingPool, password: str) -> str:
    """Return the hash of a new password. :raises Permanent: the password is too short."""
    if len(password) < MIN_CHARACTERS:
        raise Permanent(f"Password: at least {MIN_CHARACTERS} characters are needed.")
    return await passwords.hash(password)


async def find_user(connection: Connection, name: str) -> ConsoleUser:
    """Return the user with this name, case-insensitively. :raises Permanent: there is none."""
    everyone = await users.list_users(connection)
    for user in everyone:
        if user.name.lower() == name.lower():
            return user
    raise Permanent(f"{name}: there is no such user; there are: {', '.join(user.name for user in everyone)}")


async def add_user(connection: Connection, who: str, name: str, role: str, password_hash: str) -> str:
    """Add a user. :param who: makes the change. :return: the line. :raises Permanent: as ``users.add``."""
    await users.add(connection, name, role, password_hash)
    await audit.record_change(connection, who, "console: add", name, role)
    return f"user {name}: added as {role}"


async def set_password(connection: Connection, who: str, id_: int, password_hash: str) -> str:
    """Set a password; all sessions of the user end. :return: the line. :raises Permanent: there is no such user."""
    name = await users.set_password(connection, id_, password_hash)
    await audit.record_change(connection, who, "console: password", name)
    return f"user {name}: changed password"


async def set_role(connection: Connection, who: str, id_: int, role: str) -> str:
    """Set the role. :return: the line. :raises Permanent: as ``users.set_role``."""
    name = await users.set_role(connection, id_, role)
    await audit.record_change(connection, who, "console: role", name, role)
    return f"user {name}: {role}"


async def remove_user(connection: Connection, who: str, id_: int) -> str:
    """Remove a user. :return: the line. :raises Permanent: as ``users.remove``."""
    name = await users.remove(connection, id_)
    await audit.record_change(connection, who, "console: remove", name)
    return f"user {name}: removed"


async def end_session(connection: Connection, who: str, id_: int) -> str:
    """End a session of a user. :return: the line. :raises Permanent: there is no such session."""
    session = next((each for each in await users.list_sessions(connection) if each.id == id_), None)
    if session is None:
        raise Permanent("That is not there any more.")
    await users.end_session(connection, id_)
    await audit.record_change(connection, who, "console: end-session", session.who)
    return f"user {session.who}: signed out of one browser"


async def create_token(connection: Connection, who: str, name: str, role: str, days: int = users.TOKEN_DAYS) -> str:
    """Create a token. :return: the token. :raises Permanent: as ``users.create_token``."""
    token = await users.create_token(connection, name, role, who, days)
    await audit.record_change(connection, who, "made a token", name, f"{role}, days: {days}")
    return token


async def revoke_token(connection: Connection, who: str, id_: int) -> str:
    """Revoke a token. :return: the line. :raises Permanent: there is no such token."""
    name = await users.end_token(connection, id_)
    await audit.record_change(connection, who, "console: end-token", name)
    return f"token {name}: revoked"
