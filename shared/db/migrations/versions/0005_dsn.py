"""What authors ask to be told about deliveries; the SQL stands beside this file."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # exec_driver_sql, since op.execute would read ":name" as a parameter; told that there are no parameters, the driver
    # leaves "%" alone and takes several statements at once.
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
