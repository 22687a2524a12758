"""Last logins by IMAP, in last_logins_imap.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "last_logins_imap"
down_revision = "mail_structures"
branch_labels = None
depends_on = None
contracts = "unreleased"

upgrade = upgrade_with(__file__)
