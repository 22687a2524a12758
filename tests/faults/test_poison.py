"""A mail that ends every process which reads it is parked after its last try; other mail is not, even after kills."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.poison import POISONS
from tests.faults.test_losses import CUSTOMER, at_customer, in_mailboxes, mail, offer, settled, submitting
from tests.servers import scratch
from tests.system import System, running, until

ALEX, SUPPORT = "alex@local.com", "support@company.com"
AT_WORK = ("router", "mailbox", "sender")


@pytest.fixture(scope="module")
def poisons() -> Iterator[Path]:
    """The folder of the files that make a text a poison."""
    with scratch() as folder:
        yield folder


@pytest.fixture(scope="module")
def system(poisons: Path) -> Iterator[System]:
    """The running gateway, with the manual's company."""
    with pytest.MonkeyPatch.context() as patch, scratch() as folder:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "inject"))
        patch.setenv(POISONS, str(poisons))
        with running(folder, sweep_grace_seconds=2) as gateway:
            gateway.apply(gateway.company())
            gateway.provider.add_mailbox(CUSTOMER, "secret")
            yield gateway


def test_a_poison_message_is_parked_alone_after_five_crashes_of_its_own(system: System, poisons: Path) -> None:
    # given a poison message for each stage (two of the stages are in one process), among other mail for these stages
    inside = mail("poison-mailbox", f'"Alex" <{SUPPORT}>') + b"deadly to the service mailbox\r\n"
    deadly = {
        "router": "poison-router",
        "mailbox": f"octets={len(inside)}",
        "sender": "poison-sender",
        "relay": "poison-relay",
    }
    for name, text in deadly.items():
        (poisons / name).write_text(text, encoding="ascii")
    expected: dict[str, list[str]] = {}
    for number in range(20):
        if number == 10:
            system.provider.put(SUPPORT, inside)
            system.provider.put(SUPPORT, mail("poison-router", f'"Alex" <{SUPPORT}>'))
        expected[f"fine-in-{number}"] = [ALEX]
        system.provider.put(SUPPORT, mail(f"fine-in-{number}", f'"Alex" <{SUPPORT}>'))
    sent = [f"fine-out-{number}" for number in range(20)]
    for token in [*sent[:10], "poison-sender", "poison-relay", *sent[10:]]:
        system.submit(ALEX, [CUSTOMER], submission(token))
    # then the other mails arrive, once each
    settled(system, expected, "fine-in")
    until(lambda: not set(sent) - set(at_customer(system, "fine-out")))
    # and so does a mail that comes while the poison messages are retried
    offered = time.monotonic()
    later = {"fine-in-later": [ALEX]}
    system.provider.put(SUPPORT, mail("fine-in-later", f'"Alex" <{SUPPORT}>'))
    settled(system, later, "fine-in-later")
    assert time.monotonic() - offered < 60  # a poll and some restarts: a few seconds, but on a busy machine
    # until the poison messages are parked, each with its reason
    until(lambda: len(parked(system)) == len(deadly))
    for each in parked(system):
        assert "The process ended each of the 5 times that it handled this mail in isolation" in each["error"]
    assert {(each["origin"], token_of(each)) for each in parked(system)} == {
        ("router: router", "poison-router"),
        ("mailbox: mailbox", "poison-mailbox"),
        ("sender: sender", "poison-sender"),
        ("sender: relay", "poison-relay"),
    }
    assert any("4 mails need attention" in problem for problem in system.json("status")["problems"])
    assert in_mailboxes(system, "fine-in") == Counter((token, ALEX) for token in expected | later)
    assert_duplicates_are_traced(system, at_customer(system, "fine-out"))
    # when the cause is fixed and the operator requeues them, they arrive
    for name in deadly:
        (poisons / name).unlink()
    system.run("parked", "requeue", *(str(each["id"]) for each in parked(system)))
    settled(system, {"poison-mailbox": [ALEX], "poison-router": [ALEX]}, "poison")
    until(lambda: at_customer(system, "poison") == Counter(["poison-sender", "poison-relay"]))
    assert in_mailboxes(system, "poison") == Counter([("poison-mailbox", ALEX), ("poison-router", ALEX)])
    until(lambda: system.json("status")["ok"])


def test_thirty_kills_from_outside_park_no_mail(system: System) -> None:
    random.seed(815)
    expected: dict[str, list[str]] = {}
    with submitting(system, "kills", 0.02) as accepted:
        for number in range(30):
            expected |= offer(system, 10, f"kills-{number}")
            time.sleep(random.uniform(0.1, 0.8))
            with suppress(KeyError, ProcessLookupError):  # it has ended already
                os.kill(system.instance.pids()[AT_WORK[number % len(AT_WORK)]], signal.SIGKILL)
    wanted = settled(system, expected, "kills")
    assert in_mailboxes(system, "kills") == wanted
    until(lambda: not set(accepted) - set(at_customer(system, "kills")))
    assert_duplicates_are_traced(system, at_customer(system, "kills"))
    # then no mail is parked, and no message is suspected any more
    assert parked(system) == []
    until(lambda: suspected(system) == [])
    until(lambda: system.json("status")["ok"])


def assert_duplicates_are_traced(system: System, relayed: Counter[str]) -> None:
    """Check that the trace of each mail that was relayed twice says that its outcome was uncertain."""
    for token in (token for token, copies in relayed.items() if copies > 1):
        [found] = system.json("trace", f"{token}@customer.example")
        assert "uncertain" in [event["event"] for event in found["events"]], token


def submission(token: str) -> bytes:
    return mail(token, CUSTOMER).replace(f"From: {CUSTOMER}".encode(), f"From: {ALEX}".encode())


def parked(system: System) -> list[dict[str, Any]]:
    return list(system.json("parked", "list"))


def token_of(listed: dict[str, Any]) -> str:
    return str(listed["message_id"]).partition("@")[0]


def suspected(system: System) -> list[tuple[Any, ...]]:
    with psycopg.connect(str(system.settings.database_url), autocommit=True) as connection:
        return connection.execute("select stage, id, crashes from poison").fetchall()
