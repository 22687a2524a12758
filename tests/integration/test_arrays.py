"""shared/db/arrays.py: PostgreSQL gets exactly the given values, by INSERT and by COPY."""

from __future__ import annotations

import pytest

from shared.db import arrays
from shared.db.arrays import COPY_THRESHOLD
from shared.db.database import Database

STRANGE = ["", " ", "NULL", "null", "{}", '"', "\\", '\\"', "a,b", "\t\n\r", "\\N", "é\u2028😀", "{1,2}", None]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", STRANGE),
        ("bigint", [1, -1, 2**63 - 1, -(2**63), None]),
        ("boolean", [True, False, None]),
        ("bytea", [b"", b"\0\xff\\\"',", bytes(range(256)), None]),
    ],
)
async def test_an_array_literal_holds_what_was_given(database: Database, kind: str, values: list[object]) -> None:
    async with database.transaction() as connection:
        cursor = await connection.execute(
            f"select x from unnest(%s::{kind}[]) with ordinality as u (x, n) order by n",
            (arrays.array_literal(values),),  # type: ignore[arg-type]  # a list of each kind
        )
        assert [row[0] for row in await cursor.fetchall()] == values


@pytest.mark.parametrize("rows", [0, 1, COPY_THRESHOLD, COPY_THRESHOLD + 1, 300])
async def test_rows_are_inserted_in_their_order(database: Database, rows: int) -> None:
    given = [(number, STRANGE[number % len(STRANGE)]) for number in range(rows)]
    async with database.transaction() as connection:
        await connection.execute(
            "create temporary table t (n bigint, s text, id bigint generated always as identity) on commit drop"
        )
        await arrays.insert_rows(connection, "t", {"n": "bigint", "s": "text"}, given)
        cursor = await connection.execute("select n, s from t order by id")
        assert await cursor.fetchall() == given
