"""One request to a web server of others, by the rules of ``shared/net/dial.py``: an OAuth issuer's, the operator's own.

The name is resolved once and the address that was judged is used; certificates are checked; no redirection is followed.
"""

from __future__ import annotations

import asyncio
import http.client
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
REPLY_OCTETS = 256 * 1024
HTTPS_PORT = 443


def server_of(url: str) -> Server:
    """Where a URL leads. :raises Permanent: it is none of http or https."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is no number
        parts, port = urlsplit(""), None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise Permanent(f"{url[:200]!r}: an https URL is needed")
    tls = parts.scheme == "https"
    return Server(parts.hostname, port or (HTTPS_PORT if tls else http.client.HTTP_PORT), "implicit" if tls else "none")


async def post(
    url: str,
    body: str,
    headers: Mapping[str, str],
    allow_private: PrivateHosts,
    ports: frozenset[int] = frozenset({HTTPS_PORT}),
) -> tuple[int, bytes]:
    """POST something; status and body of the answer. By plain http private addresses only.

    :param ports: that may be reached on a public host.
    :raises Temporary: no answer in time. :raises Permanent: the URL is no good, or its address is not allowed.
    """
    server = server_of(url)
    parts = urlsplit(url)
    sock = await dial.connect_socket(server, allow_private, SECONDS, ports)
    if server.tls == "none" and not dial.is_private(str(sock.getpeername()[0])):
        sock.close()
        raise Permanent(f"{url[:200]!r}: a public host is reached by https only")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with sock.dup() as other:
        try:
            async with asyncio.timeout(2 * SECONDS):
                # in a thread: http.client waits, and this happens seldom
                return await asyncio.to_thread(_post, sock, server, path, body, headers)
        except TimeoutError as error:
            raise dial.ConnectTimeout(f"{dial.host_port(server)}: the answer takes too long") from error
        finally:
            with suppress(OSError):  # a server that drips on and on would keep the thread
                other.shutdown(socket.SHUT_RDWR)


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
        raise dial.Unreachable(f"{dial.host_port(server)}: no answer to the request") from error
    finally:
        connection.close()
        sock.close()
