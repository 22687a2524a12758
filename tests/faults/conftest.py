"""A system of its own for the faults: durable servers, swept soon after a loss."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import scratch
from tests.system import System, running


@pytest.fixture(scope="module")
def gateway() -> Iterator[System]:
    """The running gateway."""
    with scratch() as folder, running(folder, sweep_grace_seconds=2) as system:
        yield system


@pytest.fixture
def system(gateway: System) -> System:
    """The running gateway with the manual's company."""
    gateway.apply(gateway.company())  # the accounts of all these tests: new ones would fetch everything again
    return gateway
