"""One system for all end-to-end tests of a session; each test makes the accounts it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import scratch
from tests.system import System, running


@pytest.fixture(scope="session")
def gateway() -> Iterator[System]:
    """The running gateway."""
    with scratch() as folder, running(folder) as system:
        yield system


@pytest.fixture
def system(gateway: System) -> System:
    """The running gateway without accounts."""
    gateway.empty()
    return gateway
