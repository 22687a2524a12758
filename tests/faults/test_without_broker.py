"""Without RabbitMQ, services that need only the database work and report that they are ready."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

import pytest

from shared.settings import SERVICES
from tests.system import System, until

WITH_BROKER = {"fetcher", "router", "mailbox", "sender"}
MAX_SECONDS = 10.0
"""Limit of a submission without RabbitMQ: seconds; less than the wait for a confirmation of the broker (15 s)."""


def readiness(system: System, name: str) -> str:
    url = system.instance.urls()[f"metrics_{name}"].replace("/metrics", "/readyz")
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode()).strip()
    except urllib.error.HTTPError as error:
        return str(error.read().decode()).strip()


def all_are(system: System, wanted: dict[str, str]) -> bool:
    return all(readiness(system, name) == text for name, text in wanted.items())


@pytest.fixture
def token() -> str:
    return f"without-broker-{time.time_ns()}"


def test_mail_is_accepted_and_read_without_rabbitmq(system: System, token: str) -> None:
    system.submit("alex@local.com", ["jim@local.com"], f"From: alex@local.com\r\nSubject: {token}-0\r\n\r\n".encode())
    until(lambda: system.who_has(f"{token}-0", ["jim@local.com"]))
    # when RabbitMQ is stopped
    system.instance.stop_program("rabbitmq")
    try:
        # then services that need it say so, and the others are ready
        wanted = {name: "waiting for broker" if name in WITH_BROKER else "ok" for name in SERVICES}
        until(lambda: all_are(system, wanted))
        # and mail is accepted and read
        began = time.monotonic()
        system.submit(
            "alex@local.com", ["jim@local.com"], f"From: alex@local.com\r\nSubject: {token}-1\r\n\r\n".encode()
        )
        assert time.monotonic() - began < MAX_SECONDS
        assert system.who_has(f"{token}-0", ["jim@local.com"])
        assert all_are(system, wanted)
    finally:
        system.instance.start_program("rabbitmq")
    # and afterwards it arrives
    until(lambda: system.who_has(f"{token}-1", ["jim@local.com"]))
    until(lambda: all_are(system, dict.fromkeys(SERVICES, "ok")))
