"""The structures of mails, computed once, in mail_structures.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "mail_structures"
down_revision = "relay_tokens"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
