"""A migration during a backup, which holds locks on all tables: mail goes on, and the migration waits for its turn.
Work on large tables holds no lock that mail needs, and continues after an interruption."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from deploy.machine.postgres import Postgres
from shared.db.migrations import migrate as migrate_module
from shared.db.migrations import revisions
from shared.db.migrations.migrate import migrate
from shared.errors import Permanent, Temporary

LATEST = revisions.known_revisions()[-1]
SECOND = f"""from shared.db.migrations.sql_file import upgrade_with

revision = "second"
down_revision = "{LATEST}"

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


# ------------------------------------------------------------------------------------------------ large tables

INDEX = "create index concurrently if not exists shoes_size on shoes (size);\n"
BATCHES = """
update shoes set size = 42
where size is null and id in (select id from shoes where size is null order by id limit 1000);
"""


@pytest.fixture
def shoes(upgraded: str) -> str:
    """A database with 2,500 rows, whose code has a revision that works on them outside of a transaction."""
    with psycopg.connect(upgraded) as connection:
        connection.execute("create table shoes (id int primary key, size int)")
        connection.execute("insert into shoes select generate_series(1, 2500)")
    file = revisions.FOLDER / "versions" / "second.py"
    file.write_text(SECOND.replace("upgrade_with", "upgrade_online_with"))
    return upgraded


def set_sql(sql: str) -> None:
    (revisions.FOLDER / "versions" / "second.sql").write_text(sql)


def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def until_found(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Ask until there is a row."""
    end = time.monotonic() + 120
    while not (rows := ask(url, sql)):
        assert time.monotonic() < end, sql
        time.sleep(0.05)
    return rows


BUILDING = "select pid from pg_stat_activity where query like 'create index concurrently%' and wait_event_type = 'Lock'"
VALID = "select indisvalid from pg_index where indexrelid = to_regclass('shoes_size')"


def test_an_index_is_built_beside_mail_and_beside_others_that_migrate(shoes: str) -> None:
    set_sql(INDEX)
    with (
        psycopg.connect(shoes) as backup,
        psycopg.connect(shoes, autocommit=True) as mail,
        ThreadPoolExecutor(2) as pool,
    ):
        # given a backup, which reads the table, and two processes that migrate
        backup.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # as pg_dump
        backup.execute("select count(*) from shoes")
        migrating = [pool.submit(migrate, shoes) for _ in range(2)]
        # when one of them waits for the backup's end
        until_found(shoes, BUILDING)
        # then mail can be written
        mail.execute("set lock_timeout = '60s'")
        mail.execute("insert into shoes values (3000, 1)")
        mail.execute("update shoes set size = 2 where id = 3000")
        assert not any(each.done() for each in migrating)
        # and with the backup over, one of the two has built the index
        backup.rollback()
        assert sorted(each.result(300) for each in migrating) == [[], ["second"]]
    assert ask(shoes, VALID) == [(True,)]


def test_an_index_that_was_interrupted_is_built_again(shoes: str) -> None:
    set_sql(INDEX)
    with psycopg.connect(shoes) as backup, ThreadPoolExecutor(1) as pool:
        backup.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        backup.execute("select count(*) from shoes")
        migrating = pool.submit(migrate, shoes)
        [(building,)] = until_found(shoes, BUILDING)
        ask(shoes, f"select pg_terminate_backend({building})")
        with pytest.raises(Temporary):
            migrating.result(300)
    assert ask(shoes, VALID) == [(False,)]
    assert migrate(shoes) == ["second"]
    assert ask(shoes, VALID) == [(True,)]


def test_rows_are_changed_in_batches_which_are_committed_one_by_one(shoes: str) -> None:
    set_sql(BATCHES)
    with psycopg.connect(shoes) as mail, ThreadPoolExecutor(1) as pool, capture_logs() as logged:
        # given a row of the last batch that mail is changing
        mail.execute("update shoes set size = 7 where id = 2400")
        migrating = pool.submit(migrate, shoes)
        # then the batches before are committed, and hold no lock
        until_found(shoes, "select 1 from shoes having count(size) = 2000")
        ask(shoes, "set lock_timeout = '60s'; update shoes set size = 8 where id = 1")
        assert not migrating.done()
        # and the last one follows as soon as it can
        mail.commit()
        assert migrating.result(300) == ["second"]
    assert ask(shoes, "select size, count(*) from shoes group by 1 order by 1") == [(7, 1), (8, 1), (42, 2498)]
    assert {line["event"] for line in logged} <= {"migration waits for a lock, retrying"}


def test_revisions_before_one_that_fails_stay_applied(upgraded: str) -> None:
    (revisions.FOLDER / "versions" / "third.py").write_text(
        SECOND.replace('"second"', '"third"').replace(f'"{LATEST}"', '"second"')
    )
    (revisions.FOLDER / "versions" / "third.sql").write_text(
        "alter table local_accounts add column lace int; select 1 / 0;\n"
    )
    with pytest.raises(Permanent, match="division by zero"):
        migrate(upgraded)
    assert ask(upgraded, "select version_num from alembic_version") == [("second",)]
    columns = "select column_name from information_schema.columns where column_name in ('shoe', 'lace')"
    assert ask(upgraded, columns) == [("shoe",)]
