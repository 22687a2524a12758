"""The language of a person, in local_language.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "local_language"
down_revision = "former_addresses"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
