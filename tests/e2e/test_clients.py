"""Short form of ``make interop``: only the mail clients that are installed with the other packages for tests."""

from __future__ import annotations

import pytest

from tests.interop.programs import PROGRAMS
from tests.interop.run import reading, sending
from tests.interop.stand import Stand, Tls
from tests.system import System

CLIENTS = {client.name: client for client in PROGRAMS}


@pytest.fixture
def stand(system: System) -> Stand:
    """The running gateway with a reader, a colleague and a customer."""
    return Stand(system)


def test_curl_and_fetchmail_read_mails_octet_by_octet(stand: Stand) -> None:
    ways: list[tuple[str, Tls]] = [("curl", "implicit"), ("curl", "starttls"), ("fetchmail", "none")]
    assert {(name, tls): reading(stand, CLIENTS[name], tls) for name, tls in ways} == dict.fromkeys(ways, "")


def test_curl_and_swaks_send_mails_octet_by_octet(stand: Stand) -> None:
    ways: list[tuple[str, Tls]] = [("curl", "implicit"), ("curl", "starttls"), ("swaks", "none")]
    assert {(name, tls): sending(stand, CLIENTS[name], tls) for name, tls in ways} == dict.fromkeys(ways, "")
