"""Sends one request to a foreign web server (OAuth issuer, webhook) by the rules of ``shared/net/dial.py``.

The host name is resolved once, and only the checked address is used. Certificates are verified, and redirections are
not followed.

SECURITY. User name, path and query of a URL may be a secret (the address of a webhook, a key of an endpoint), so no
error text contains more than scheme and host.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from shared.errors import Permanent
from shared.model import Server
from shared.net import dial
from shared.settings import PrivateHosts

SECONDS = 20.0
"""Time limit for the connection, and for each read: seconds."""
REPLY_OCTETS = 256 * 1024
"""Octets of the response body that are read."""
HTTPS_PORT = 443
_PRINTABLE = re.compile("[!-~]+")


def server_of(url: str) -> Server:
    """Return the server of a URL. :raises Permanent: not an http or https URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # the port is not a number
        parts, port = urlsplit(""), None
    if parts.scheme not in ("https", "http") or not parts.hostname or not _PRINTABLE.fullmatch(url):
        raise Permanent("an https URL is needed, without blanks and letters beyond ASCII")
    tls = parts.scheme == "https"
    return Server(parts.hostname, port or (HTTPS_PORT if tls else http.client.HTTP_PORT), "implicit" if tls else "none")


def place_of(url: str) -> str:
    """Return scheme and host of a URL, as texts may show it."""
    try:
        server = server_of(url)
    except Permanent:
        return "(no URL)"
    return f"{'http' if server.tls == 'none' else 'https'}://{server.host}"


async def post(
    url: str,
    body: str,
    headers: Mapping[str, str],
    allow_private: PrivateHosts,
    ports: frozenset[int] = frozenset({HTTPS_PORT}),
) -> tuple[int, bytes]:
    """Send a POST request; return status and body of the response. Plain http is allowed to private addresses only.

    :param ports: allowed ports of a public host.
    :raises Temporary: no response in time. :raises Permanent: the URL is invalid, or its address is not allowed.
    """
    server = server_of(url)
    parts = urlsplit(url)
    sock = await dial.connect_socket(server, allow_private, SECONDS, ports)
    if server.tls == "none" and not dial.is_private(str(sock.getpeername()[0])):
        sock.close()
        raise Permanent(f"{place_of(url)}: a public host is reached by https only")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with sock.dup() as duplicate:
        try:
            async with asyncio.timeout(2 * SECONDS):
                # in a thread: http.client blocks, and requests are rare
                return await asyncio.to_thread(_post, sock, server, path, body, headers)
        except TimeoutError as error:
            raise dial.ConnectTimeout(f"{dial.host_port(server)}: the response takes too long") from error
        finally:
            with suppress(OSError):  # a server that sends octet by octet would keep the thread busy
                duplicate.shutdown(socket.SHUT_RDWR)


def _post(sock: socket.socket, server: Server, path: str, body: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=SECONDS)
    try:
        sock.settimeout(SECONDS)
        if server.tls == "implicit":
            sock = dial.client_context(server).wrap_socket(sock, server_hostname=server.host)
        connection.sock = sock
        connection.request("POST", path, body.encode(), dict(headers))
        response = connection.getresponse()
        return response.status, response.read(REPLY_OCTETS)
    except ssl.SSLError as error:
        raise dial.explain_tls(server, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise dial.Unreachable(f"{dial.host_port(server)}: no response to the request") from error
    finally:
        connection.close()
        sock.close()
