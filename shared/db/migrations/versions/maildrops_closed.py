"""Ends the use of maildrops by older code, in maildrops_closed.sql. The next revision carries their rows over."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "maildrops_closed"
down_revision = "submission_relay"
branch_labels = None
depends_on = None
contracts = "unreleased"

upgrade = upgrade_with(__file__)
