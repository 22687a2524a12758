"""A migration during a backup, which holds locks on all tables: mail goes on, and the migration waits for its turn."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from deploy.machine.postgres import Postgres
from shared.db.migrations import migrate as migrate_module
from shared.db.migrations import revisions
from shared.db.migrations.migrate import migrate
from shared.errors import Temporary

SECOND = """from shared.db.migrations.sql_file import upgrade_with

revision = "second"
down_revision = "initial"

upgrade = upgrade_with(__file__)
"""


@pytest.fixture
def upgraded(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a database whose code has one revision more, which changes a table."""
    postgres.create("upgraded")
    url = postgres.url_of("upgraded")
    migrate(url)
    shutil.copytree(revisions.FOLDER, tmp_path / "new")
    (tmp_path / "new" / "versions" / "second.py").write_text(SECOND)
    (tmp_path / "new" / "versions" / "second.sql").write_text("alter table local_accounts add column shoe int;\n")
    monkeypatch.setattr(revisions, "FOLDER", tmp_path / "new")
    monkeypatch.setattr(migrate_module, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(migrate_module, "LOCK_PAUSE_SECONDS", 0.5)
    yield url
    postgres.drop("upgraded")


def test_mail_goes_on_while_a_migration_waits_for_a_backup(upgraded: str) -> None:
    with (
        psycopg.connect(upgraded) as backup,
        psycopg.connect(upgraded, autocommit=True) as mail,
        ThreadPoolExecutor(1) as pool,
        capture_logs() as logged,
    ):
        # given a backup that has begun, and a time limit that only a statement behind a waiting lock exceeds
        mail.execute("set statement_timeout = '60s'")
        backup.execute("lock table local_accounts in access share mode")
        # when a migration wants to change a table
        migrating = pool.submit(migrate, upgraded)
        # then statements of mail on this table do not wait until it has changed it
        took = 0
        end = time.monotonic() + 4.0
        while time.monotonic() < end:
            mail.execute("select count(*) from local_accounts")
            took += 1
            time.sleep(0.01)
        assert took > 1
        assert not migrating.done()
        # and when the backup has ended the table is changed
        backup.rollback()
        assert migrating.result(300) == ["second"]
        assert mail.execute("select shoe from local_accounts").fetchall() == []
    assert {line["event"] for line in logged} == {"migration waits for a lock, retrying"}


def test_a_migration_without_its_lock_ends_as_a_temporary_failure(
    upgraded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "MAX_LOCK_SECONDS", 0.0)
    with psycopg.connect(upgraded) as backup:
        backup.execute("lock table local_accounts in access share mode")
        with pytest.raises(Temporary, match="lock timeout"):
            migrate(upgraded)


def test_a_server_that_accepts_no_changes_is_a_temporary_failure(upgraded: str) -> None:
    url = psycopg.conninfo.make_conninfo(upgraded, options="-c default_transaction_read_only=on")
    with pytest.raises(Temporary, match="read-only"):
        migrate(url)
