"""The connection of a session with a provider's maildrop, by POP3 or IMAP: octets both ways, with time limits."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

from shared.model import Server
from shared.net.dial import (
    ConnectTimeout,
    ProgressCallback,
    check_fingerprint,
    client_context,
    connect_socket,
    describe_tls,
    explain_tls,
    host_port,
    no_progress,
)
from shared.provider.session_errors import ConnectionLost, ProtocolError
from shared.settings import PrivateHosts

CONNECT_SECONDS = 20.0
"""Time limit for the connection, and for the TLS handshake: seconds."""
READ_SECONDS = 60.0
"""Time limit for the next octets of a reply: seconds."""
MIN_RATE = 1024
"""Least rate of a reply: octets a second, on average over READ_SECONDS; a slower server would keep a poll for hours."""
SESSION_SECONDS = 3600.0
"""Time limit for a session: seconds."""
BUFFER_OCTETS = 1024 * 1024
"""Octets in the read buffer at which reading pauses."""
JOINED_OCTETS = 64 * 1024
"""Limit of small pieces that are read together: octets."""


class ReceivedOctets(asyncio.Protocol):
    """Queues the octets as they arrive, and pauses reading when the queue is full."""

    __slots__ = ("_buffered", "_chunks", "_ended", "_paused", "_waiter", "_writable", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport  # set by connection_made, before everything else
        self._chunks: list[bytes] = []  # an empty deque takes 600 octets, in each of hundreds of idle sessions
        self._buffered = 0
        self._paused = False
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None  # set while the transport's buffer is full

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > BUFFER_OCTETS and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Let ``drain`` wait: the transport's buffer is full."""
        if self._writable is None and not self._ended:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Let ``drain`` return: the transport accepts more, or the connection has ended."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    async def drain(self) -> bool:
        """Wait until the transport accepts more octets. Return whether the connection is open."""
        if self._writable is not None:
            await self._writable
        return not self._ended

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def empty(self) -> bool:
        """Whether no octets wait to be read."""
        return not self._chunks

    async def read_chunk(self) -> bytes:
        """Return the next octets; b"" at the end of the connection."""
        while not self._chunks:
            if self._ended:
                return b""
            await self._wait()
        data = self._take()
        self._buffered -= len(data)
        if self._paused and self._buffered <= BUFFER_OCTETS // 2 and not self._ended:
            self._paused = False
            self.transport.resume_reading()
        return data

    def _take(self) -> bytes:
        """Remove the first pieces, small ones together: a server may send a million of one octet each."""
        count, octets = 1, len(self._chunks[0])
        while count < len(self._chunks) and octets + len(self._chunks[count]) <= JOINED_OCTETS:
            octets += len(self._chunks[count])
            count += 1
        data = b"".join(self._chunks[:count])
        del self._chunks[:count]
        return data

    async def is_silent(self, seconds: float) -> bool:
        """Wait for octets or the end of the connection. Return whether neither came for so long."""
        try:
            async with asyncio.timeout(seconds):
                while not self._chunks and not self._ended:
                    await self._wait()
        except TimeoutError:
            return True
        return False

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class SessionStream:
    """The connection of one session, from ``open_stream``; for one task at a time.

    command: what is being answered, for the texts of errors.
    """

    def __init__(self, server: Server, received: ReceivedOctets, read_seconds: float, session_seconds: float) -> None:
        self.server = server
        self.command = "greeting"
        self._received = received
        self._read_seconds = read_seconds
        self._session_seconds = session_seconds
        self._ends = asyncio.get_running_loop().time() + session_seconds
        self._too_slow_at = math.inf  # unless more octets of the reply come before
        self._data = b""
        self._pos = 0

    def write(self, data: bytes) -> None:
        """Send commands."""
        self._received.transport.write(data)

    async def send_octets(self, data: bytes, seconds: float) -> None:
        """Send a part of a mail, and wait until the buffer has room for the next one.

        :param seconds: the longest wait. :raises ConnectionLost, ConnectTimeout: the connection ended, or is too slow.
        """
        self.write(data)
        try:
            async with asyncio.timeout(seconds):
                is_open = await self._received.drain()
        except TimeoutError as error:
            raise ConnectTimeout(f"{self.where}: the server took no octets for {seconds:g} s") from error
        if not is_open:
            raise ConnectionLost(f"{self.where}: the server ended the connection")

    async def start_tls(self) -> str:
        """Make the TLS handshake after the reply that allows it. Return a description of the TLS session.

        :raises TlsError: it fails, or the certificate is not the pinned one.
        """
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._received.transport,
                self._received,
                client_context(self.server),
                server_hostname=self.server.host.strip("[]"),
                ssl_handshake_timeout=CONNECT_SECONDS,
            )
        except OSError as error:  # ssl.SSLError is a subclass
            raise explain_tls(self.server, error) from error
        if secured is None:
            raise explain_tls(self.server, ConnectionResetError())
        self._received.transport = secured
        return _checked_tls(self.server, secured)

    def abort(self) -> None:
        """End the connection at once."""
        self._received.transport.abort()

    @property
    def where(self) -> str:
        """Server and current command, for error texts."""
        return f"{host_port(self.server)}: {self.command}"

    @property
    def past_half_time(self) -> bool:
        """Whether half of the session's time is over."""
        return asyncio.get_running_loop().time() > self._ends - self._session_seconds / 2

    @property
    def has_input(self) -> bool:
        """Whether octets wait to be read."""
        return self._pos < len(self._data) or not self._received.empty

    def too_long(self, limit: int) -> ProtocolError:
        """Return the error for a line of more than ``limit`` octets."""
        return ProtocolError(f"{self.where}: a reply line of more than {limit} octets")

    async def _more(self) -> None:
        loop = asyncio.get_running_loop()
        silent_at = loop.time() + self._read_seconds
        by = min(silent_at, self._too_slow_at, self._ends)
        try:
            async with asyncio.timeout_at(by):
                chunk = await self._received.read_chunk()
        except TimeoutError as error:
            if by == self._ends:
                raise ConnectTimeout(
                    f"{self.where}: the session took longer than {self._session_seconds:g} s"
                ) from error
            if by < silent_at - self._read_seconds / 10:
                raise ConnectTimeout(f"{self.where}: the reply is slower than {MIN_RATE} octets a second") from error
            raise ConnectTimeout(f"{self.where}: no answer within {self._read_seconds:g} s") from error
        if not chunk:
            raise ConnectionLost(f"{self.where}: the server ended the connection")
        self._too_slow_at = min(loop.time() + self._read_seconds, self._too_slow_at + len(chunk) / MIN_RATE)
        self._data = self._data[self._pos :] + chunk if self._pos < len(self._data) else chunk
        self._pos = 0


_Stream = TypeVar("_Stream", bound=SessionStream)


@asynccontextmanager
async def open_stream(
    make: Callable[[Server, ReceivedOctets, float, float], _Stream],
    server: Server,
    allow_private: PrivateHosts,
    connect_seconds: float,
    read_seconds: float,
    session_seconds: float,
    progress: ProgressCallback = no_progress,
) -> AsyncIterator[_Stream]:
    """Connect, with TLS if the account demands it from the first octet. The connection ends with the block.

    :param make: the class of the stream. :param progress: called for the steps resolved, connected and encrypted.
    :raises Temporary: ``Unreachable``, ``ConnectTimeout``, ``TlsError``. :raises Permanent: ``AddressNotAllowed``.
    """
    connection = await connect_socket(server, allow_private, connect_seconds, progress=progress)
    received = ReceivedOctets()
    implicit = server.tls == "implicit"
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: received,
            sock=connection,
            ssl=client_context(server) if implicit else None,
            server_hostname=server.host.strip("[]") if implicit else None,
            ssl_handshake_timeout=connect_seconds if implicit else None,
        )
    except OSError as error:
        connection.close()
        raise explain_tls(server, error) from error
    except BaseException:
        connection.close()
        raise
    stream = make(server, received, read_seconds, session_seconds)
    try:
        if implicit:
            progress("encrypted", _checked_tls(server, transport))
        yield stream
    finally:
        stream.abort()


def _checked_tls(server: Server, transport: asyncio.BaseTransport) -> str:
    """Describe the TLS session. :raises TlsError: the certificate is not the pinned one."""
    secured: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    check_fingerprint(server, secured.getpeercert(True) if secured is not None else None)
    return describe_tls(secured)
