"""The schema: Alembic revisions, each with plain SQL in ``versions/``, and the function that applies them."""
