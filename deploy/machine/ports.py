"""Free TCP ports of this machine.

Ports from 32768 on are not used: the kernel assigns them to outgoing connections, which could then occupy the port of a
server that restarts.

Between the choice of a port and the start of its server another process may choose the same port. A process therefore
reserves the port by a name in the abstract namespace of Unix sockets. The kernel frees this name when the process ends.
"""

from __future__ import annotations

import errno
import random
import socket
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from shared.errors import Permanent

SERVERS, OURS, PROVIDER = range(26_000, 32_000), range(22_000, 26_000), range(20_000, 22_000)
"""Ranges of ports for private servers, for services, and for the stand-in provider; they do not overlap."""

_MAX_RESERVED = 128
"""Limits the ports that a process reserves: the latest ones; by then the servers of the earlier ones listen."""
_reserved: OrderedDict[int, tuple[str, socket.socket]] = OrderedDict()


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Return whether a server could listen there now."""
    return _error(port, address) is None


def _error(port: int, address: str) -> OSError | None:
    """Return why no server could listen there now, None if it could. Port 0: any port of that address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error
    return None


def greets(port: int, greeting: bytes) -> bool:
    """Return whether a server on the loopback address sends these octets first, within two seconds."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(2)
            return connection.recv(len(greeting)) == greeting
    except OSError:
        return False


def _reserve(port: int, seed: str) -> bool:
    """Reserve a port. False if another process has chosen it, or this one for another seed."""
    if port in _reserved:
        return _reserved[port][0] == seed
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0mailgroup port {port}")
    except OSError:
        name.close()
        return False
    _reserved[port] = seed, name
    if len(_reserved) > _MAX_RESERVED:
        _reserved.popitem(last=False)[1][1].close()
    return True


def choose(count: int, seed: str, among: range = SERVERS, taken: Iterable[int] = ()) -> list[int]:
    """Choose free ports of the loopback address, usually the same ones for the same seed; none of ``taken``.

    :raises Permanent: there are not enough free ports.
    """
    avoid, chosen = set(taken), []
    for port in random.Random(seed).sample(among, len(among)):
        if port not in avoid and is_free(port) and _reserve(port, seed):
            chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise Permanent(f"no {count} free TCP ports between {among.start} and {among.stop - 1}")


def choose_run(count: int, seed: str, among: range, taken: Iterable[int] = ()) -> int:
    """Choose ``count`` free ports in a row, none of ``taken``; return the first. :raises Permanent: there are none."""
    avoid = set(taken)
    for port in random.Random(seed).sample(among[:-count], len(among) - count):
        row = range(port, port + count)
        if avoid.isdisjoint(row) and all(is_free(each) and _reserve(each, seed) for each in row):
            return port
    raise Permanent(f"no {count} free TCP ports in a row between {among.start} and {among.stop - 1}")


def require(wanted: Mapping[str, int], address: str, named: str = "MAILGROUP_BIND") -> None:
    """Check that each port is free, and that no two are equal.

    :param wanted: port by the name of its setting. :param named: the setting of the address.
    :raises Permanent: names each setting whose port is not free, and why.
    """
    if (error := _error(0, address)) is not None:
        raise Permanent(
            f"{named}: {address!r}: nothing can listen there ({error.strerror}); give an address of "
            "this machine, 0.0.0.0 or :: for all of them"
        )
    problems = []
    seen: dict[int, str] = {}
    for name, port in wanted.items():
        if port in seen:
            problems.append(f"{name}: {port}: also given as {seen[port]}")
        elif (error := _error(port, address)) is not None and error.errno == errno.EACCES:
            problems.append(
                f"{name}: {port}: not allowed ({error.strerror}); choose one from 1024, or start it as root"
            )
        elif error is not None:
            problems.append(f"{name}: {port}: taken by another program on {address}; choose another")
        seen.setdefault(port, name)
    if problems:
        raise Permanent("; ".join(problems))
