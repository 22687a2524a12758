"""The command that retires a person: ``local retire``."""

from __future__ import annotations

from typing import Annotated

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Address, Data, Json
from services.admin.cli.transactions import run_change

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.accounts import change_lines
    from services.admin.mail import retirement
    from shared.db import database


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

    async def change(system: context.AdminContext, connection: database.Connection) -> list[change_lines.ChangeLine]:
        days = system.settings.retention_days
        return await retirement.retire(connection, wanted, system.vault, system.passwords, audit.operator(), days)

    mailboxes = [mailbox_to] if mailbox_to else []
    run_change(data, json, change, seconds=retirement.RETIRE_SECONDS, mailboxes=mailboxes)
