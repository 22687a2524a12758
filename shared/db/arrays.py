"""Many values in one statement: array parameters, and rows to insert.

psycopg dumps an array parameter item by item in Python, at up to 9 µs for a text; a batch has thousands of items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shared.db.database import Connection

COPY_THRESHOLD = 16
"""Largest number of rows for INSERT, which needs one round trip. More rows go by COPY, which needs two and costs the
server much less."""

Value = int | str | bytes | None


def array_literal(values: Iterable[Value]) -> str:
    """Format an array in PostgreSQL's notation, for a parameter that the statement casts: ``%s::bigint[]``.

    Texts must be storable: PostgreSQL refuses NUL and lone surrogates.
    """
    return "{" + ",".join([_item(value) for value in values]) + "}"


def _item(value: Value) -> str:
    if type(value) is int:  # most are
        return str(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return "NULL" if value is None else str(value)  # a bool is True or False, which PostgreSQL reads


async def insert_rows(
    connection: Connection, table: str, columns: Mapping[str, str], rows: Sequence[Sequence[Value]]
) -> None:
    """Insert rows in their order.

    :param table: its name. :param columns: names and types; the other columns take their defaults.
    """
    names = ", ".join(columns)
    if len(rows) > COPY_THRESHOLD:
        async with connection.cursor().copy(f"copy {table} ({names}) from stdin") as copy:
            for row in rows:
                await copy.write_row(row)
    elif rows:
        arrays = ", ".join([f"%s::{kind}[]" for kind in columns.values()])
        await connection.execute(
            f"insert into {table} ({names}) select * from unnest({arrays})",
            [array_literal(column) for column in zip(*rows, strict=True)],
        )
