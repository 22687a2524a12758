"""Connects to a provider's servers: checks addresses and ports, verifies certificates.

Otherwise a user who enters a host name into an account could make this machine connect to anything in its network
(SSRF). A private address therefore needs the operator's permission, and a public one is reached on mail ports only. The
name is resolved once, and only the checked address is used. What an unknown server says is never shown in full.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

from shared.errors import Permanent, Temporary
from shared.model import Server
from shared.settings import PrivateHosts

MAIL_PORTS = frozenset({110, 995, 143, 993, 25, 465, 587, 2525})
"""The ports on which public hosts may be reached."""

ProgressCallback = Callable[[str, str], None]
"""Called after each completed step with the step's name and its result."""

_CLEAR_TEXT = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"})
"""OpenSSL's reasons for octets that are no TLS record."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Target = tuple[int, tuple[Any, ...]]  # address family, socket address


class Unreachable(Temporary):
    """The name does not resolve, or no server answers."""

    kind: ClassVar[str] = "unreachable"


class ConnectTimeout(Unreachable):
    """No reply within the time limit."""

    kind: ClassVar[str] = "timeout"


class TlsError(Temporary):
    """TLS failed: an untrusted certificate, an old protocol version, or no TLS where the account demands it."""

    kind: ClassVar[str] = "tls"


class CertificateRefused(TlsError):
    """The certificate is not trusted, is for another name, or is not the pinned one.

    certificate: as it was shown (DER); None if the handshake ended before.
    """

    def __init__(self, text: str, certificate: bytes | None = None) -> None:
        super().__init__(text)
        self.certificate = certificate


class CertificateChanged(CertificateRefused):
    """The certificate is not the pinned one."""

    kind: ClassVar[str] = "certificate"


class AddressNotAllowed(Permanent):
    """The operator does not allow this address or port."""

    kind: ClassVar[str] = "policy"


def no_progress(step: str, found: str) -> None:
    """Ignore the step."""


def host_port(server: Server) -> str:
    """Return host and port for texts."""
    return f"[{server.host}]:{server.port}" if ":" in server.host else f"{server.host}:{server.port}"


def is_private(address: str) -> bool:
    """Whether an IP address is not public unicast. An IPv4 address inside an IPv6 one counts as itself."""
    found: _Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            found = inner
    return not found.is_global or found.is_multicast


def why_forbidden(
    server: Server, address: str, allow_private: PrivateHosts, ports: frozenset[int] = MAIL_PORTS
) -> str | None:
    """Return why ``address``, to which the server's name resolved, is not allowed; None if it is allowed.

    :param ports: allowed ports of a public host.
    """
    if is_private(address):
        if allow_private is True or (allow_private and server.host.lower() in allow_private):
            return None
        return (
            f"{host_port(server)}: {address} is a private address, and those are not allowed; "
            "the operator allows it with MAILGROUP_ALLOW_PRIVATE_UPSTREAM=yes, or with the host's name there"
        )
    if server.port not in ports:
        allowed = ", ".join(str(port) for port in sorted(ports))
        return f"{host_port(server)}: port {server.port} is not allowed on a public host; allowed are {allowed}"
    return None


async def connect_socket(
    server: Server,
    allow_private: PrivateHosts,
    seconds: float,
    ports: frozenset[int] = MAIL_PORTS,
    progress: ProgressCallback = no_progress,
) -> socket.socket:
    """Return a connected, non-blocking TCP socket. The name is resolved once; its addresses are tried in order.

    :param ports: allowed ports of a public host. :param progress: called for the steps resolved and connected.
    :raises Unreachable: (Temporary) unknown name, refused, no route; ``ConnectTimeout`` after ``seconds``.
    :raises AddressNotAllowed: (Permanent) no address of the name is allowed.
    """
    try:
        async with asyncio.timeout(seconds) as deadline:
            targets = await _resolve(server)
            verdicts = [why_forbidden(server, str(target[1][0]), allow_private, ports) for target in targets]
            allowed = [target for target, verdict in zip(targets, verdicts, strict=True) if verdict is None]
            if not allowed:
                raise AddressNotAllowed(verdicts[0] or f"{host_port(server)}: no address")
            progress("resolved", ", ".join(dict.fromkeys(str(target[1][0]) for target in allowed)))
            connection = await _connect_first(server, allowed, deadline)
            progress("connected", f"{connection.getpeername()[0]} port {server.port}")
            return connection
    except TimeoutError as error:
        raise ConnectTimeout(
            f"{host_port(server)}: no connection within {seconds:g} s; check host, port, firewall"
        ) from error


async def speaks_tls(server: Server, allow_private: PrivateHosts, seconds: float) -> bool:
    """Whether the server answers a TLS handshake from the first octet, with any certificate and version."""
    try:
        async with asyncio.timeout(seconds):
            connection = await connect_socket(server, allow_private, seconds)
            try:
                transport, _ = await asyncio.get_running_loop().create_connection(
                    asyncio.Protocol, sock=connection, ssl=_context(True), server_hostname=server.host.strip("[]")
                )
            except BaseException:
                connection.close()
                raise
            transport.abort()
            return True
    except ssl.SSLEOFError:
        return False
    except ssl.SSLError as error:  # an alert is an answer, too
        return error.reason is not None and error.reason not in _CLEAR_TEXT
    except (OSError, Temporary, Permanent):
        return False


async def _connect_first(server: Server, targets: list[_Target], deadline: asyncio.Timeout) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for remaining, (family, address) in zip(range(len(targets), 0, -1), targets, strict=True):
        ends = deadline.when()
        share = (ends - loop.time()) / remaining if ends is not None else None
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if remaining == 1:  # the last target gets all the remaining time
                await loop.sock_connect(connection, address)
            else:
                async with asyncio.timeout(share):
                    await loop.sock_connect(connection, address)
        except OSError as error:  # TimeoutError is one
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    reason = _reason(failure) if failure is not None else "no address"
    raise Unreachable(f"{host_port(server)}: {reason}; check host and port") from failure


def _reason(failure: OSError) -> str:
    if isinstance(failure, TimeoutError) and failure.errno is None:
        return "no answer"
    # uvloop and asyncio give different texts for the same error
    return os.strerror(failure.errno).lower() if failure.errno else type(failure).__name__


async def _resolve(server: Server) -> list[_Target]:
    """Return the addresses of the host's name, in the resolver's order.

    Each query has its own thread. A name server that does not answer thus neither blocks a pool that other accounts
    need nor delays the end of the process.
    """
    host = server.host.strip("[]")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[_Target]] = loop.create_future()

    def set_answer(targets: list[_Target], failure: Exception | None) -> None:
        if answer.done():
            return
        if failure is not None:
            answer.set_exception(failure)
        else:
            answer.set_result(targets)

    def ask_resolver() -> None:
        targets: list[_Target] = []
        failure: Exception | None = None
        try:
            targets = [
                (int(entry[0]), entry[4]) for entry in socket.getaddrinfo(host, server.port, type=socket.SOCK_STREAM)
            ]
        except (OSError, UnicodeError) as error:  # UnicodeError: an invalid IDNA label
            failure = error
        try:
            loop.call_soon_threadsafe(set_answer, targets, failure)
        except RuntimeError:  # the event loop has ended meanwhile
            return

    try:
        if _is_literal(host):  # needs no name server
            ask_resolver()
        else:
            threading.Thread(target=ask_resolver, name="resolve", daemon=True).start()
        return await answer
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{host_port(server)}: no such host; check the host's name") from error


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def client_context(server: Server) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or newer that verifies certificate and host name against the system's authorities.

    With a pinned fingerprint the context verifies nothing: call ``check_fingerprint`` after the handshake.
    """
    return _context(server.tls_fingerprint is not None)


@lru_cache(maxsize=2)
def _context(pinned: bool) -> ssl.SSLContext:
    # cached: reading the authorities takes 20 ms
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def describe_tls(secured: ssl.SSLObject | None) -> str:
    """Describe the TLS session in words; its certificate was verified or is the pinned one."""
    if secured is None:
        return "no TLS"
    shown: dict[str, Any] = secured.getpeercert() or {}  # typeshed has one type for all fields
    names = [str(value) for kind, value in shown.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    until = f", valid until {shown['notAfter']}" if "notAfter" in shown else ", which is the pinned one"
    return f"{secured.version()}; the certificate is for {', '.join(names[:3]) or 'this server'}{until}"


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate as 64 hex digits."""
    return hashlib.sha256(der).hexdigest()


def check_fingerprint(server: Server, der: bytes | None) -> None:
    """Check the certificate that the server presented against the pinned one, if there is one.

    :raises CertificateChanged: the certificate is not the pinned one.
    """
    if server.tls_fingerprint is None:
        return
    pinned = server.tls_fingerprint.replace(":", "").replace(" ", "").lower()
    shown = fingerprint(der) if der else "none"
    if not hmac.compare_digest(pinned.encode(), shown.encode()):
        raise CertificateChanged(
            f"{host_port(server)}: the certificate is not the pinned one (its SHA-256 is {shown}); "
            "set tls_fingerprint to that only if the provider confirms it",
            der,
        )


def explain_tls(server: Server, error: Exception) -> TlsError:
    """Describe a failed handshake and what to change; to be raised from ``error``."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CertificateRefused(
            f"{host_port(server)}: the certificate is not trusted ({error.verify_message or 'no reason'}); "
            "correct the host's name, or pin the certificate with tls_fingerprint"
        )
    if isinstance(error, ssl.SSLError) and error.reason in _CLEAR_TEXT:
        return TlsError(
            f"{host_port(server)}: the server does not speak TLS on this port, but clear text; check port and tls: "
            "this port is for STARTTLS or for no encryption, SSL/TLS (implicit) has a port of its own"
        )
    if isinstance(error, ssl.SSLError) and error.reason:
        return TlsError(
            f"{host_port(server)}: TLS failed ({error.reason.replace('_', ' ').lower()}); TLS 1.2 or newer is needed"
        )
    return TlsError(
        f"{host_port(server)}: the connection ended during the TLS handshake; check port and tls; "
        "TLS 1.2 or newer is needed"
    )
