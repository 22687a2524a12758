"""A fetcher may wait for news of a mailbox by IMAP IDLE, in polls_watch.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "polls_watch"
down_revision = "external_imap"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
