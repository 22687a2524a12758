"""The answers of an account are counted by an index, in inbound_found_index.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_online_with

revision = "inbound_found_index"
down_revision = "inbound_found"
branch_labels = None
depends_on = None

upgrade = upgrade_online_with(__file__)
