"""Copies of sent mail and marks of answered mail at the provider, in provider_filings.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "provider_filings"
down_revision = "inbound_found_index"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
