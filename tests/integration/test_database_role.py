"""deploy/postgres/create_role.sh on a real cluster, as the container of PostgreSQL runs it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from deploy.machine.postgres import Postgres
from shared.db.migrations.migrate import migrate
from shared.db.migrations.revisions import known_revisions
from tests import servers

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/postgres/create_role.sh"


@pytest.fixture(scope="module")
def fresh() -> Iterator[Postgres]:
    """A cluster in which nothing was created yet."""
    with servers.postgres() as server:
        yield server


def test_the_containers_script_creates_a_role_without_privileges(fresh: Postgres, tmp_path: Path) -> None:
    admin = conninfo_to_dict(fresh.admin_url_of("postgres"))
    (tmp_path / "password").write_text("it's a secret\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PASSWORD_FILE": str(tmp_path / "password"),
        "PGHOST": str(admin["host"]),
        "PGPORT": str(admin["port"]),
        "PGUSER": str(admin["user"]),
        "PGPASSWORD": str(admin["password"]),
        "PGDATABASE": "postgres",
    }
    subprocess.run([str(SCRIPT)], env=environment, check=True)
    url = make_conninfo(fresh.admin_url_of("mailgroup"), user="mailgroup", password="it's a secret")
    # then the role can migrate its database, and no more
    assert migrate(url) == known_revisions()
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in ("create role other", "create database other", "alter system set work_mem = '1MB'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
