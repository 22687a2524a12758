"""The mails that were moved out of Junk are found by an index, in inbound_junk_left.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_online_with

revision = "inbound_junk_left"
down_revision = "inbound_junk"
branch_labels = None
depends_on = None

upgrade = upgrade_online_with(__file__)
