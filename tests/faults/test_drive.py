"""The short form of the full run (``make faults``): some hundred mails through kills, restarts, cuts, a wipe."""

from __future__ import annotations

import pytest

from tests.faults.drive import drive
from tests.faults.plan import SHORT


@pytest.mark.timeout(400)
def test_nothing_is_lost_doubled_altered_or_misdirected_through_faults_of_every_part() -> None:
    run = drive(SHORT, seed=4)
    assert run.clean, "\n".join(run.lines)
