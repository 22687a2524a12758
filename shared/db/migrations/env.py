"""Alembic's entry point: runs the revisions on the connection of shared/db/migrations/migrate.py."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script

from shared.db.migrations.revisions import RELEASED, UNRELEASED


def record_contraction(
    ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
) -> None:
    """After a revision that contracts the schema, in its transaction: record the oldest revision whose code works."""
    script = step.up_revision
    if not isinstance(script, Script) or ctx.connection is None:
        return
    version = getattr(script.module, "contracts", None)
    if version is not None:
        oldest = script.revision if version == UNRELEASED else RELEASED[version]
        ctx.connection.exec_driver_sql("update alembic_version set oldest_revision = %s", (oldest,))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=None,
    transaction_per_migration=True,
    on_version_apply=record_contraction,
)
with context.begin_transaction():
    context.run_migrations()
