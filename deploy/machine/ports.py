"""Free TCP ports of this machine.

Ports from 32768 on are left alone: the kernel hands those out to outgoing connections, which then collide with a server
that wants to start again.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping

from shared.failures import Permanent

SERVERS, OURS, PROVIDER = range(26_000, 32_000), range(22_000, 26_000), range(20_000, 22_000)
"""Where private servers, services and the stand-in provider get theirs: none takes what another has chosen."""


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def greets(port: int, greeting: bytes) -> bool:
    """Whether a server on the loopback address opens with these octets within two seconds."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(2)
            return connection.recv(len(greeting)) == greeting
    except OSError:
        return False


def choose(count: int, seed: str, among: range = SERVERS, taken: Iterable[int] = ()) -> list[int]:
    """Free ports of the loopback address, mostly the same ones for the same seed; none that is in ``taken``.

    :raises Permanent: there are not that many.
    """
    avoid, found = set(taken), []
    for port in random.Random(seed).sample(among, len(among)):
        if port not in avoid and is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise Permanent(f"no {count} free TCP ports between {among.start} and {among.stop - 1}")


def choose_run(count: int, seed: str, among: range, taken: Iterable[int] = ()) -> int:
    """The first of ``count`` free ports in a row, none of them in ``taken``. :raises Permanent: there are none."""
    avoid = set(taken)
    for port in random.Random(seed).sample(among[:-count], len(among) - count):
        row = range(port, port + count)
        if avoid.isdisjoint(row) and all(is_free(each) for each in row):
            return port
    raise Permanent(f"no {count} free TCP ports in a row between {among.start} and {among.stop - 1}")


def require(wanted: Mapping[str, int], address: str) -> None:
    """Check that each port, named by its setting, is free, and no two are the same.

    :raises Permanent: names the settings and ports that are not, and why.
    """
    problems = []
    seen: dict[int, str] = {}
    for name, port in wanted.items():
        if port in seen:
            problems.append(f"{name}: {port}: also given as {seen[port]}")
        elif not is_free(port, address):
            problems.append(f"{name}: {port}: taken by another program on {address}, or not allowed; choose another")
        seen.setdefault(port, name)
    if problems:
        raise Permanent("; ".join(problems))
