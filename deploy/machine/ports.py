"""Free TCP ports of this machine.

Ports from 32768 on are left alone: the kernel hands those out to outgoing connections, which then collide with a server
that wants to start again.

Between the choice of a port and the server that listens there, somebody else may choose it. So whoever chooses one
holds its name in the abstract namespace of Unix sockets, which frees it when the process has ended, however it did.
"""

from __future__ import annotations

import errno
import random
import socket
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from shared.errors import Permanent

SERVERS, OURS, PROVIDER = range(26_000, 32_000), range(22_000, 26_000), range(20_000, 22_000)
"""Where private servers, services and the stand-in provider get theirs: none takes what another has chosen."""

_HELD = 128
"""So many choices a process holds, the latest ones: by then there are servers behind the earlier ones, or never."""
_held: OrderedDict[int, tuple[str, socket.socket]] = OrderedDict()


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    return _error(port, address) is None


def _error(port: int, address: str) -> OSError | None:
    """Why no server could listen there now. Port 0: on any port of that address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error
    return None


def greets(port: int, greeting: bytes) -> bool:
    """Whether a server on the loopback address opens with these octets within two seconds."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(2)
            return connection.recv(len(greeting)) == greeting
    except OSError:
        return False


def _hold(port: int, seed: str) -> bool:
    """Whether no other process has chosen this port, nor this one for another seed. It is held then."""
    if port in _held:
        return _held[port][0] == seed
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0mailgroup port {port}")
    except OSError:
        name.close()
        return False
    _held[port] = seed, name
    if len(_held) > _HELD:
        _held.popitem(last=False)[1][1].close()
    return True


def choose(count: int, seed: str, among: range = SERVERS, taken: Iterable[int] = ()) -> list[int]:
    """Free ports of the loopback address, mostly the same ones for the same seed; none that is in ``taken``.

    :raises Permanent: there are not that many.
    """
    avoid, found = set(taken), []
    for port in random.Random(seed).sample(among, len(among)):
        if port not in avoid and is_free(port) and _hold(port, seed):
            found.append(port)
            if len(found) == count:
                return found
    raise Permanent(f"no {count} free TCP ports between {among.start} and {among.stop - 1}")


def choose_run(count: int, seed: str, among: range, taken: Iterable[int] = ()) -> int:
    """The first of ``count`` free ports in a row, none of them in ``taken``. :raises Permanent: there are none."""
    avoid = set(taken)
    for port in random.Random(seed).sample(among[:-count], len(among) - count):
        row = range(port, port + count)
        if avoid.isdisjoint(row) and all(is_free(each) and _hold(each, seed) for each in row):
            return port
    raise Permanent(f"no {count} free TCP ports in a row between {among.start} and {among.stop - 1}")


def require(wanted: Mapping[str, int], address: str, named: str = "MAILGROUP_BIND") -> None:
    """Check that each port, named by its setting, is free, and no two are the same.

    :param named: the setting that holds the address.
    :raises Permanent: names the settings and ports that are not, and why.
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
