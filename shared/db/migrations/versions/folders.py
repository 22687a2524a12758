"""A mailbox has folders, for POP3 and IMAP, in folders.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "folders"
down_revision = "maildrops_closed"
branch_labels = None
depends_on = None
contracts = "unreleased"

upgrade = upgrade_with(__file__)
