"""Mail that went to everyone and its answers (``answers``), and the names in To that no account has (``names …``)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.admin.cli.account_change import change_accounts
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json, group
from services.admin.cli.output import run
from services.admin.cli.transactions import as_rows, run_change, run_list
from services.admin.formatting import moment

with lazy_imports():
    from services.admin import context
    from services.admin.accounts import edit, export, file_format
    from services.admin.mail import search_index, unknown_names
    from shared.db import database

names = group("Names beside an external address that no local account has.")
Name = Annotated[str, typer.Argument(help="Name as listed.", metavar="NAME")]
External = Annotated[
    str, typer.Option("--external", help="External account of the name, as listed.", metavar="ADDRESS")
]


def answers(
    answered: Annotated[bool, typer.Option("--answered", help="List the answered mails, the latest first.")] = False,
    before: Annotated[int | None, typer.Option("--before", help="The page after this id.", metavar="ID", min=1)] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List the mails that went to everyone and that nobody has answered, the oldest first.

    Example: mailgroup answers
    """

    async def read(connection: database.Connection) -> list[dict[str, Any]]:
        load = search_index.answered if answered else search_index.unanswered
        names = ("mail_id", "external", "at", "sender", "subject", "author", "answered_at", "submission_id")
        return as_rows(await load(connection, before), *names)

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        return row["mail_id"], moment(row["at"]), row["sender"], row["subject"], row["external"], row["author"]

    columns = ("Id", "Time (UTC)", "From", "Subject", "Account", "Answered by")
    run_list("Answered" if answered else "Unanswered", columns, cells, data, json, read)


@names.command("list")
def names_list(data: Data = None, json: Json = False) -> None:
    """List the names in To that no account has, the most frequent first.

    Example: mailgroup names list
    """

    async def read(connection: database.Connection) -> list[dict[str, Any]]:
        names = ("external", "name", "mails", "last_mail_id", "last_at")
        return as_rows(await unknown_names.list_names(connection), *names)

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        return row["name"], row["external"], row["mails"], row["last_mail_id"], moment(row["last_at"])

    run_list("Unknown names", ("Name", "Account", "Mails", "Last mail", "Time (UTC)"), cells, data, json, read)


@names.command("assign")
def names_assign(
    name: Name,
    external: External,
    to: Annotated[str, typer.Option("--to", help="Local account that is meant.", metavar="ADDRESS")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Make a name a further name of a local account: mail to this name goes there from now on.

    Example: mailgroup names assign Alexander --external support@company.com --to alex@local.com
    """

    async def prepare(connection: database.Connection) -> file_format.AccountsFile:
        account = await export.find_external(connection, external)
        requested = await edit.add_name(connection, to, name)
        await unknown_names.forget_name(connection, account.id, name)
        return requested

    async def work() -> None:
        async with context.open_context(data) as system:
            await change_accounts(system, prepare, json)

    run(work)


@names.command("hide")
def names_hide(name: Name, external: External, data: Data = None, json: Json = False) -> None:
    """Remove a name from the list, until another mail has it.

    Example: mailgroup names hide Newsletter --external support@company.com
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        account = await export.find_external(connection, external)
        await unknown_names.forget_name(connection, account.id, name)
        return [f"name {name}: hidden"]

    run_change(data, json, change)
