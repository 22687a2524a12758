"""The short form of ``make failover``: one failover of PostgreSQL, and one RabbitMQ node killed."""

from __future__ import annotations

import pytest

from tests.failover.cases import SHORT
from tests.failover.drive import drive


@pytest.mark.timeout(1800)
def test_a_failover_of_each_server_loses_and_duplicates_no_mail() -> None:
    run = drive(SHORT, seed=4)
    assert run.clean, "\n".join(run.report())
