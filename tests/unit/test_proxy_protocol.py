"""shared/net/proxy_protocol.py: the header in which a load balancer names the client."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from functools import partial
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.net import listening, proxy_protocol
from shared.net.proxy_protocol import MalformedProxyHeader, is_among, parse_v1, parse_v2
from shared.settings import SettingsError, load

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FOUR = SIGNATURE + b"\x21\x11\0\x0c" + bytes([192, 0, 2, 1, 10, 0, 0, 1, 0, 99, 0, 25])
SIX = (
    SIGNATURE
    + b"\x21\x21\0\x27"
    + ipaddress.ip_address("2001:db8::1").packed * 2
    + b"\0\x01\0\x02"
    + b"\x04\0\0"  # and something else that the proxy adds
)


async def told(octets: bytes, behind: bytes = b"EHLO x\r\n") -> str | None:
    """Read a header that arrives in pieces; the octets behind it have to stay unread."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)

        async def send() -> None:
            for start in range(0, len(octets), 5):
                theirs.sendall(octets[start : start + 5])
                await asyncio.sleep(0)
            theirs.sendall(behind)

        sending = asyncio.create_task(send())
        found = await proxy_protocol.read_header(ours)
        await sending
        assert ours.recv(100) == behind
    return found


@pytest.mark.parametrize(
    ("octets", "address"),
    [
        (b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 25\r\n", "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 25\r\n", "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
        (FOUR, "192.0.2.1"),
        (SIX, "2001:db8::1"),
        (SIGNATURE + b"\x20\0\0\0", None),  # the health check of the proxy
        (SIGNATURE + b"\x21\x31\0\xd8" + bytes(216), None),  # over a Unix socket
    ],
)
async def test_the_clients_address_is_what_the_header_says(octets: bytes, address: str | None) -> None:
    assert await told(octets) == address


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO client.example\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n",
        b"PROXY TCP4 2001:db8::1 10.0.0.1 4711 25\r\n",
        b"PROXY TCP4 nobody 10.0.0.1 4711 25\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 25\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        b"proxy tcp4 192.0.2.1 10.0.0.1 4711 25\r\n",
        SIGNATURE + b"\x11\x11\0\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\0\x0b" + bytes(11),
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(100),
    ],
)
async def test_octets_that_are_no_proxy_header_are_refused(octets: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(octets)
        with pytest.raises(MalformedProxyHeader):
            await asyncio.wait_for(proxy_protocol.read_header(ours), 5)


async def test_the_wait_for_a_proxy_header_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_protocol, "HEADER_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"PROXY TCP4")
        with pytest.raises(TimeoutError):
            await proxy_protocol.read_header(ours)


async def test_connections_that_owe_their_header_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    class Served(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            cast(asyncio.Transport, transport).write(b"hello")

    monkeypatch.setattr(listening, "MAX_PENDING_HEADERS", 3)
    port = socket.create_server(("127.0.0.1", 0))
    port.setblocking(False)
    acceptor = listening.Acceptor("test", load(proxy_from="127.0.0.1").proxies)
    await acceptor.serve(port, lambda peer: cast(listening.AdmittedConnection, Served()))

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*port.getsockname())

    async def first_octets(reader: asyncio.StreamReader) -> bytes:
        return await asyncio.wait_for(reader.read(5), 60)

    # given as many connections without a header as the limit allows
    waiting = [await connect() for _ in range(3)]
    assert await first_octets((await connect())[0]) == b""
    # when one of them sends it, there is room for another
    waiting[0][1].write(b"PROXY UNKNOWN\r\n")
    assert await first_octets(waiting[0][0]) == b"hello"
    reader, writer = await connect()
    writer.write(b"PROXY UNKNOWN\r\n")
    assert await first_octets(reader) == b"hello"
    assert acceptor._pending_headers == 2
    for _, each in (*waiting, (reader, writer)):
        each.close()
    await acceptor.close()


@given(st.binary(max_size=120), st.binary(min_size=4, max_size=4))
def test_any_octets_are_an_address_or_refused(octets: bytes, head: bytes) -> None:
    for parse in (partial(parse_v1, b"PROXY TCP4 " + octets), partial(parse_v2, head, octets)):
        try:
            found = parse()
        except MalformedProxyHeader:
            continue
        assert found is None or ipaddress.ip_address(found)


def test_proxies_are_named_by_address_and_network() -> None:
    proxies = load(proxy_from="10.1.0.0/16, 192.0.2.7,2001:db8::/32").proxies
    assert all(is_among(proxies, peer) for peer in ("10.1.2.3", "192.0.2.7", "::ffff:192.0.2.7", "2001:db8::9"))
    assert not any(is_among(proxies, peer) for peer in ("10.2.0.1", "192.0.2.8", "fe80::1%eth0", "2001:db9::1"))
    assert not is_among(load().proxies, "127.0.0.1")
    with pytest.raises(SettingsError, match="MAILGROUP_PROXY_FROM"):
        load(proxy_from="10.1.0.0/16, everybody")
