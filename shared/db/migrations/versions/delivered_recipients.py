"""The index of mail from person to person, in delivered_recipients.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_online_with

revision = "delivered_recipients"
down_revision = "quiet_state"
branch_labels = None
depends_on = None

upgrade = upgrade_online_with(__file__)
