"""Reply tags: the setting of an account, the keys, and the probe mails, in reply_tags.sql."""

from __future__ import annotations

from shared.db.migrations.sql_file import upgrade_with

revision = "reply_tags"
down_revision = "polls_watch"
branch_labels = None
depends_on = None

upgrade = upgrade_with(__file__)
