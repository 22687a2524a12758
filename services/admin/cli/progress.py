"""Progress of long commands, on standard error: a bar on a terminal, in a pipe a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.admin.formatting import octets

LINE_SECONDS = 5.0
"""Interval of the lines in a pipe: seconds; a command that is done earlier prints none."""

Report = Callable[[int, int], None]
"""A function that is called with what is done, and with all that is to be done; 0: unknown."""


@contextmanager
def show_progress(what: str, unit: str = "", *, shown: bool = True) -> Iterator[Report]:
    """Show how far the block is; it calls the function that it gets.

    :param what: the work, as the beginning of the line. :param unit: name of the steps, ``octets`` for sizes.
    :param shown: False shows nothing.
    """
    if not shown:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(what, unit) as report:
            yield report
    else:
        yield Lines(what, unit, time.monotonic, lambda line: print(line, file=sys.stderr, flush=True)).report


class Lines:
    """Prints the progress in lines, for a pipe or a log."""

    def __init__(self, what: str, unit: str, clock: Callable[[], float], say: Callable[[str], None]) -> None:
        """:param clock: monotonic seconds. :param say: prints a line. Other parameters as ``show_progress``."""
        self._what, self._unit, self._clock, self._say = what, unit, clock, say
        self._next = clock() + LINE_SECONDS

    def report(self, done: int, total: int) -> None:
        """Print a line, if the last one is some seconds old."""
        if self._clock() >= self._next:
            self._next = self._clock() + LINE_SECONDS
            self._say(f"{self._what}: {describe(done, total, self._unit)}")


def describe(done: int, total: int, unit: str) -> str:
    """Return the progress as text: 312 of 1000 passwords, or 1.5 MB of 8.0 MB. Pure."""
    numbers = [octets(n) if unit == "octets" else str(n) for n in (done, *([total] if total else []))]
    return " of ".join(numbers) + (f" {unit}" if unit not in ("", "octets") else "")


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Report]:
    from rich.console import Console  # only a terminal needs it, and its import takes long
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[state]}")),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None, state="")

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None, state=describe(done, total, unit))

        yield report
