"""bench/purge.py with a few mails: each variant purges the same mails, and keeps the same of them."""

from __future__ import annotations

import argparse
import asyncio

import pytest

from bench import purge
from deploy.machine.postgres import Postgres


@pytest.mark.parametrize("name", purge.SIDES)
def test_every_variant_purges_the_oldest_mails_alone(
    name: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(purge, "PEOPLE", 4)
    monkeypatch.setattr(purge, "EXTERNALS", 2)
    options = argparse.Namespace(mails=40, purged=10, octets=3_000, batch=4)
    side = purge.Side(postgres, name, options)
    try:
        result = asyncio.run(side.measure())  # it compares the numbers of rows
        assert result.purge.wal > 0 and result.purge.seconds > 0
        assert side.value("select sum(delivered) from purged_mails") == 10
        assert side.value("select count(*) from sent_mail where author_id is null") == 10
        assert side.value("select count(*) from uidl_ledger where inbound_id is null") == 10
        assert side.value("select min(mail_id) from folder_mails") == 11
    finally:
        side.close()
