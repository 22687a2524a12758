"""Each answer records how its author was found, in inbound_found.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "inbound_found"
down_revision = "reply_tags"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
