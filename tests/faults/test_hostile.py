"""The short form of ``make hostile``: two of the worst mails of each kind, and the worst headers of a user."""

from __future__ import annotations

import pytest

from shared.settings import SERVICES
from tests.faults import hostile, hostile_mails
from tests.servers import scratch


@pytest.mark.timeout(1800)
def test_the_worst_mails_block_no_service_and_need_no_operator() -> None:
    with scratch() as folder:
        measured = hostile.measure(folder, mails=2 * len(hostile_mails.kinds()))
    # then all mail arrives and no service ends; ``make hostile`` judges the times on an idle machine
    assert not measured.broken, "\n".join(measured.lines)
    assert not [name for name in measured.missed if "memory" in name], "\n".join(measured.lines)


def test_each_service_has_a_memory_limit() -> None:
    assert set(hostile.memory_limits()) == set(SERVICES)
