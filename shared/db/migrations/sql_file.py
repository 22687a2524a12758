"""The loader of every revision: executes the SQL file beside the revision's Python file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import op


def upgrade_with(revision_file: str) -> Callable[[], None]:
    """Build the ``upgrade`` of a revision. :param revision_file: its ``__file__``; the SQL file has the same name."""
    sql_file = Path(revision_file).with_suffix(".sql")

    def upgrade() -> None:
        # op.execute would read ":name" as a parameter. Without parameters, the driver does not interpret "%" and
        # accepts several statements at once.
        sql = sql_file.read_text(encoding="utf-8")
        op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})

    return upgrade
