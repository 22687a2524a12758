"""The first revision: all tables, in initial.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "initial"
down_revision = None
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
