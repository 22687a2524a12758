"""Actions on one account beside its fields: ``local hand-over``, ``sign-out``, ``logins``, ``removed``; ``external
history``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.admin.cli.accounts import find_external
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Address, Data, Json
from services.admin.cli.output import console, print_json, print_table, run
from services.admin.cli.progress import show_progress
from services.admin.formatting import moment

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit, users
    from services.admin.mail import operations
    from services.admin.monitoring import history_progress, status
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

    async def work() -> None:
        async with (
            context.open_context(data) as system,
            system.database.transaction(operations.HAND_OVER_SECONDS) as connection,
        ):
            count = await operations.copy_mailbox_to(connection, address, to)
            await audit.record_change(
                connection, audit.operator(), "handed mail over", address, f"{count} mails to {to}"
            )
        _print_change(f"local account {to}: has {count} mails of {address}, as new mail", json)

    run(work)


def sign_out(address: Address, data: Data = None, json: Json = False) -> None:
    """Sign a person out of the console in every browser.

    Example: mailgroup local sign-out alex@local.com
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            person = await operations.load_person(connection, address)
            count = await users.end_sessions_of(connection, person.id)
            await audit.record_change(connection, audit.operator(), "signed out everywhere", person.address)
        _print_change(f"local account {person.address}: signed out of {count} browsers", json)

    run(work)


def _print_change(line: str, json: bool) -> None:
    if json:
        print_json({"changed": [line]})
    else:
        console.print(line, markup=False)


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
            print_json(
                {
                    "last": [
                        {"protocol": login.protocol, "at": status.iso(login.at), "peer": login.peer} for login in last
                    ],
                    "sessions": [
                        {
                            "peer": s.peer,
                            "agent": s.agent,
                            "created_at": status.iso(s.created_at),
                            "seen_at": status.iso(s.seen_at),
                        }
                        for s in sessions
                    ],
                }
            )
            return
        rows = [(login.protocol.upper(), moment(status.iso(login.at)), login.peer, "") for login in last]
        rows += [("console", moment(status.iso(session.seen_at)), session.peer, session.agent) for session in sessions]
        print_table(f"Logins of {address}", ("Through", "Last (UTC)", "From", "Program"), rows)

    run(work)


def removed(data: Data = None, json: Json = False) -> None:
    """List the removed local accounts that 'local restore' can bring back.

    Example: mailgroup local removed
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            found = await accounts.removed_locals(connection)
        rows = [(person.address, person.user_name, status.iso(at)) for person, at in found]
        if json:
            print_json([dict(zip(("address", "user_name", "removed_at"), row, strict=True)) for row in rows])
        else:
            print_table("Removed", ("Address", "User name", "Removed (UTC)"), [(*r[:2], moment(r[2])) for r in rows])

    run(work)


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
            account = await find_external(system, address)
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
            console.print(f"{address}: {_describe(found)}", markup=False)

    run(work)


def _describe(found: dict[str, Any]) -> str:
    if not found["wanted"]:
        return "mail that was there at the start stays at the provider (history: from_now)"
    if found["total"] is None:
        return "not polled yet"
    return f"{found['fetched']} of {found['total']} mails that were there at the start are fetched"
