"""services/admin/maintenance/daily_backups.py: when the next backup is due, and which ones are deleted."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.machine import backups
from services.admin.cli.app import app
from services.admin.maintenance import daily_backups
from shared.errors import Permanent

NOW = datetime.datetime(2026, 11, 5, 12, tzinfo=datetime.UTC)
DAY = daily_backups.PERIOD_SECONDS


def at(hours: float) -> Path:
    """A backup that was made so many hours ago."""
    return Path(daily_backups.name_of(NOW - datetime.timedelta(hours=hours)))


@pytest.mark.parametrize(
    ("ages", "seconds"),
    [([], 0), ([25], 0), ([24], 0), ([48, 23], 3600), ([0], DAY), ([-5], DAY)],
    ids=["none", "late", "due", "an hour left", "just made", "clock was ahead"],
)
def test_a_backup_is_due_a_day_after_the_newest_one(ages: list[float], seconds: float) -> None:
    assert daily_backups.seconds_until_due([at(hours) for hours in ages], NOW) == seconds


def test_only_the_oldest_daily_backups_are_deleted(tmp_path: Path) -> None:
    days = [tmp_path / at(24 * age).name for age in range(5)]
    others = [tmp_path / name for name in ("mailgroup-monday", "mailgroup-20200101T000000Z.copy", "notes")]
    for file in [*days, *others]:
        file.touch()
    # when
    removed = daily_backups.remove_surplus(tmp_path, 3)
    # then
    assert removed == [days[4], days[3]]
    assert set(tmp_path.iterdir()) == {*days[:3], *others}
    assert daily_backups.list_complete(tmp_path) == [days[2], days[1], days[0]]


def test_what_a_killed_backup_left_is_deleted(tmp_path: Path) -> None:
    unfinished, other = tmp_path / f"{at(1).name}.part", tmp_path / "mailgroup-monday.part"
    for file in (unfinished, other):
        file.touch()
    daily_backups.remove_unfinished(tmp_path)
    assert set(tmp_path.iterdir()) == {other}


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="is no folder"):
        daily_backups.list_complete(tmp_path / "missing")


@pytest.mark.parametrize("words", [(), ("--daily",)])
def test_no_backup_is_written_into_the_checkout(words: tuple[str, ...], tmp_path: Path) -> None:
    inside = Path(backups.__file__).parent / "monday"
    link = tmp_path / "link"
    link.symlink_to(inside.parent)
    for place in (inside, link / "monday"):
        done = CliRunner().invoke(app, ["backup", str(place), *words])
        assert done.exit_code == 2 and "is inside the checkout" in done.output
    assert not inside.exists()
