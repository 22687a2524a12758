"""Mail is found by beginnings of words and by its result, in search_prefixes.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_online_with

revision = "search_prefixes"
down_revision = "inbound_junk_left"
branch_labels = None
depends_on = None

upgrade = upgrade_online_with(__file__)
