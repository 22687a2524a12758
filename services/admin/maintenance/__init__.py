"""Work over the whole database: retention, restore, background tasks."""
