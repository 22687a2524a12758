"""A backup each day in a folder: its name, when the next one is due, and which ones are deleted."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from prometheus_client import Gauge

from shared.errors import Permanent, Temporary

LAST_SUCCESS = Gauge(
    "mailgroup_backup_last_success_timestamp_seconds",
    "Time of the newest daily backup in the folder; 0: there is none.",
)
FAILING = Gauge("mailgroup_backup_failing", "1: the latest try to write the daily backup failed.")

PERIOD_SECONDS = 24 * 3600.0
"""Pause from one backup to the next: seconds. A restart does not shorten it."""
RETRY_SECONDS = 600.0
"""Pause after a backup that failed: seconds."""

_NAME = re.compile(r"mailgroup-(\d{8}T\d{6})Z")
_FORM = "%Y%m%dT%H%M%S"


def name_of(at: datetime.datetime) -> str:
    """Return the file name of a backup that begins at this time (UTC). The names sort by time."""
    return f"mailgroup-{at:{_FORM}}Z"


def list_complete(folder: Path) -> list[Path]:
    """Return the daily backups of this folder, the oldest first; other files are not among them.

    :raises Permanent: it is no folder.
    """
    if not folder.is_dir():
        raise Permanent(f"{folder}: is no folder")
    return sorted(file for file in folder.iterdir() if _NAME.fullmatch(file.name))


def newest_time(files: list[Path]) -> datetime.datetime | None:
    """Return when the newest of these backups began; None if there is none. Pure."""
    found = _NAME.fullmatch(files[-1].name) if files else None
    return None if found is None else datetime.datetime.strptime(found[1], _FORM).replace(tzinfo=datetime.UTC)


def seconds_until_due(files: list[Path], now: datetime.datetime) -> float:
    """Return how long the next backup has to wait; 0 if there is none. A time in the future counts as now. Pure."""
    made_at = newest_time(files)
    if made_at is None:
        return 0.0
    return max(0.0, PERIOD_SECONDS - max(0.0, (now - made_at).total_seconds()))


def remove_surplus(folder: Path, keep: int) -> list[Path]:
    """Delete all daily backups but the newest ones, and return those that were deleted."""
    surplus = list_complete(folder)[:-keep]
    for file in surplus:
        file.unlink()
    return surplus


def remove_unfinished(folder: Path) -> None:
    """Delete what a backup left that was killed. No other process may write backups into this folder."""
    for file in folder.glob("mailgroup-*.part"):
        if _NAME.fullmatch(file.stem):
            file.unlink()


async def back_up(
    folder: Path,
    keep: int,
    write: Callable[[Path], Awaitable[None]],
    *,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> None:
    """Write a backup each day until the process is stopped; one that fails is tried again.

    :param keep: number of backups that are kept. :param write: writes a backup into a new file; it reads the settings
        each time, as the key may be a new one. :raises Permanent: there is no such folder.
    """
    list_complete(folder)
    remove_unfinished(folder)
    while True:
        now = datetime.datetime.now(datetime.UTC)
        files = list_complete(folder)
        made_at = newest_time(files)
        LAST_SUCCESS.set(0 if made_at is None else made_at.timestamp())
        pause = seconds_until_due(files, now)
        if pause == 0:
            try:
                await write(folder / name_of(now))
                for old in remove_surplus(folder, keep):
                    say(f"{old}: deleted, {keep} are kept")
                FAILING.set(0)
            except (Permanent, Temporary, OSError) as error:
                FAILING.set(1)
                pause = RETRY_SECONDS
                complain(f"backup failed, tried again in {pause:g} s: {error}")
        await asyncio.sleep(pause)
