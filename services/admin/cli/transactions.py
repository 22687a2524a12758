"""Commands that are one transaction: a change, of which the lines are printed, or a list of rows."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.output import print_json, print_lines, print_table, run

if TYPE_CHECKING:
    from services.admin.accounts.change_lines import ChangeLine

with lazy_imports():
    from services.admin import context
    from services.admin.monitoring import status
    from shared.db import database

Change = Callable[["context.AdminContext", "database.Connection"], Awaitable[Sequence["str | ChangeLine"]]]
"""Makes a change and returns what was done, a line each."""
Read = Callable[["database.Connection"], Awaitable[list[dict[str, Any]]]]
"""Reads the rows of a list, as their JSON objects."""


def run_change(
    data: Path | None,
    json: bool,
    change: Change,
    nothing: str = "",
    seconds: float | None = None,
    mailboxes: Collection[str] = (),
) -> None:
    """Make a change in one transaction, and print its lines.

    :param nothing: printed instead of no lines. :param seconds: limit of the transaction; None: as of every other.
    :param mailboxes: addresses of the people whose mailboxes it changes.
    """

    async def work() -> None:
        limit = database.TRANSACTION_SECONDS if seconds is None else seconds
        async with context.open_context(data) as system:
            async with system.database.transaction(limit) as connection:
                lines = await change(system, connection)
            await system.announce_changes(mailboxes)
        if json:
            print_json({"changed": [str(line) for line in lines]})
        else:
            shown = [line if isinstance(line, str) else line.in_command for line in lines]
            print_lines(shown or ([nothing] if nothing else []))

    run(work)


def run_list(
    title: str,
    columns: Sequence[str],
    cells: Callable[[dict[str, Any]], Sequence[object]],
    data: Path | None,
    json: bool,
    read: Read,
) -> None:
    """Print the rows that ``read`` returns: as a table of ``cells``, or as JSON."""

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            rows = await read(connection)
        if json:
            print_json(rows)
        else:
            print_table(title, columns, map(cells, rows))

    run(work)


def as_rows(found: Iterable[object], *names: str) -> list[dict[str, Any]]:
    """Return these attributes of each object as a JSON object; times are ISO 8601 in UTC."""
    return [{name: _plain(getattr(each, name)) for name in names} for each in found]


def _plain(value: object) -> object:
    return status.iso(value) if isinstance(value, datetime.datetime) else value
