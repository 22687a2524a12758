"""The short form of the full run (``make faults``): some hundred mails during kills, restarts, cuts and a wipe."""

from __future__ import annotations

import pytest

from tests.faults.drive import drive
from tests.faults.plan import SHORT


@pytest.mark.timeout(1800)
def test_faults_of_every_part_lose_duplicate_alter_or_misdirect_no_mail() -> None:
    run = drive(SHORT, seed=4)
    assert run.clean, "\n".join(run.lines)
    assert run.not_reached == []
