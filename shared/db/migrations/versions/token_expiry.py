"""Tokens of scripts expire, in token_expiry.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "token_expiry"
down_revision = "search_prefixes"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
