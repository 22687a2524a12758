"""An external account may be fetched by IMAP instead of POP3, in external_imap.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "external_imap"
down_revision = "initial"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
