"""The mail that is at a provider before its account is added: the question about it, and ``external start``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Address, Data, Json
from services.admin.cli.output import show_waiting
from services.admin.cli.transactions import run_change
from services.admin.formatting import counted
from shared.errors import Permanent, Temporary

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.accounts import apply, edit, maildrop_check
    from services.admin.accounts import start as account_start
    from shared.db import database


async def ask_history(system: context.AdminContext, address: str, fields: dict[str, Any]) -> str:
    """Ask what happens to the mail that is at the provider already, and say how many mails that are."""
    entry = edit.check_entry("external", {"address": address} | fields, Path.cwd()).external_accounts[0]
    try:
        with show_waiting("Counting the mails at the provider"):
            mails = await maildrop_check.count_mails(system, apply.external_of(entry, None, system.vault, 0))
        print(f"{address}: {counted(mails, verbs=('is', 'are'))} at the provider already.")
    except (Temporary, Permanent) as error:
        print(f"{address}: the mails at the provider cannot be counted now: {error}")
    answer: str = typer.prompt("Deliver them (all), or leave them there (from_now)?", value_proc=_read_answer)
    return answer


def _read_answer(typed: str) -> str:
    if typed not in ("all", "from_now"):
        raise typer.BadParameter(f"{typed!r}: has to be all or from_now")  # the question is repeated
    return typed


def start(address: Address, data: Data = None, json: Json = False) -> None:
    """Release the mail of an account that is on hold: everybody who shares the account is there.

    Mail of an account that 'external add' or the console has added is on hold until then.

    Example: mailgroup external start support@company.com
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        return await account_start.start(connection, address, audit.operator())

    run_change(data, json, change, f"external account {address}: is started already")
