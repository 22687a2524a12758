"""``mailgroup route``: the dry run decides as the router does, with the same reason."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.admin.cli.app import app
from tests import servers
from tests.company import COMPANY, SUPPORT, apply
from tests.correspondence import ALEX, BODY, JIM, SENT, submit

CROWD = ", ".join(f"n{number}@x" for number in range(1000))


@pytest.mark.parametrize(
    ("mail", "recipients", "rule", "reason"),
    [
        (f"To: Alex <{SUPPORT}>\r\n\r\n".encode(), [ALEX], 1, "To names Alex"),
        (f"To: Alex <{SUPPORT}>\n\n".encode(), [ALEX], 1, "To names Alex"),
        (
            f"To: Alex <{SUPPORT}>, {CROWD}\r\n\r\n".encode(),
            [ALEX, JIM],
            5,
            "To has more than 1000 addresses, so everyone who shares it gets it",
        ),
        (SENT, [ALEX], 3, f"it is a copy of what Alex sent through {SUPPORT}; kept as deleted mail"),
        (
            SENT.replace(BODY, b"something else\r\n"),
            [ALEX, JIM],
            5,
            f"{SUPPORT} is in neither To nor Cc, so everyone who shares it gets it",
        ),
    ],
)
def test_route_decides_as_the_router(
    database_url: str, tmp_path: Path, mail: bytes, recipients: list[str], rule: int, reason: str
) -> None:
    # given a company, and a mail that Alex sent
    async def prepare() -> None:
        async with servers.opened(database_url) as database:
            await apply(database, COMPANY)
            await submit(database, "Alex", SENT)

    asyncio.run(prepare())
    file = tmp_path / "mail.eml"
    file.write_bytes(mail)
    # when
    where = {"MAILGROUP_DATABASE_URL": database_url, "MAILGROUP_DATA": str(tmp_path)}
    done = CliRunner(env=where).invoke(app, ["route", str(file), "--external", SUPPORT, "--json"])
    # then
    decided: dict[str, Any] = json.loads(done.stdout)
    assert decided == {"recipients": recipients, "rule": rule, "reason": reason}
