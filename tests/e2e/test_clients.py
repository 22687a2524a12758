"""Short form of ``make interop``: only the mail clients that are installed with the other packages for tests."""

from __future__ import annotations

import pytest

from tests.interop.imap_programs import IMAP_PROGRAMS
from tests.interop.imap_run import changing
from tests.interop.imap_run import reading as reading_by_imap
from tests.interop.programs import PROGRAMS
from tests.interop.run import reading, sending
from tests.interop.stand import Stand, Tls
from tests.system import System

CLIENTS = {client.name: client for client in PROGRAMS}
BY_IMAP = {program.name: program for program in IMAP_PROGRAMS}


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


def test_curl_and_fetchmail_read_by_imap_and_curl_stores_mails(stand: Stand) -> None:
    ways: list[tuple[str, Tls]] = [("curl", "implicit"), ("curl", "starttls"), ("fetchmail", "none")]
    assert {(name, tls): reading_by_imap(stand, BY_IMAP[name], tls) for name, tls in ways} == dict.fromkeys(ways, "")
    assert changing(stand, BY_IMAP["curl"]) == ""
