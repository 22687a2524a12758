"""An external account may send through several SMTP servers, in relays.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "relays"
down_revision = "provider_filings"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
