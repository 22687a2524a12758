"""Mail is known as junk, in inbound_junk.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "inbound_junk"
down_revision = "local_junk"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
