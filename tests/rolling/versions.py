"""The two versions of an upgrade: this checkout, and a copy with revisions that add a column to every table."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psycopg

from deploy.machine.supervise import ROOT

_REVISION = """from shared.db.migrations.sql_file import upgrade_with

revision = "{name}"
down_revision = "{before}"

upgrade = upgrade_with(__file__)
"""


def copy_with_wider_tables(folder: Path, database_url: str, before: str) -> list[str]:
    """Copy the program, and add a revision for each table after ``before``. Returns the SQL of each.

    Old code writes none of the new columns, and reads none; a statement that counts columns would fail.
    """
    for name in ("shared", "services", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with psycopg.connect(database_url) as connection:
        tables = connection.execute(
            """select table_name from information_schema.tables
               where table_schema = 'public' and table_type = 'BASE TABLE' and table_name <> 'alembic_version'
               order by 1"""
        ).fetchall()
    versions, statements = folder / "shared/db/migrations/versions", []
    for (table,) in tables:
        name = f"wider_{table}"
        statements.append(f"alter table {table} add column widened text not null default 'x';\n")
        (versions / f"{name}.py").write_text(_REVISION.format(name=name, before=before), encoding="utf-8")
        (versions / f"{name}.sql").write_text(statements[-1], encoding="utf-8")
        before = name
    return statements


def migrate_with(program: Path, database_url: str) -> None:
    """Run ``mailgroup migrate`` of a version. :raises subprocess.CalledProcessError: it failed."""
    environment = {"MAILGROUP_DATABASE_URL": database_url, "PYTHONPATH": str(program), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-m", "services.admin", "migrate"], cwd=program, env=environment, check=True)
