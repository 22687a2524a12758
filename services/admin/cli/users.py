"""The commands on users of the console (``users …``), tokens of scripts (``tokens …``), and the ``audit``."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json, group
from services.admin.cli.output import console, print_json, print_table, run
from services.admin.formatting import moment

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit, user_changes
    from services.admin.access import users as stored_users
    from services.admin.monitoring import status
    from shared.db import database

users = group("Users of the console: administrators, and observers, who change nothing and read no mail.")
tokens = group("Tokens with which scripts use the REST API.")
Name = Annotated[str, typer.Argument(help="Name of the user.", metavar="NAME")]
Role = Annotated[str, typer.Option("--role", help="administrator or observer.", metavar="ROLE")]
Id = Annotated[int, typer.Argument(help="Id as listed.", metavar="ID", min=1, max=2**63 - 1)]


def _read_password(name: str) -> str:
    """Return the password that is typed, or the first line of standard input."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"New password of {name}", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


def _change(
    data: Path | None, json: bool, change: Callable[[context.AdminContext, database.Connection, str], Awaitable[str]]
) -> None:
    """Make a change in one transaction, and print the line that it returns."""

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            line = await change(system, connection, audit.operator())
        if json:
            print_json({"changed": [line]})
        else:
            console.print(line, markup=False)

    run(work)


@users.command("list")
def users_list(data: Data = None, json: Json = False) -> None:
    """List the users of the console.

    Example: mailgroup users list
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            found = await stored_users.list_users(connection)
        rows = [(u.id, u.name, u.role, status.iso(u.created_at), status.iso(u.signed_in_at)) for u in found]
        if json:
            columns = ("id", "name", "role", "created_at", "signed_in_at")
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            columns = ("Id", "Name", "Role", "Created (UTC)", "Last sign-in (UTC)")
            print_table("Users", columns, [(*r[:3], moment(r[3]), moment(r[4]) or "never") for r in rows])

    run(work)


@users.command("add")
def users_add(name: Name, role: Role = "observer", data: Data = None, json: Json = False) -> None:
    """Add a user of the console; the password is asked for, or is the first line of standard input.

    Example: mailgroup users add auditor --role observer
    """

    async def change(system: context.AdminContext, connection: database.Connection, who: str) -> str:
        hashed = await system.passwords.hash(user_changes.require_length(_read_password(name)))
        await user_changes.add_user(connection, who, name, role, hashed)
        return f"user {name}: added as {role}"

    _change(data, json, change)


@users.command("password")
def users_password(name: Name, data: Data = None, json: Json = False) -> None:
    """Set the password of a user, asked for or from standard input; all sessions of the user end.

    Example: mailgroup users password admin
    """

    async def change(system: context.AdminContext, connection: database.Connection, who: str) -> str:
        user = await user_changes.find_user(connection, name)
        hashed = await system.passwords.hash(user_changes.require_length(_read_password(user.name)))
        return f"user {await user_changes.set_password(connection, who, user.id, hashed)}: changed password"

    _change(data, json, change)


@users.command("role")
def users_role(
    name: Name,
    role: Annotated[str, typer.Argument(help="administrator or observer.", metavar="ROLE")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Make a user an administrator or an observer; one user has to stay administrator.

    Example: mailgroup users role auditor administrator
    """

    async def change(system: context.AdminContext, connection: database.Connection, who: str) -> str:
        user = await user_changes.find_user(connection, name)
        return f"user {await user_changes.set_role(connection, who, user.id, role)}: {role}"

    _change(data, json, change)


@users.command("remove")
def users_remove(name: Name, data: Data = None, json: Json = False) -> None:
    """Remove a user of the console; one user has to stay administrator.

    Example: mailgroup users remove auditor
    """

    async def change(system: context.AdminContext, connection: database.Connection, who: str) -> str:
        user = await user_changes.find_user(connection, name)
        return f"user {await user_changes.remove_user(connection, who, user.id)}: removed"

    _change(data, json, change)


@users.command("sessions")
def users_sessions(data: Data = None, json: Json = False) -> None:
    """List the browsers in which users of the console are signed in.

    Example: mailgroup users sessions
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            found = await stored_users.list_sessions(connection)
        rows = [(s.id, s.who, s.peer, s.agent, status.iso(s.created_at), status.iso(s.seen_at)) for s in found]
        if json:
            columns = ("id", "who", "peer", "agent", "created_at", "seen_at")
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            titles = ("Id", "User", "From", "Browser", "Last seen (UTC)")
            print_table("Signed in", titles, [(*row[:4], moment(row[5])) for row in rows])

    run(work)


@users.command("sign-out")
def users_sign_out(id_: Id, data: Data = None, json: Json = False) -> None:
    """Sign a user out of one browser; 'users sessions' lists them.

    Example: mailgroup users sign-out 7
    """

    async def change(system: context.AdminContext, connection: database.Connection, who: str) -> str:
        return f"user {await user_changes.end_session(connection, who, id_)}: signed out of one browser"

    _change(data, json, change)


# ---------------------------------------------------------------------------------------------- tokens


@tokens.command("list")
def tokens_list(data: Data = None, json: Json = False) -> None:
    """List the tokens of scripts.

    Example: mailgroup tokens list
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            found = await stored_users.list_tokens(connection)
        rows = [(t.id, t.name, t.role, t.made_by, status.iso(t.created_at), status.iso(t.used_at)) for t in found]
        if json:
            columns = ("id", "name", "role", "made_by", "created_at", "used_at")
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            columns = ("Id", "Name", "Role", "Created by", "Created (UTC)", "Last used (UTC)")
            print_table("Tokens", columns, [(*r[:4], moment(r[4]), moment(r[5]) or "never") for r in rows])

    run(work)


@tokens.command("create")
def tokens_create(
    name: Annotated[str, typer.Argument(help="Name of the script that uses it.", metavar="NAME")],
    role: Role = "observer",
    data: Data = None,
    json: Json = False,
) -> None:
    """Create a token and print it, this once: only its digest is stored.

    Example: mailgroup tokens create 'backup script' --role observer
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            token = await user_changes.create_token(connection, audit.operator(), name, role)
        if json:
            print_json({"name": name, "role": role, "token": token})
        else:
            print(token)

    run(work)


@tokens.command("revoke")
def tokens_revoke(id_: Id, data: Data = None, json: Json = False) -> None:
    """Revoke a token: the next request with it is refused.

    Example: mailgroup tokens revoke 7
    """

    async def change(system: context.AdminContext, connection: database.Connection, who: str) -> str:
        return f"token {await user_changes.revoke_token(connection, who, id_)}: revoked"

    _change(data, json, change)


# ---------------------------------------------------------------------------------------------- audit


def show_audit(
    search: Annotated[
        str, typer.Argument(help="User, address or id of a mail; all if left out.", metavar="[WHAT]")
    ] = "",
    before: Annotated[int | None, typer.Option("--before", help="The page after this id.", metavar="ID", min=1)] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show who did what, the latest action first.

    Example: mailgroup audit alex@local.com
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            found = await audit.page(connection, before, search)
        rows = [(e.id, status.iso(e.at), e.who, e.did, e.target, e.detail) for e in found]
        if json:
            columns = ("id", "at", "who", "did", "target", "detail")
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            columns = ("Id", "Time (UTC)", "Who", "Did", "Target", "Detail")
            print_table("Audit", columns, [(row[0], moment(row[1]), *row[2:]) for row in rows])

    run(work)
