"""A separate system for the fault tests, whose sweeps republish lost messages after two seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stand import armed
from tests.servers import scratch
from tests.system import System, running


@pytest.fixture(scope="module")
def reached() -> Iterator[Path]:
    """The folder in which the gateway records the steps of steps.py that it reaches."""
    with scratch() as folder:
        yield folder / "reached"


@pytest.fixture(scope="module")
def gateway(reached: Path) -> Iterator[System]:
    """The running gateway."""
    with (
        scratch() as folder,
        armed(reached.with_name("orders"), reached),
        running(folder, sweep_grace_seconds=2) as system,
    ):
        yield system


@pytest.fixture
def system(gateway: System) -> System:
    """The running gateway with the manual's company."""
    gateway.apply(gateway.company())  # the same accounts for all tests: new ones would fetch all mail again
    return gateway
