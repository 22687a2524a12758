"""A change of accounts by a command: ``apply``, ``external``, ``local`` and ``names assign`` make it the same way."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

from services.admin.accounts.passwords import describe_weak
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.output import print_json, print_lines, show_waiting
from services.admin.cli.progress import show_progress

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.accounts import apply as accounts_apply
    from services.admin.accounts import connection_check, file_format
    from shared.db import database

CHANGE_SECONDS = 3600.0
"""Time limit of a change: seconds; ten thousand passwords take minutes to hash."""


async def change_accounts(
    system: context.AdminContext,
    prepare: Callable[[database.Connection], Awaitable[file_format.AccountsFile]],
    json: bool,
    *,
    prune: bool = False,
    shown: bool = False,
    kept: bool = True,
    generated: str | None = None,
) -> None:
    """Change accounts, and print the changes and what happens to the mail at the providers.

    :param prepare: returns the accounts; it runs in the transaction of the change. :param shown: show the progress.
    :param generated: the new password, to be printed, too. :param kept: False rolls the changes back.
    """
    with show_progress("Passwords", shown=shown) as progress:
        async with system.database.transaction(CHANGE_SECONDS, kept=kept) as connection:
            wanted = await prepare(connection)
            outcome = await accounts_apply.apply(connection, wanted, system.vault, system.passwords, prune, progress)
            await audit.record_lines(connection, audit.operator(), outcome.lines)
    if outcome.weak:
        print(f"mailgroup: warning: {describe_weak(outcome.weak)}", file=sys.stderr)
    if not json:
        print_lines([change.in_command for change in outcome.changes] or ["nothing to change"])
        print_lines([f"password: {generated}"] if generated else [])
    if not kept:
        outcome.contacts.clear()  # the provider is asked about accounts that exist
    with show_waiting("Asking the provider for the mail there"):
        found = await connection_check.describe_maildrops(system, outcome.contacts)
    if json:
        print_json({"changed": outcome.lines, "providers": found} | ({"password": generated} if generated else {}))
    else:
        print_lines(found)
