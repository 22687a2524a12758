"""A RabbitMQ whose disk was full: it runs on without its queues, and is started again by ``up``."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.stand import Disk, disk
from tests.servers import scratch
from tests.system import System, running, until

MOST_SECONDS = 60.0


@pytest.fixture
def small() -> Iterator[tuple[System, Disk]]:
    """A system whose RabbitMQ has a small disk."""
    with scratch() as folder:
        (folder / "data").mkdir(mode=0o711)
        with disk(folder / "data" / "rabbitmq", 512) as small, running(folder) as system:
            system.apply(system.company())
            yield system, small


def arrives(system: System, token: str) -> float:
    """Seconds until a mail for Alex is readable."""
    began = time.monotonic()
    system.provider.put("support@company.com", f'To: "Alex" <support@company.com>\r\nSubject: {token}\r\n\r\n'.encode())
    until(lambda: system.who_has(token, ["alex@local.com"]), 3 * MOST_SECONDS)
    return time.monotonic() - began


def test_mail_flows_within_a_minute_of_room_on_the_brokers_disk(small: tuple[System, Disk]) -> None:
    system, its_disk = small
    arrives(system, "before")
    its_disk.fill()
    # given mail that needs the full disk
    system.provider.put("support@company.com", b'To: "Alex" <support@company.com>\r\nSubject: meanwhile\r\n\r\n')
    time.sleep(5.0)
    its_disk.empty()
    seconds = arrives(system, "after")
    print(f"mail flowed {seconds:.1f} s after there was room")
    assert seconds < MOST_SECONDS
    until(lambda: system.who_has("meanwhile", ["alex@local.com"]))
