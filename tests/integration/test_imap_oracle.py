"""imap_out and a real Dovecot answer the same random streams of commands alike (tests/imap_oracle; ``make imap``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from shared.db.database import Database
from tests.imap_clients import imap_server
from tests.imap_oracle.sides import LogIn
from tests.imap_oracle.stand import OracleStand

SEEDS = (1, 2, 3, 4, 5, 6)
STEPS = 120


async def test_streams_of_commands_are_answered_as_by_dovecot(
    database_url: str, database: Database, tmp_path: Path, provider: DemoProvider
) -> None:
    async with imap_server(database_url, database, tmp_path) as server:
        stand = OracleStand(server, provider)
        reports = [await stand.compare(seed, STEPS) for seed in SEEDS]
    assert [report for report in reports if report] == []


async def test_a_fault_is_found_and_shortened(
    database_url: str,
    database: Database,
    tmp_path: Path,
    provider: DemoProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a server that has a mail of its own
    add_account = OracleStand._add_ours

    async def with_a_mail(stand: OracleStand, address: str) -> LogIn:
        log_in = await add_account(stand, address)
        client = await log_in()
        await client.append(b"Subject: one\r\n\r\n")
        return log_in

    monkeypatch.setattr(OracleStand, "_add_ours", with_a_mail)
    async with imap_server(database_url, database, tmp_path) as server:
        report = await OracleStand(server, provider).compare(1, 10)
    assert "shortened to 1 of" in report and "Dovecot:" in report
