"""Alembic's entry: runs the revisions on the connection that shared/db/migrations/migrate.py hands over."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()
