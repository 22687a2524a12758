"""Alembic's entry point: runs the revisions on the connection of shared/db/migrations/migrate.py."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()
