"""Reads the PROXY protocol, versions 1 and 2, by which a load balancer reports the client's address.

The header precedes everything else, TLS too. Connections from the addresses in MAILGROUP_PROXY_FROM must begin with it.
From any other address it is not read, because a client could choose its own address with it.
https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

HEADER_SECONDS = 10.0
"""Time limit for the header: seconds."""

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V1_OCTETS = 107
_V2_OCTETS = 2048
"""Longest body of a version 2 header: octets; the specification demands at least 216."""
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


class MalformedProxyHeader(Exception):
    """The octets are not a header of the PROXY protocol."""


def is_among(proxies: Networks, peer: str) -> bool:
    """Whether a connection from this address begins with a header."""
    if not proxies:
        return False
    address = ipaddress.ip_address(peer.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in proxies)


async def read_header(client: socket.socket) -> str | None:
    """Read the header from a connection that was just accepted, and nothing after it.

    :return: the client's IP address; None if the connection is the proxy's own, or the proxy does not know the address.
    :raises MalformedProxyHeader: no valid header. :raises OSError: time limit passed, or connection closed.
    """
    async with asyncio.timeout(HEADER_SECONDS):
        start = await _exactly(client, len(_SIGNATURE))
        if start == _SIGNATURE:
            head = await _exactly(client, 4)
            octets = int.from_bytes(head[2:])
            if octets > _V2_OCTETS:
                raise MalformedProxyHeader(f"a header of {octets} octets")
            return parse_v2(head, await _exactly(client, octets))
        line = start
        while line.startswith(b"PROXY ") and not line.endswith(b"\n") and len(line) < _V1_OCTETS:
            line += await _exactly(client, 1)
        return parse_v1(line)


async def _exactly(client: socket.socket, octets: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < octets:
        more = await loop.sock_recv(client, octets - len(data))
        if not more:
            raise ConnectionResetError("the connection ended within the header")
        data += more
    return data


def parse_v1(line: bytes) -> str | None:
    """Return the client's address in a line with its CRLF (section 2.1). Pure.

    :raises MalformedProxyHeader: no valid header.
    """
    words = line.removesuffix(b"\r\n").split(b" ")
    if line.startswith(b"PROXY UNKNOWN") and line.endswith(b"\r\n"):
        return None
    if not line.endswith(b"\r\n") or len(words) != 6 or words[:2] not in ([b"PROXY", b"TCP4"], [b"PROXY", b"TCP6"]):
        raise MalformedProxyHeader(f"not a header of the PROXY protocol: {line[:40]!r}")
    try:
        address = ipaddress.ip_address(words[2].decode("ascii"))
    except ValueError as error:
        raise MalformedProxyHeader(f"not an address: {words[2]!r}") from error
    if address.version != (4 if words[1] == b"TCP4" else 6):
        raise MalformedProxyHeader(f"an address of another family: {words[2]!r}")
    return str(address)


def parse_v2(head: bytes, rest: bytes) -> str | None:
    """Return the client's address (section 2.2). Pure.

    :param head: the four octets after the signature. :param rest: the octets that they announce.
    :raises MalformedProxyHeader: no valid header.
    """
    if head[0] not in (_LOCAL, _PROXY):
        raise MalformedProxyHeader(f"version and command {head[0]:#x}")
    size = {_TCP4: 4, _TCP6: 16}.get(head[1])
    if head[0] == _LOCAL or size is None:
        return None
    if len(rest) < 2 * size + 4:
        raise MalformedProxyHeader(f"{len(rest)} octets are too few for the addresses")
    return str(ipaddress.ip_address(rest[:size]))
