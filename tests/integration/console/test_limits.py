"""The console's port: deadlines, and limits of connections and octets, as at the ports for mail clients."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import requests

from services.admin.web import connection, listener
from tests import console, servers

LIMIT = 12
"""Connections of one address in these tests."""
HALF = b"GET /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
WHOLE = b"GET /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@contextmanager
def deadlines(seconds: float) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HEAD_SECONDS", "BODY_SECONDS", "UNREAD_SECONDS"):
            patch.setattr(connection, name, seconds)
        yield


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """Deadlines that do not pass, however slow the machine is, until a test shortens them."""
    with pytest.MonkeyPatch.context() as patch, deadlines(3600.0):
        patch.setattr(listener, "_CHECK_SECONDS", 0.2)
        yield


@pytest.fixture(scope="module")
def url(store: str) -> Iterator[str]:
    with console.running(store, max_connections_per_address=LIMIT) as found:
        yield found


def connect(url: str, sent: bytes = b"", source: str = "127.0.0.1", buffer: int = 0) -> socket.socket:
    """Connect from an address and send this. :param buffer: for unread octets; 0: the system's choice."""
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)  # before the connection: it limits the window
    client.settimeout(100)
    client.bind((source, 0))
    client.connect(("127.0.0.1", urlsplit(url).port or 0))
    client.sendall(sent)
    return client


@contextmanager
def crowd(url: str, sent: bytes, count: int = LIMIT) -> Iterator[list[socket.socket]]:
    """Open so many connections from one address, which send this and no more."""
    clients = [connect(url, sent) for _ in range(count)]
    time.sleep(0.2)
    yield clients
    for client in clients:
        client.close()


def rest(client: socket.socket) -> bytes:
    """What comes until the connection ends."""
    received = b""
    try:
        while octets := client.recv(65_536):
            received += octets
    except ConnectionResetError:
        pass
    return received


def status(url: str, source: str = "127.0.0.1") -> bytes:
    """The status line of a whole request from this address; empty if the connection was closed."""
    with connect(url, WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), source) as client:
        return rest(client).partition(b"\r\n")[0]


def until_free(url: str) -> None:
    """Ask until a page is answered."""
    began = time.monotonic()
    while b"200" not in status(url):
        assert time.monotonic() - began < 100
        time.sleep(0.1)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        HALF,
        b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname=",
        WHOLE + HALF,  # the second request of a connection
    ],
    ids=["nothing", "half a header", "half a body", "half of the second"],
)
def test_half_sent_requests_end_in_time_and_hold_up_no_other_address(url: str, sent: bytes) -> None:
    until_free(url)
    with crowd(url, sent) as clients:
        # when one address has all the connections that it may have, it gets no more, and others do
        assert status(url) == b"HTTP/1.1 503 Service Unavailable"
        assert b"200" in status(url, "127.0.0.2")
        # then all end in time
        with deadlines(1.5):
            until_free(url)
            for client in clients:
                rest(client)


def test_a_header_that_comes_octet_by_octet_gets_no_more_time(url: str) -> None:
    until_free(url)
    began = time.monotonic()
    with deadlines(1.5), connect(url, HALF) as client, pytest.raises(ConnectionError):
        while time.monotonic() - began < 100:
            client.send(b"x")
            time.sleep(0.1)
    assert time.monotonic() - began > 1


def test_a_client_that_reads_nothing_is_disconnected_and_holds_up_no_other(url: str) -> None:
    until_free(url)
    page = b"GET /static/style.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    size = len(requests.get(f"{url}/static/style.css", timeout=100).content)
    # given all connections of one address, and on one of them requests for far more than its buffers hold
    requested = 64 * 1024 * 1024 // size
    with crowd(url, b"", LIMIT - 1) as others, connect(url, page * requested, buffer=4096) as client:
        # when that client reads nothing, its address gets no more connections, and other addresses are served
        assert status(url) == b"HTTP/1.1 503 Service Unavailable"
        assert b"200" in status(url, "127.0.0.2")
        # then the deadline for reading closes this connection, before all is sent
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection, "UNREAD_SECONDS", 1.5)
            until_free(url)
        received = rest(client)
        assert received.startswith(b"HTTP/1.1 200 OK") and len(received) < requested * size
        # and no other connection
        for other in others:
            other.sendall(WHOLE)
            assert other.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"


def test_all_addresses_together_have_a_limit(store: str) -> None:
    with console.running(store, max_connections=5) as url:
        # when all connections have sent half a header, a new one replaces the oldest, once those before are gone
        with crowd(url, HALF, 5) as clients:
            while not (gone := select.select(clients, [], [], 0)[0]):
                assert b"200" in status(url, "127.0.0.2")
            assert gone == clients[:1]
            assert rest(clients[0]) == b""
            clients[1].sendall(b"x\r\nConnection: close\r\n\r\n")
            assert b"200" in rest(clients[1])
        # but a request that is under way is not ended for another one
        post = b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nname"
        with crowd(url, post, 5) as clients:
            for client in clients:  # the console has the whole header: it answers, and waits for the rest of the body
                assert client.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 303"  # to the page that refuses
                assert b"location: /sign-in?shown=" in client.recv(4096)
            assert b"503" in status(url, "127.0.0.2")
            with deadlines(1.5):
                until_free(url)


def test_a_connection_counts_before_its_tls_handshake(databases: servers.Databases) -> None:
    # given connections that begin no handshake
    with (
        databases.fresh() as database,
        console.running(database, max_connections_per_address=LIMIT, admin_tls="yes") as url,
        crowd(url, b"") as clients,
    ):
        # then the next one of this address is closed, and another address gets its page
        assert rest(connect(url)) == b""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(connect(url, source="127.0.0.2")) as other:
            other.sendall(WHOLE)
            assert other.recv(1000).startswith(b"HTTP/1.1 200")
        # and they end in time
        for client in clients:
            assert rest(client) == b""


def test_a_header_and_a_body_have_a_limit(url: str) -> None:
    until_free(url)
    assert requests.get(f"{url}/sign-in", headers={"X-Long": "x" * 40_000}, timeout=100).status_code == 431
    long = {"name": "x" * 300_000}
    assert requests.post(f"{url}/sign-in", long, timeout=100).status_code == 413
    # a body without a length ends at the limit
    with connect(url) as client:
        client.sendall(
            b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
        )
        try:
            for _ in range(40):
                client.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        except OSError:
            return
        assert client.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 400"
