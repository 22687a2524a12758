"""Actions on one account beside its fields: ``local hand-over``, ``sign-out``, ``logins``, ``removed``; ``external
history``, ``external answers``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Address, Data, Json
from services.admin.cli.output import console, print_json, print_table, run
from services.admin.cli.progress import show_progress
from services.admin.cli.transactions import as_rows, run_change, run_list
from services.admin.formatting import counted, moment

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit, users
    from services.admin.accounts import export
    from services.admin.mail import operations
    from services.admin.monitoring import found_authors as found_by
    from services.admin.monitoring import history_progress, status
    from shared.db import database
    from shared.store import accounts, last_logins

FOLLOW_SECONDS = 1.0
"""Interval at which --follow reads the progress: seconds."""


def hand_over(
    address: Address,
    to: Annotated[str, typer.Option("--to", help="Local account that gets the mail.", metavar="ADDRESS")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Copy every mail of a person into the mailbox of a colleague, as new mail.

    Example: mailgroup local hand-over alex@local.com --to jim@local.com
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        count = await operations.copy_mailbox_to(connection, address, to)
        await audit.record_change(
            connection, audit.operator(), "handed mail over", address, f"{counted(count)} to {to}"
        )
        return [f"local account {to}: has {counted(count)} of {address}, as new mail"]

    run_change(data, json, change, seconds=operations.HAND_OVER_SECONDS, mailboxes=[to])


def sign_out(address: Address, data: Data = None, json: Json = False) -> None:
    """Sign a person out of the console in every browser.

    Example: mailgroup local sign-out alex@local.com
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        person = await operations.load_person(connection, address)
        count = await users.end_sessions_of(connection, person.id)
        await audit.record_change(connection, audit.operator(), "signed out everywhere", person.address)
        return [f"local account {person.address}: signed out of {count} browsers"]

    run_change(data, json, change)


def logins(address: Address, data: Data = None, json: Json = False) -> None:
    """Show the last logins of a person's mail clients, and the browsers that are signed in.

    Example: mailgroup local logins alex@local.com
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            person = await operations.load_person(connection, address)
            last = await last_logins.load_last_logins(connection, person.id)
            sessions = await users.list_sessions(connection, person.id)
        if json:
            sessions_shown = as_rows(sessions, "peer", "agent", "created_at", "seen_at")
            print_json({"last": as_rows(last, "protocol", "at", "peer"), "sessions": sessions_shown})
            return
        rows = [(login.protocol.upper(), moment(status.iso(login.at)), login.peer, "") for login in last]
        rows += [("console", moment(status.iso(session.seen_at)), session.peer, session.agent) for session in sessions]
        print_table(f"Logins of {address}", ("Through", "Last (UTC)", "From", "Program"), rows)

    run(work)


def removed(data: Data = None, json: Json = False) -> None:
    """List the removed local accounts that 'local restore' can bring back.

    Example: mailgroup local removed
    """

    async def read(connection: database.Connection) -> list[dict[str, Any]]:
        return [
            {"address": person.address, "user_name": person.user_name, "removed_at": status.iso(at)}
            for person, at in await accounts.removed_locals(connection)
        ]

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        return row["address"], row["user_name"], moment(row["removed_at"])

    run_list("Removed", ("Address", "User name", "Removed (UTC)"), cells, data, json, read)


def history(
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the progress until all is fetched.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show how much of the mail that was at the provider at the start is fetched.

    Example: mailgroup external history support@company.com --follow
    """

    from asyncio import sleep  # help needs no event loop

    async def work() -> None:
        async with context.open_context(data) as system:
            async with system.database.transaction() as connection:
                account = await export.find_external(connection, address)
            with show_progress(address, "mails", shown=follow and not json) as progress:
                while True:
                    async with system.database.transaction() as connection:
                        found = await history_progress.load_history_progress(connection, account)
                    if found["done"] or not follow:
                        break
                    progress(found["fetched"], found["total"] or 0)
                    await sleep(FOLLOW_SECONDS)
        if json:
            print_json(found)
        else:
            console.print(f"{address}: {_describe(found)}")

    run(work)


def found_authors(address: Address, data: Data = None, json: Json = False) -> None:
    """Show how the answers of the last 30 days found their authors: by name, reply tag, reference, report, or not.

    Example: mailgroup external answers support@company.com
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            account = await export.find_external(connection, address)
            found = await found_by.load_found_authors(connection, account.id)
        if json:
            print_json(found)
        else:
            print_table(
                f"Answers to {address}", ("Found their author by", "Mails", "Share"), found_by.describe_found(found)
            )

    run(work)


def _describe(found: dict[str, Any]) -> str:
    if not found["wanted"]:
        return "mail that was there at the start stays at the provider (history: from_now)"
    if found["total"] is None:
        return "not checked yet"
    return f"{found['fetched']} of {found['total']} mails that were there at the start are fetched"
