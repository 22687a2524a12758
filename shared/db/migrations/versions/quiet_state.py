"""The state of a maildrop that needs no work, in quiet_state.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "quiet_state"
down_revision = "local_language"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
