"""The tables: alembic revisions whose content is plain SQL in ``versions/``, and the function that applies them."""
