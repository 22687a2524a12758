"""How commands speak: tables and lines for people, JSON for programs, one way to fail."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NoReturn

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from services.admin.accounts_file import AccountsError
from shared.failures import Permanent, Temporary
from shared.settings import SettingsError

console = Console(highlight=False, soft_wrap=True)
FAILURE, MISUSE = 1, 2


def fail(message: str, status: int = FAILURE) -> NoReturn:
    """Say what is wrong on standard error and end with this exit status."""
    for line in message.splitlines():
        print(f"mailgroup: {line}", file=sys.stderr)
    raise typer.Exit(status)


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run a command's coroutine; known failures become a line and an exit status."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()],
                        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # commands print

    async def main() -> None:
        await work()

    try:
        asyncio.run(main())
    except (AccountsError, SettingsError) as error:
        fail(str(error), MISUSE)
    except (Permanent, Temporary, ValueError, OSError) as error:
        fail(str(error))


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "none") -> None:
    """A table, or ``empty`` where there are no rows."""
    table = Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left", title_style="bold", header_style="bold")
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    if table.row_count:
        console.print(table)
    else:
        console.print(f"[bold]{escape(title)}[/bold]: {escape(empty)}")


def ago(seconds: float) -> str:
    """A time span in words that are short: 5 s, 3 min, 2 h, 4 d."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
