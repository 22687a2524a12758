"""The commands on users of the console (``users …``), tokens of scripts (``tokens …``), and the ``audit``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json, group
from services.admin.cli.output import print_json, run
from services.admin.cli.password_input import read_password
from services.admin.cli.transactions import as_rows, run_change, run_list
from services.admin.formatting import moment

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit, user_changes
    from services.admin.access import users as stored_users
    from shared.db import database

users = group("Users of the console: administrators, and observers, who change nothing and read no mail.")
tokens = group("Tokens with which scripts use the REST API.")
Name = Annotated[str, typer.Argument(help="Name of the user.", metavar="NAME")]
Role = Annotated[str, typer.Option("--role", help="administrator or observer.", metavar="ROLE")]
Id = Annotated[int, typer.Argument(help="Id as listed.", metavar="ID", min=1, max=2**63 - 1)]


@users.command("list")
def users_list(data: Data = None, json: Json = False) -> None:
    """List the users of the console.

    Example: mailgroup users list
    """

    async def read(connection: database.Connection) -> list[dict[str, Any]]:
        names = ("id", "name", "role", "created_at", "signed_in_at")
        return as_rows(await stored_users.list_users(connection), *names)

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        signed_in = moment(row["signed_in_at"]) or "never"
        return row["id"], row["name"], row["role"], moment(row["created_at"]), signed_in

    run_list("Users", ("Id", "Name", "Role", "Created (UTC)", "Last sign-in (UTC)"), cells, data, json, read)


@users.command("add")
def users_add(name: Name, role: Role = "observer", data: Data = None, json: Json = False) -> None:
    """Add a user of the console; the password is asked for, or is the first line of standard input.

    Example: mailgroup users add auditor --role observer
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        hashed = await user_changes.hash_password(system.passwords, read_password(name))
        return [await user_changes.add_user(connection, audit.operator(), name, role, hashed)]

    run_change(data, json, change)


@users.command("password")
def users_password(name: Name, data: Data = None, json: Json = False) -> None:
    """Set the password of a user, asked for or from standard input; all sessions of the user end.

    Example: mailgroup users password admin
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        user = await user_changes.find_user(connection, name)
        hashed = await user_changes.hash_password(system.passwords, read_password(user.name))
        return [await user_changes.set_password(connection, audit.operator(), user.id, hashed)]

    run_change(data, json, change)


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

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        user = await user_changes.find_user(connection, name)
        return [await user_changes.set_role(connection, audit.operator(), user.id, role)]

    run_change(data, json, change)


@users.command("remove")
def users_remove(name: Name, data: Data = None, json: Json = False) -> None:
    """Remove a user of the console; one user has to stay administrator.

    Example: mailgroup users remove auditor
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        user = await user_changes.find_user(connection, name)
        return [await user_changes.remove_user(connection, audit.operator(), user.id)]

    run_change(data, json, change)


@users.command("sessions")
def users_sessions(data: Data = None, json: Json = False) -> None:
    """List the browsers in which users of the console are signed in.

    Example: mailgroup users sessions
    """

    async def read(connection: database.Connection) -> list[dict[str, Any]]:
        names = ("id", "who", "peer", "agent", "created_at", "seen_at")
        return as_rows(await stored_users.list_sessions(connection), *names)

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        return row["id"], row["who"], row["peer"], row["agent"], moment(row["seen_at"])

    run_list("Signed in", ("Id", "User", "From", "Browser", "Last seen (UTC)"), cells, data, json, read)


@users.command("sign-out")
def users_sign_out(id_: Id, data: Data = None, json: Json = False) -> None:
    """Sign a user out of one browser; 'users sessions' lists them.

    Example: mailgroup users sign-out 7
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        return [await user_changes.end_session(connection, audit.operator(), id_)]

    run_change(data, json, change)


# ---------------------------------------------------------------------------------------------- tokens


@tokens.command("list")
def tokens_list(data: Data = None, json: Json = False) -> None:
    """List the tokens of scripts.

    Example: mailgroup tokens list
    """

    async def read(connection: database.Connection) -> list[dict[str, Any]]:
        names = ("id", "name", "role", "made_by", "created_at", "used_at", "expires_at", "expired")
        return as_rows(await stored_users.list_tokens(connection), *names)

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        used = moment(row["used_at"]) or "never"
        expires = f"{moment(row['expires_at']) or 'never'}{' (expired)' if row['expired'] else ''}"
        return row["id"], row["name"], row["role"], row["made_by"], moment(row["created_at"]), used, expires

    columns = ("Id", "Name", "Role", "Created by", "Created (UTC)", "Last used (UTC)", "Expires (UTC)")
    run_list("Tokens", columns, cells, data, json, read)


@tokens.command("create")
def tokens_create(
    name: Annotated[str, typer.Argument(help="Name of the script that uses it.", metavar="NAME")],
    role: Role = "observer",
    days: Annotated[int, typer.Option("--days", help="Days until the token expires.", min=1, max=3650)] = 365,
    data: Data = None,
    json: Json = False,
) -> None:
    """Create a token and print it, this once: only its digest is stored.

    Example: mailgroup tokens create 'backup script' --role observer
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            token = await user_changes.create_token(connection, audit.operator(), name, role, days)
        if json:
            print_json({"name": name, "role": role, "days": days, "token": token})
        else:
            print(token)

    run(work)


@tokens.command("revoke")
def tokens_revoke(id_: Id, data: Data = None, json: Json = False) -> None:
    """Revoke a token: the next request with it is refused.

    Example: mailgroup tokens revoke 7
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        return [await user_changes.revoke_token(connection, audit.operator(), id_)]

    run_change(data, json, change)


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

    async def read(connection: database.Connection) -> list[dict[str, Any]]:
        names = ("id", "at", "who", "did", "target", "detail")
        return as_rows(await audit.page(connection, before, search), *names)

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        return row["id"], moment(row["at"]), row["who"], row["did"], row["target"], row["detail"]

    run_list("Audit", ("Id", "Time (UTC)", "Who", "Did", "Target", "Detail"), cells, data, json, read)
