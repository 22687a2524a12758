"""A RabbitMQ whose disk was full: the node runs without its queues, until ``up`` restarts it."""

from __future__ import annotations

import os
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
    """Put a mail for Alex into the maildrop. Return the seconds until it is readable."""
    began = time.monotonic()
    system.provider.put("support@company.com", f'To: "Alex" <support@company.com>\r\nSubject: {token}\r\n\r\n'.encode())
    until(lambda: system.who_has(token, ["alex@local.com"]), 3 * MOST_SECONDS)
    return time.monotonic() - began


@pytest.mark.skipif("FAULTS_LONG" not in os.environ, reason="make faults runs it")
def test_mail_flows_within_a_minute_of_room_on_the_brokers_disk(small: tuple[System, Disk]) -> None:
    system, its_disk = small
    arrives(system, "before")
    its_disk.fill()
    # given mail that needs the full disk
    for number in range(6):
        system.provider.put(
            "support@company.com", f'To: "Alex" <support@company.com>\r\nSubject: meanwhile{number}\r\n\r\n'.encode()
        )
        system.submit(
            "alex@local.com", ["jim@local.com"], f"From: alex@local.com\r\nSubject: {number}\r\n\r\n".encode()
        )
        time.sleep(2.0)
    its_disk.empty()
    seconds = arrives(system, "after")
    print(f"mail flowed {seconds:.1f} s after there was room")
    assert seconds < MOST_SECONDS
    until(lambda: all(system.who_has(f"meanwhile{number}", ["alex@local.com"]) for number in range(6)))
    until(lambda: len(system.mails("jim@local.com")) == 6)
