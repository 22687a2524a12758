"""Mail that went to everyone and its answers (``answers``), and the names in To that no account has (``names …``)."""

from __future__ import annotations

from typing import Annotated

import typer

from services.admin.cli.accounts import change_accounts, find_external
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json, group
from services.admin.cli.output import console, print_json, print_table, run
from services.admin.formatting import moment

with lazy_imports():
    from services.admin import context
    from services.admin.accounts import edit, file_format
    from services.admin.mail import search_index, unknown_names
    from services.admin.monitoring import status
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

    async def work() -> None:
        load = search_index.answered if answered else search_index.unanswered
        async with context.open_context(data) as system, system.database.transaction() as connection:
            found = await load(connection, before)
        if json:
            print_json(
                [
                    {
                        "mail_id": mail.mail_id,
                        "external": mail.external,
                        "at": status.iso(mail.at),
                        "sender": mail.sender,
                        "subject": mail.subject,
                        "author": mail.author,
                        "answered_at": status.iso(mail.answered_at),
                        "submission_id": mail.submission_id,
                    }
                    for mail in found
                ]
            )
            return
        rows = [(m.mail_id, moment(status.iso(m.at)), m.sender, m.subject, m.external, m.author) for m in found]
        title = "Answered" if answered else "Unanswered"
        print_table(title, ("Id", "Time (UTC)", "From", "Subject", "Account", "Answered by"), rows)

    run(work)


@names.command("list")
def names_list(data: Data = None, json: Json = False) -> None:
    """List the names in To that no account has, the most frequent first.

    Example: mailgroup names list
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            found = await unknown_names.list_names(connection)
        if json:
            print_json(
                [
                    {
                        "external": each.external,
                        "name": each.name,
                        "mails": each.mails,
                        "last_mail_id": each.last_mail_id,
                        "last_at": status.iso(each.last_at),
                    }
                    for each in found
                ]
            )
            return
        rows = [
            (each.name, each.external, each.mails, each.last_mail_id, moment(status.iso(each.last_at)))
            for each in found
        ]
        print_table("Unknown names", ("Name", "Account", "Mails", "Last mail", "Time (UTC)"), rows)

    run(work)


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

    async def work() -> None:
        async with context.open_context(data) as system:
            account = await find_external(system, external)

            async def prepare(connection: database.Connection) -> file_format.AccountsFile:
                requested = await edit.add_name(connection, to, name)
                await unknown_names.forget_name(connection, account.id, name)
                return requested

            await change_accounts(system, prepare, json)

    run(work)


@names.command("hide")
def names_hide(name: Name, external: External, data: Data = None, json: Json = False) -> None:
    """Remove a name from the list, until another mail has it.

    Example: mailgroup names hide Newsletter --external support@company.com
    """

    async def work() -> None:
        async with context.open_context(data) as system:
            account = await find_external(system, external)
            async with system.database.transaction() as connection:
                await unknown_names.forget_name(connection, account.id, name)
        if json:
            print_json({"changed": [f"name {name}: hidden"]})
        else:
            console.print(f"name {name}: hidden", markup=False)

    run(work)
