"""Output of the commands: tables and lines for people, JSON for programs, errors with an exit status."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Literal, NoReturn

import typer

from services.admin.accounts.errors import AccountsError
from shared.errors import Permanent, SettingsError, Temporary

Style = Literal["bold", "green", "red"]
_STYLES = {"bold": 1, "green": 32, "red": 31}
"""Parameters of the control sequence SGR (ECMA-48 section 8.3.117)."""
_MOVES_CURSOR = dict.fromkeys((7, 8, 11, 12, 13))
"""Control characters that would ring, or overwrite what was printed: a subject may hold them."""


class _Console:
    """Standard output. It does without rich, whose import takes as long as all work of most commands."""

    def print(self, text: object = "", *, style: Style | None = None, end: str = "\n") -> None:
        """Print a line; a terminal wraps it. :param style: on a terminal only."""
        shown = str(text).translate(_MOVES_CURSOR)
        if style is not None and self.is_terminal and "NO_COLOR" not in os.environ:
            shown = f"\x1b[{_STYLES[style]}m{shown}\x1b[0m"
        print(shown, end=end, flush=True)

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads the output as it is printed."""
        return sys.stdout.isatty()


console = _Console()
FAILURE, MISUSE = 1, 2
"""Exit statuses."""
_NARROW = 16
"""Width down to which a column is folded: columns; a table that needs more is printed a value a line."""


def fail(message: str, status: int = FAILURE) -> NoReturn:
    """Print an error to standard error and exit with this status."""
    for line in message.splitlines():
        print(f"mailgroup: {line}", file=sys.stderr)
    raise typer.Exit(status)


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run a command's coroutine; an error becomes a line and an exit status."""
    import asyncio  # help needs none of these
    import logging

    with _hidden("rich"):  # structlog would import it for a renderer that no command uses
        import structlog

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
def _hidden(package: str) -> Iterator[None]:
    """Let modules that the block imports do without an optional package, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # its import fails
    try:
        yield
    finally:
        del sys.modules[package]


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
        console.print(line)


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "none") -> None:
    """Print a table, or ``empty`` if there are no rows.

    On a terminal it is folded to the width; if a column would be too narrow, each value gets a line. In a pipe the
    width is not limited.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not cells:
        console.print(title, style="bold", end=": ")
        console.print(empty)
        return
    console.print(title, style="bold")
    if not console.is_terminal:
        _print_aligned(columns, cells)
    elif _least_width(columns, cells) > shutil.get_terminal_size().columns:
        _print_values(columns, cells)
    else:
        _print_folded(columns, cells)


def _print_aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each column as wide as its widest cell."""
    from rich.cells import cell_len, set_cell_size  # East Asian characters take two columns of a terminal

    widths = [
        max(cell_len(line) for cell in column for line in cell.split("\n"))
        for column in zip(columns, *rows, strict=True)
    ]

    def show(cells: Sequence[str]) -> None:
        for line in zip_longest(*(cell.split("\n") for cell in cells), fillvalue=""):
            console.print("  ".join(map(set_cell_size, line, widths)).rstrip())

    show(columns)
    console.print("─" * (sum(widths) + 2 * (len(widths) - 1)))
    for row in rows:
        show(row)


def _print_folded(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the columns of a terminal folded to its width."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        *(Column(name, overflow="fold") for name in columns),
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False, width=shutil.get_terminal_size().columns).print(table)


def _least_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the width of a table that is folded as far as it may be: columns."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return sum(min(each, _NARROW) + 1 for each in widths)


def _print_values(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each value of a table on a line of its own."""
    for row in rows:
        for position, (name, value) in enumerate(zip(columns, row, strict=True)):
            if value or position == 0:
                console.print(f"{'- ' if position == 0 else '  '}{name}: {value}")
