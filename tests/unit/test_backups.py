"""deploy/machine/backups.py: the file is whole whatever pg_dump does, and there is none when pg_dump fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.machine import backups
from services.admin.cli.app import app
from shared.errors import Permanent

URL, KEY, AT = "postgresql:///mailgroup", "a key", "2026-11-05T12:00:00.000Z"
DUMP = b"PGDMP" + bytes(range(256)) * 20
APPENDS = f"""\
import fcntl
fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)
os.write(1, {DUMP!r})
"""
"""As pg_dump does from version 16 on."""
FAILS = """\
os.write(1, b"PGDMP")
os.write(2, b"the server is away" * 100_000)  # more than a pipe takes
sys.exit(1)
"""


def pg_dump(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """The pg_dump that is found from now on."""
    file = folder / "99/bin/pg_dump"
    file.parent.mkdir(parents=True)
    file.write_text(f"#!{sys.executable}\nimport os, sys\n{script}")
    file.chmod(0o755)
    monkeypatch.setattr(backups, "_INSTALLED", folder)


def test_a_dump_that_makes_its_output_append_only_is_read_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pg_dump(tmp_path, monkeypatch, APPENDS)
    seen: list[tuple[int, int]] = []
    octets = backups.write(tmp_path / "backup", URL, KEY, AT, lambda *step: seen.append(step))
    assert octets == (tmp_path / "backup").stat().st_size
    with backups.opened(tmp_path / "backup") as backup:
        assert (backup.made_at, backup.key, backup.dump.read()) == (AT, KEY, DUMP)
        assert (backup.octets, seen[-1]) == (len(DUMP), (len(DUMP), 0))


def test_a_dump_that_fails_leaves_the_backup_before_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backup").write_bytes(b"yesterday's")
    pg_dump(tmp_path / "programs", monkeypatch, FAILS)
    with pytest.raises(Permanent, match="pg_dump: the server is away"):
        backups.write(tmp_path / "backup", URL, KEY, AT)
    assert (tmp_path / "backup").read_bytes() == b"yesterday's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "programs"]


def test_a_file_that_exists_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(b"yesterday's")
    done = CliRunner().invoke(app, ["backup", str(tmp_path / "backup"), "--data", str(tmp_path / "no system")])
    assert (done.exit_code, "exists already" in done.stderr, "--force" in done.stderr) == (2, True, True)
    assert (tmp_path / "backup").read_bytes() == b"yesterday's"
