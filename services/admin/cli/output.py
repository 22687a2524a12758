"""Output of the commands: tables and lines for people, JSON for programs, errors with an exit status."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import structlog
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from services.admin.accounts.errors import AccountsError
from shared.errors import Permanent, Temporary
from shared.settings import SettingsError

console = Console(highlight=False, soft_wrap=True)
FAILURE, MISUSE = 1, 2
"""Exit statuses."""
_UNLIMITED = 10_000
"""Width of a table in a pipe: columns."""


def fail(message: str, status: int = FAILURE) -> NoReturn:
    """Print an error to standard error and exit with this status."""
    for line in message.splitlines():
        print(f"mailgroup: {line}", file=sys.stderr)
    raise typer.Exit(status)


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run a command's coroutine; an error becomes a line and an exit status."""
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
        frame = traceback.extract_tb(error.__traceback__)[-1]
        fail(f"unexpected {type(error).__name__}: {str(error).strip()} ({frame.filename}:{frame.lineno})")


@contextmanager
def show_waiting(what: str) -> Iterator[None]:
    """Show on a terminal what the block waits for."""
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
    """Print a table, or ``empty`` if there are no rows. In a pipe the width is not limited."""
    table = Table(
        *(Column(name, overflow="fold") for name in columns),
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    if table.row_count:
        out = console if console.is_terminal else Console(highlight=False, width=_UNLIMITED)
        out.print(title, style="bold", markup=False)  # a table would fold its title to its own width
        out.print(table)
    else:
        console.print(f"[bold]{escape(title)}[/bold]: {escape(empty)}")
