"""A submission knows the relay that has it, in submission_relay.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "submission_relay"
down_revision = "relays"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
