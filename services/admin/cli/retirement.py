"""The command that retires a person: ``local retire``."""

from __future__ import annotations

from typing import Annotated

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Address, Data, Json
from services.admin.cli.output import print_json, print_lines, run

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.mail import retirement


def retire(
    address: Address,
    mailbox_to: Annotated[
        str | None,
        typer.Option("--mailbox-to", help="Copy every mail of the mailbox to this colleague.", metavar="ADDRESS"),
    ] = None,
    delegate: Annotated[
        str | None, typer.Option("--delegate", help="Send future mail to this colleague.", metavar="ADDRESS")
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the account instead of disabling it; the delegate gets the names.")
    ] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Retire a person in one step: hand over the mailbox and future mail, and disable or remove the account.

    Example: mailgroup local retire alex@local.com --mailbox-to jim@local.com --delegate jim@local.com
    """
    wanted = retirement.Retirement(address, mailbox_to, delegate, "remove" if remove else "disable")

    async def work() -> None:
        async with (
            context.open_context(data) as system,
            system.database.transaction(retirement.RETIRE_SECONDS) as connection,
        ):
            days = system.settings.retention_days
            lines = await retirement.retire(connection, wanted, system.vault, system.passwords, audit.operator(), days)
        if json:
            print_json({"changed": lines})
        else:
            print_lines(lines)

    run(work)
