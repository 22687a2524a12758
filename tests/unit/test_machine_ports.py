"""deploy/machine/ports.py: the choice of free ports, and the errors about ports in use."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from deploy.machine import ports
from shared.errors import Permanent


@pytest.fixture
def listener() -> socket.socket:
    """Provide a socket that listens on a port of the loopback address."""
    return socket.create_server(("127.0.0.1", 0))


def test_the_same_seed_gives_the_same_ports_while_they_are_free() -> None:
    chosen = ports.choose(5, "one")
    assert ports.choose(5, "one") == chosen
    assert ports.choose(5, "two") != chosen
    assert len(set(chosen)) == 5
    assert max(chosen) < 32_768


def test_a_port_that_is_taken_meanwhile_is_replaced() -> None:
    first, *_ = ports.choose(1, "taken")
    with socket.create_server(("127.0.0.1", first)):
        assert not ports.is_free(first)
        assert first not in ports.choose(3, "taken")
    assert ports.choose(1, "taken", taken=[first]) != [first]


def test_two_processes_never_choose_the_same_port_however_late_they_listen() -> None:
    # given a process that has chosen, and listens nowhere yet
    code = (
        "import sys; from deploy.machine import ports; print(*ports.choose(3, 'shared'), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        theirs = [int(port) for port in other.stdout.readline().split()]
        # when this one chooses by the same seed, then it gets others
        assert len(theirs) == 3 and set(theirs).isdisjoint(ports.choose(3, "shared"))
        other.stdin.close()
    # and once the other one has ended, these
    assert ports.choose(3, "shared") == theirs


def test_no_port_is_chosen_for_two_purposes() -> None:
    one = ports.choose(3, "one purpose", range(31_800, 32_000))
    assert set(one).isdisjoint(ports.choose(3, "another purpose", range(31_800, 32_000)))


def test_ports_in_a_row_leave_out_ports_in_use() -> None:
    first = ports.choose_run(7, "row", ports.OURS)
    with socket.create_server(("127.0.0.1", first + 3)):
        other = ports.choose_run(7, "row", ports.OURS)
    assert first + 3 not in range(other, other + 7)
    assert ports.choose_run(7, "row", ports.OURS, taken=[first + 6]) != first


def test_a_taken_mail_port_is_named_with_its_setting(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with listener, pytest.raises(Permanent, match=f"MAILGROUP_POP3_PORT: {port}: taken"):
        ports.require({"MAILGROUP_POP3_PORT": port}, "127.0.0.1")
    # and once it is free again, nothing is said
    ports.require({"MAILGROUP_POP3_PORT": port}, "127.0.0.1")


def test_one_port_for_two_purposes_is_refused() -> None:
    (port,) = ports.choose(1, "twice")
    with pytest.raises(Permanent, match=f"MAILGROUP_SMTP_PORT: {port}: also given as MAILGROUP_POP3_PORT"):
        ports.require({"MAILGROUP_POP3_PORT": port, "MAILGROUP_SMTP_PORT": port}, "127.0.0.1")


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", "no address"])
def test_an_address_of_another_machine_is_named_not_the_port(address: str) -> None:
    with pytest.raises(Permanent, match=f"^MAILGROUP_BIND: '{address}': ") as caught:
        ports.require({"MAILGROUP_POP3_PORT": 1110}, address)
    assert "taken" not in str(caught.value)
