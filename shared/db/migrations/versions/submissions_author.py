"""Repeated submissions are found by an index, in submissions_author.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_online_with

revision = "submissions_author"
down_revision = "folders"
branch_labels = None
depends_on = None
contracts = "unreleased"

upgrade = upgrade_online_with(__file__)
