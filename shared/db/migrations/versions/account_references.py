"""Rows of mails refer to accounts without a check for each, in account_references.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_online_with

revision = "account_references"
down_revision = "last_logins_imap"
branch_labels = None
depends_on = None

upgrade = upgrade_online_with(__file__)
