"""``logs``: the logs of all services in one, by time."""

from __future__ import annotations

import heapq
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Annotated

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json
from services.admin.cli.output import MISUSE, fail, report_errors, run
from services.admin.monitoring.log_lines import LEVELS, LogLine, format_line, read_line
from shared.errors import Permanent, Temporary

with lazy_imports():
    from services.admin import context
    from services.admin.mail import trace
    from shared import settings

LINES = 200
"""Lines that are printed unless others are asked for."""
FOLLOW_SECONDS = 0.25
"""Interval at which --follow reads the logs: seconds."""
_OLD_FILES = 3
"""Rotated files of a log: supervise.py."""
_TAIL_OCTETS = 64 * 1024


def logs(
    service: Annotated[
        str, typer.Argument(help="One service; - reads the lines from a pipe.", metavar="[SERVICE|-]")
    ] = "",
    mail: Annotated[int | None, typer.Option("--mail", help="Only lines about this mail.", metavar="ID", min=1)] = None,
    level: Annotated[str, typer.Option("--level", help="Only this level and above.", metavar="LEVEL")] = LEVELS[0],
    lines: Annotated[
        int | None, typer.Option("--lines", help=f"The latest lines only; {LINES}, or all with --mail.", min=1)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print further lines as they are written.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print the logs of all services on this machine, or of one, by time.

    In containers: docker compose logs --no-log-prefix | mailgroup logs -

    Example: mailgroup logs sender --mail 42
    """
    if level not in LEVELS:
        fail(f"--level {level!r}: is one of {', '.join(LEVELS)}", MISUSE)
    if service not in ("", "-", *settings.SERVICES):
        fail(f"service {service!r}: there is none of this name; there are {', '.join(settings.SERVICES)}", MISUSE)
    ids = set[int]() if mail is None else _ids_of(data, mail, look_up=service != "-")

    def is_wanted(line: LogLine) -> bool:
        return line.is_at_least(level) and (not ids or line.is_about(ids))

    def show(found: Iterable[LogLine]) -> None:
        for line in found:
            print(line.text if json else format_line(line))
        sys.stdout.flush()

    with report_errors(), suppress(KeyboardInterrupt):
        if service == "-":
            _show_pipe(is_wanted, show, lines, follow)
            return
        files = [_Log(name, file) for name, file in _files(settings.load(data=data).data, service)]
        count = lines if lines is not None or mail is not None else LINES
        latest = (
            count if mail is None and level == LEVELS[0] else None
        )  # of each file; others have to be looked through
        merged = heapq.merge(*(file.read(latest) for file in files), key=_time_of)
        show(deque(filter(is_wanted, merged), maxlen=count))
        while follow:
            new = [line for file in files for line in file.read_new()]
            show(filter(is_wanted, sorted(new, key=_time_of)))
            time.sleep(FOLLOW_SECONDS)


def _time_of(line: LogLine) -> str:
    return line.time


def _ids_of(data: Path | None, mail: int, *, look_up: bool) -> set[int]:
    """Return the ids that the log has for a mail: a mail inside has one of its own, which the database knows.

    :param look_up: in the database, if the system runs.
    """
    ids = {mail}

    async def work() -> None:
        with suppress(Permanent, Temporary):
            async with context.open_context(data) as system, system.database.transaction() as connection:
                ids.update(await trace.related_ids(connection, mail))

    if look_up:
        run(work)
    return ids


def _show_pipe(
    is_wanted: Callable[[LogLine], bool], show: Callable[[Iterable[LogLine]], None], count: int | None, follow: bool
) -> None:
    """Print the lines of standard input: by time when it has ended, or as they come."""
    found = filter(is_wanted, _parse(sys.stdin.buffer, ""))
    if follow:
        for line in found:
            show([line])
    else:
        show(deque(sorted(found, key=_time_of), maxlen=count))


def _files(data: Path, service: str) -> list[tuple[str, Path]]:
    """Return the names and log files of the services. :raises Permanent: there are none in this data folder."""
    found = [(name, data / "log" / f"{name}.log") for name in settings.SERVICES if service in ("", name)]
    there = [(name, file) for name, file in found if file.exists()]
    if not there:
        raise Permanent(
            f"{data / 'log'}: there is no log of a service; 'up' writes it there. In containers: docker compose logs "
            "--no-log-prefix | mailgroup logs -"
        )
    return there


def _parse(lines: Iterable[bytes], service: str, before: str = "") -> Iterator[LogLine]:
    """:param before: time of the line before the first one."""
    for content in lines:
        line = read_line(content.decode("utf-8", "replace"), service, before)
        before = line.time
        yield line


class _Log:
    """The log of a service, which is written meanwhile, and rotated: its file is renamed, and a new one begins.

    ``read`` returns what is there, and ``read_new`` what has come since: no line twice, and none in part.
    """

    def __init__(self, service: str, file: Path) -> None:
        self._service, self._file, self._before, self._rest = service, file, "", b""
        self._stream = file.open("rb")
        self._end = _end_of_lines(self._stream)
        self._stream.seek(self._end)

    def read(self, count: int | None) -> Iterator[LogLine]:
        """Yield the lines, the oldest first. :param count: of the latest ones; None: all, of rotated files, too."""
        older = [self._file.with_name(f"{self._file.name}.{number}") for number in range(_OLD_FILES, 0, -1)]
        with ExitStack() as stack:
            streams = [stack.enter_context(file.open("rb")) for file in older if file.exists()]
            ends = [stream.seek(0, os.SEEK_END) for stream in streams]
            parts: list[tuple[IO[bytes], int]] = [*zip(streams, ends, strict=True), (self._stream, self._end)]
            yield from _parse(_latest(parts, count) if count is not None else _all(parts), self._service)
            self._stream.seek(self._end)

    def read_new(self) -> list[LogLine]:
        """Return the lines that were completed since the last call."""
        content = self._rest + self._stream.read()
        with suppress(FileNotFoundError):  # between the two steps of a rotation
            if self._file.stat().st_ino != os.fstat(self._stream.fileno()).st_ino:
                content += self._stream.read()
                self._stream.close()
                self._stream = self._file.open("rb")
                content += self._stream.read()
        *lines, self._rest = content.split(b"\n")
        found = list(_parse(lines, self._service, self._before))
        self._before = found[-1].time if found else self._before
        return found


def _end_of_lines(stream: IO[bytes]) -> int:
    """Return the position behind the last complete line of a file."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - _TAIL_OCTETS))
    content = stream.read(_TAIL_OCTETS)
    return end - (len(content) - content.rfind(b"\n") - 1)


def _all(parts: Iterable[tuple[IO[bytes], int]]) -> Iterator[bytes]:
    """Yield the lines of files, each up to a position."""
    for stream, end in parts:
        stream.seek(0)
        while (left := end - stream.tell()) > 0 and (line := stream.readline(left)):
            yield line


def _latest(parts: list[tuple[IO[bytes], int]], count: int) -> list[bytes]:
    """Return the last lines of files, each up to a position."""
    lines: list[bytes] = []
    for stream, end in reversed(parts):
        if len(lines) < count:
            lines = _tail(stream, end, count - len(lines)) + lines
    return lines


def _tail(stream: IO[bytes], position: int, count: int) -> list[bytes]:
    """Return the last lines before a position, reading backwards."""
    content = b""
    while position > 0 and content.count(b"\n") <= count:
        step = min(_TAIL_OCTETS, position)
        position -= step
        stream.seek(position)
        content = stream.read(step) + content
    return content.splitlines()[-count:]
