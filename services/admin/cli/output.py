"""Output of the commands: tables and lines for people, JSON for programs, errors with an exit status."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from services.admin.accounts.errors import AccountsError
from services.admin.cli.lazy import lazy_value
from shared.errors import Permanent, SettingsError, Temporary

if TYPE_CHECKING:
    from rich.console import Console


def _make_console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


console: Console = lazy_value(_make_console)
"""Prints lines; they are wrapped by the terminal, not here."""
FAILURE, MISUSE = 1, 2
"""Exit statuses."""
_UNLIMITED = 10_000
"""Width of a table in a pipe: columns."""
_NARROW = 16
"""Width down to which a column is folded: columns; a table that needs more is printed a value a line."""


def fail(message: str, status: int = FAILURE) -> NoReturn:
    """Print an error to standard error and exit with this status."""
    for line in message.splitlines():
        print(f"mailgroup: {line}", file=sys.stderr)
    raise typer.Exit(status)


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run a command's coroutine; an error becomes a line and an exit status."""
    import asyncio
    import logging

    import structlog  # help needs none of these

    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
    )  # commands print
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)

    async def main() -> None:
        await work()

    with report_errors():
        asyncio.run(main())


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn an error of the block into a line on standard error and an exit status."""
    try:
        yield
        print(end="", flush=True)
    except (AccountsError, SettingsError) as error:
        fail(str(error), MISUSE)
    except BrokenPipeError as error:  # the reader, such as head or less, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILURE) from error
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (Permanent, Temporary, ValueError) as error:
        fail(str(error))
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # a fault of mailgroup, in one line, too
        import traceback

        frame = traceback.extract_tb(error.__traceback__)[-1]
        fail(f"unexpected {type(error).__name__}: {str(error).strip()} ({frame.filename}:{frame.lineno})")


@contextmanager
def show_waiting(what: str) -> Iterator[None]:
    """Show on a terminal what the block waits for."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to standard output."""
    for line in lines:
        console.print(line, markup=False)


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "none") -> None:
    """Print a table, or ``empty`` if there are no rows.

    On a terminal it is folded to the width; if a column would be too narrow, each value gets a line. In a pipe the
    width is not limited.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not cells:
        console.print(f"[bold]{escape(title)}[/bold]: {escape(empty)}")
        return
    console.print(title, style="bold", markup=False)
    width = shutil.get_terminal_size().columns if console.is_terminal else _UNLIMITED
    if _least_width(columns, cells) > width:
        _print_values(columns, cells)
        return
    table = Table(
        *(Column(name, overflow="fold") for name in columns),
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for row in cells:
        table.add_row(*map(escape, row))
    Console(highlight=False, width=width).print(table)


def _least_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the width of a table that is folded as far as it may be: columns."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return sum(min(each, _NARROW) + 1 for each in widths)


def _print_values(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each value of a table on a line of its own."""
    for row in rows:
        for position, (name, value) in enumerate(zip(columns, row, strict=True)):
            if value or position == 0:
                console.print(f"{'- ' if position == 0 else '  '}{name}: {value}", markup=False)
