"""The commands that find mail and act on one: ``find``, ``give``, ``resend``, ``raw``."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.mail import Id, Ids, act_on_mails
from services.admin.cli.options import Data, Json
from services.admin.cli.output import MISUSE, console, fail, print_json, print_table, run
from services.admin.cli.transactions import run_change
from services.admin.formatting import MAIL_RESULTS, moment
from shared.errors import Permanent

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.mail import history, mail_search, operations
    from services.admin.monitoring import status
    from shared.db import database
    from shared.store import blobs

Before = Annotated[int | None, typer.Option("--before", help="Only mails before this id.", metavar="ID", min=1)]


def _describe_recipients(mail: mail_search.FoundMail) -> str:
    further = f" and {mail.further} more" if mail.further else ""
    return f"{', '.join(mail.recipients)}{further}"


def find(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Words of subject, names and addresses; or one account's address.", metavar="[WORDS...]"),
    ] = None,
    day: Annotated[str, typer.Option("--day", help="Only mails of this day (UTC).", metavar="YYYY-MM-DD")] = "",
    before: Annotated[
        int | None, typer.Option("--before", help="Only mails before this id.", metavar="ID", min=1)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Largest number of mails.", min=1, max=1000)] = 50,
    to: Annotated[
        str, typer.Option("--to", help="Only mails to this person or address, or one that begins so.", metavar="TEXT")
    ] = "",
    result: Annotated[
        str, typer.Option("--result", help=f"Only mails that are {', '.join(MAIL_RESULTS)}.", metavar="RESULT")
    ] = "",
    account: Annotated[str, typer.Option("--account", help="Only mails of this account.", metavar="ADDRESS")] = "",
    data: Data = None,
    json: Json = False,
) -> None:
    """List the latest mails, or those with all these words or their beginnings, as the console's search does.

    Example: mailgroup find printer anna@customer.example --day 2026-11-30
    """
    try:
        date = datetime.date.fromisoformat(day) if day else None
    except ValueError:
        fail(f"--day {day!r}: a day has the form 2026-11-30", MISUSE)
    if result and result not in MAIL_RESULTS:
        fail(f"--result {result!r}: is one of {', '.join(MAIL_RESULTS)}", MISUSE)

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            wanted = mail_search.Filter(" ".join(words or []), date, to=to, result=result, account=account)
            found = await mail_search.search(connection, wanted, before, limit)
        if json:
            names = ("id", "external", "sender", "subject", "sent", "state", "status", "recipients", "further")
            print_json([{"at": status.iso(mail.at), **{name: getattr(mail, name) for name in names}} for mail in found])
            return
        rows = [
            (m.id, moment(status.iso(m.at)), m.sender, m.subject, _describe_recipients(m), m.status, m.external)
            for m in found
        ]
        print_table("Mails", ("Id", "Time (UTC)", "From", "Subject", "To", "Status", "Account"), rows)
        if len(found) == limit:
            console.print(f"For earlier mails: --before {found[-1].id}")

    run(work)


def give(
    id_: Annotated[int, Id],
    to: Annotated[str, typer.Option("--to", help="Local account that gets the mail.", metavar="ADDRESS")],
    away_from: Annotated[
        str | None, typer.Option("--away-from", help="Local account that loses it.", metavar="ADDRESS")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Copy a delivered mail into a person's mailbox as new mail, or move it from one person to another.

    Example: mailgroup give 42 --to jim@local.com --away-from alex@local.com
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        await operations.give_copy(connection, id_, to, away_from)
        await audit.record_mails(connection, audit.operator(), "gave a mail", [id_], f"to {to}")
        return [f"mail {id_}: {to} has it{f', and {away_from} no longer' if away_from else ''}"]

    run_change(data, json, change, mailboxes=[to, away_from] if away_from else [to])


def resend(ids: Ids, data: Data = None, json: Json = False) -> None:
    """Send submissions again to the external recipients that did not get them.

    Example: mailgroup resend 42
    """
    act_on_mails("sent again", data, json, lambda connection: operations.resend(connection, ids))


def raw(
    id_: Annotated[int, Id],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New file for the mail; else it is printed.", metavar="FILE")
    ] = None,
    data: Data = None,
) -> None:
    """Print the whole mail as it was received (RFC 5322), or write it into a file. The audit records it.

    Example: mailgroup raw 42 --output mail-42.eml
    """

    if output is not None and output.exists():
        fail(f"{output}: exists already; name another file", MISUSE)

    async def work() -> None:
        async with context.open_context(data) as system:
            async with system.database.transaction() as connection:
                found = await history.load_mail_history(connection, id_)
                if found is None:
                    raise Permanent(f"{id_}: there is no mail with this id, or it was purged")
                await audit.record_mails(
                    connection, audit.operator(), "looked into a mail", [id_], found.summary.author
                )
            with output.open("xb") if output is not None else sys.stdout.buffer as target:
                async for part in blobs.stream(system.database, found.blob_id):
                    target.write(part)

    run(work)
