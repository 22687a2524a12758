"""People may get junk mail into their folder Junk, in local_junk.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "local_junk"
down_revision = "account_references"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
