"""The commands on the accounts file: ``apply`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.admin.cli.account_change import change_accounts
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json
from services.admin.cli.output import print_json, run

with lazy_imports():
    from services.admin import context
    from services.admin.accounts import export as accounts_export
    from services.admin.accounts import file_format
    from shared import settings
    from shared.db import database


def apply(
    file: Annotated[Path, typer.Argument(help="Accounts file (YAML or JSON).", metavar="FILE")],
    prune: Annotated[bool, typer.Option("--prune", help="Remove accounts that the file does not name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the changes without making them.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Create and change the accounts as FILE says, and print the changes; they are in force when the command returns.

    Example: mailgroup apply accounts.yaml
    """

    async def work() -> None:
        wanted = file_format.read_file(file)
        if wanted.problems and settings.load(data=data).database_url is None:
            wanted.require_valid()  # with a database, these are reported together with those that need it

        async def read(_: database.Connection) -> file_format.AccountsFile:
            return wanted

        async with context.open_context(data) as system:
            await change_accounts(system, read, json, prune=prune, shown=not json, kept=not dry_run)

    run(work)


def export(data: Data = None, json: Json = False) -> None:
    """Print the accounts file of all accounts, without passwords.

    Example: mailgroup export > accounts.yaml
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            document = await accounts_export.build_document(connection)
        if json:
            print_json(document)
        else:
            print(accounts_export.as_yaml(document), end="")

    run(work)
