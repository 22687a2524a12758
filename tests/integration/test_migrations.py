"""shared/db/migrations/migrate.py against a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from deploy.machine.postgres import Postgres
from shared.db.migrations.migrate import migrate, pending
from shared.errors import Permanent, Temporary


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database."""
    postgres.create("empty")
    yield postgres.url_of("empty")
    postgres.drop("empty")


def test_several_that_migrate_at_once_apply_each_revision_once(empty: str) -> None:
    # given a database without tables
    due = pending(empty)
    assert due == ["initial"]
    # when four processes start together
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(migrate, [empty] * 4))
    # then one of them did all the work
    assert sorted(applied) == [[], [], [], due]
    assert pending(empty) == []
    assert migrate(empty) == []


def test_a_database_newer_than_the_code_is_left_alone(empty: str) -> None:
    migrate(empty)
    with psycopg.connect(empty) as connection:
        connection.execute("update alembic_version set version_num = 'later'")
    with pytest.raises(Permanent, match="revision later"):
        migrate(empty)


def test_a_server_that_does_not_answer_is_a_temporary_failure() -> None:
    with pytest.raises(Temporary, match="Connection refused"):
        migrate("postgresql://127.0.0.1:1/nowhere", seconds=0.1)
