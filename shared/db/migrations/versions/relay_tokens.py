"""A relay may log in with the access tokens of another account, in relay_tokens.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "relay_tokens"
down_revision = "submissions_author"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
