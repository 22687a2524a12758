"""Addresses that people gave up stay known for some days, in former_addresses.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "former_addresses"
down_revision = "token_expiry"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
