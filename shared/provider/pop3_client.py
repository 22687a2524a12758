"""A POP3 client engine (RFC 1939, RFC 2449 CAPA, RFC 2595 STLS) for maildrops of any size and servers of any quality.

Replies are read in pieces as they come off the network and never line by line: a mail of 50 MB is held once, and ten
thousand small ones a second pass through. Where the server announces PIPELINING, commands are sent ahead in a window
bounded by number and octets. Nothing the server does makes the client wait for ever or keep more than the limit given.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

from shared.model import Server
from shared.net.dial import (
    ConnectTimeout,
    ProgressCallback,
    TlsError,
    check_fingerprint,
    client_context,
    connect_socket,
    describe_tls,
    explain_tls,
    host_port,
    no_progress,
)
from shared.provider.credentials import Credential
from shared.provider.oauth import xoauth2
from shared.provider.pop3_errors import LoginRefused, Pop3ConnectionLost, ProtocolError, ReplyTooLong, ServerBusy
from shared.provider.pop3_replies import (
    Body,
    Capabilities,
    Listing,
    ListReply,
    is_temporary,
    parse_capa,
    parse_list,
    parse_stat,
    response_code,
    trim,
)
from shared.settings import PrivateHosts

CONNECT_SECONDS = 20.0
READ_SECONDS = 60.0
SESSION_SECONDS = 3600.0

WINDOW_COMMANDS = 200
WINDOW_OCTETS = 4 * 1024 * 1024
LINE_OCTETS = 4096
"""The longest reply line taken; RFC 2449 section 4 allows 512 octets."""
LIST_OCTETS = 64 * 1024 * 1024

STEP_OCTETS = 1024 * 1024
"""A mail that is longer asks for room, and again each time it has grown by so much."""

_BUFFER_HIGH = 1024 * 1024
_TOGETHER = ("gmail.com", "googlemail.com")


ReserveMemory = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RetrRequest:
    """A mail to be read. octets: what LIST says, which is believed for the window's size only."""

    number: int
    octets: int


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What became of one RETR or TOP.

    body: CRLF line ends, dot-stuffing undone; None if refused or too large. octets: its length, counted also if it was
    too large. refusal: the trimmed reply of a server that said -ERR. head: how a mail begins that was too large.
    """

    number: int
    body: bytearray | None
    octets: int
    sha256: bytes
    refusal: str | None
    head: bytes = b""


class _Pop3Stream(asyncio.Protocol):
    """Bytes as they arrive, in a queue that stops the sender when it is full."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport  # from connection_made on, which comes before everything else
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > _BUFFER_HIGH and not self._paused:
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

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def empty(self) -> bool:
        """Nothing waits to be read."""
        return not self._chunks

    async def chunk(self) -> bytes:
        """The next bytes; none at the end of the connection."""
        while not self._chunks:
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks.popleft()
        self._buffered -= len(data)
        if self._paused and self._buffered <= _BUFFER_HIGH // 2 and not self._ended:
            self._paused = False
            self.transport.resume_reading()
        return data


class Pop3Client:
    """One session. Made by ``open_session``; not to be used by two tasks at once.

    reading: the number of the mail whose reply is being read, so that a session that ends there can be told of it.
    """

    def __init__(self, server: Server, wire: _Pop3Stream, read_seconds: float, session_seconds: float) -> None:
        self.server = server
        self.capabilities = Capabilities()
        self.reading: int | None = None
        self._wire = wire
        self._read_seconds = read_seconds
        self._session_seconds = session_seconds
        self._ends = asyncio.get_running_loop().time() + session_seconds
        self._data = b""
        self._pos = 0
        self._current_command = "greeting"

    # ------------------------------------------------------------------------------------------ the session's steps

    async def greet(self, progress: ProgressCallback = no_progress) -> None:
        """Read the greeting, learn the capabilities, start TLS if the account wants STLS.

        :param told: of the steps encrypted (after STLS) and answered.

        :raises Busy: the server refuses connections now. :raises Untrusted: no TLS to be had.
        """
        ok, line = await self._reply()
        if not ok:
            raise ServerBusy(f"{host_port(self.server)}: the server does not serve now: {trim(line)}")
        self.capabilities = await self._capa()
        if self.server.tls == "starttls":
            await self._start_tls()
            progress("encrypted", describe_tls(self._wire.transport.get_extra_info("ssl_object")))
            # RFC 2595 section 4: what was said before TLS is forgotten
            self.capabilities = await self._capa()
        progress(
            "answered", self.capabilities.shown() if self.capabilities.answered else "it tells no capabilities (CAPA)"
        )

    async def login(self, credential: Credential) -> None:
        """USER and PASS, or AUTH XOAUTH2.

        :raises Refused: wrong name or password. :raises Busy: [IN-USE], [LOGIN-DELAY], [SYS/TEMP].
        """
        if any(c in text for text in (credential.login, credential.secret) for c in "\r\n\0"):
            raise LoginRefused(
                f"{host_port(self.server)}: name or password hold a line break or NUL; set them again", None
            )
        if credential.token:
            await self._authenticate(xoauth2(credential.login, credential.secret))
        else:
            await self._user_and_pass(credential.login, credential.secret)
        asked = self.capabilities
        if asked.answered and (not asked.pipelining or asked.login_delay_by_user):
            told = await self._capa()
            self.capabilities = told if told.answered else asked

    async def _user_and_pass(self, user: str, password: str) -> None:
        for verb, argument in (("USER", user), ("PASS", password)):
            self._current_command = verb
            self._write(f"{verb} {argument}\r\n".encode())
            ok, line = await self._reply()
            if not ok:
                raise self._login_failure(trim(line))

    async def _authenticate(self, response: bytes) -> None:
        """RFC 5034. Microsoft takes the response on a line of its own only, Google with the command only.

        Whoever refuses the bare command is given the response with it: nobody has seen a token before that.
        """
        self._current_command = "AUTH"
        together = self.server.host.lower().endswith(_TOGETHER)
        self._write(b"AUTH XOAUTH2 " + response + b"\r\n" if together else b"AUTH XOAUTH2\r\n")
        answer, line = await self._answer()
        if not together and answer != b"+OK":
            self._write(response + b"\r\n" if answer == b"+" else b"AUTH XOAUTH2 " + response + b"\r\n")
            answer, line = await self._answer()
        if answer == b"+":  # what is wrong, in JSON: to be acknowledged
            self._write(b"\r\n")
            answer, line = await self._answer()
        if answer != b"+OK":
            raise self._login_failure(trim(line), "AUTH")

    def _login_failure(self, reply: str, otherwise: str | None = None) -> Exception:
        code = response_code(reply)
        if is_temporary(reply):
            return ServerBusy(f"{host_port(self.server)}: the mailbox cannot be opened now: {reply}", code)
        code = code or otherwise
        return LoginRefused(
            f"{host_port(self.server)}: the login was refused; check login name and password: {reply}", code
        )

    async def stat(self) -> tuple[int, int]:
        """How many mails, and their octets."""
        self._write(b"STAT\r\n")
        return await self._stat_reply()

    async def fetch_list(self) -> Listing:
        """STAT and UIDL, as ``list_reply``."""
        return (await self.fetch_list_reply()).parse()

    async def fetch_list_reply(self) -> ListReply:
        """STAT and UIDL, unread; LIST instead from a server that knows no UIDL.

        :raises Busy, Broken: it lists nothing now.
        """
        if self.capabilities.pipelining:
            self._write(b"STAT\r\nUIDL\r\n")
        else:
            self._write(b"STAT\r\n")
        count, octets = await self._stat_reply()
        if not self.capabilities.pipelining:
            self._write(b"UIDL\r\n")
        self._current_command = "UIDL"
        ok, line = await self._reply()
        by_place = not ok
        if by_place:
            self._check_refused_list(line)
            self._current_command = "LIST"
            self._write(b"LIST\r\n")
            ok, line = await self._reply()
        if not ok:
            raise ProtocolError(f"{host_port(self.server)}: the server lists no mails: {trim(line)}")
        text = await self._text()
        digest = hashlib.sha256(b"%d %d %d " % (by_place, count, octets) + text.sha256).digest()
        return ListReply(count, text.kept, digest, by_place)

    def _check_refused_list(self, line: bytes) -> None:
        """:raises Busy, Broken: the server knows UIDL, and refuses it now."""
        reply = trim(line)
        if is_temporary(reply):
            raise ServerBusy(f"{host_port(self.server)}: the server lists no mails now: {reply}", response_code(reply))
        if self.capabilities.uidl:
            raise ProtocolError(
                f"{host_port(self.server)}: the server announces unique ids (UIDL) and does not list them: {reply}"
            )

    async def fetch_sizes(self) -> dict[int, int]:
        """LIST: octets by number, as far as the server tells."""
        self._current_command = "LIST"
        self._write(b"LIST\r\n")
        ok, _ = await self._reply()
        return parse_list(await self._lines()) if ok else {}

    async def retrieve(
        self,
        requests: Sequence[RetrRequest],
        max_octets: int,
        stop: Callable[[], bool] = lambda: False,
        reserve_memory: ReserveMemory | None = None,
    ) -> AsyncIterator[Retrieved]:
        """RETR each, in order. limit: octets of the largest mail kept. Once ``stop()``, no further one is asked for.

        :param room: awaited with octets before a large mail grows by these.
        """
        commands = [(mail.number, mail.octets, b"RETR %d\r\n" % mail.number) for mail in requests]
        async for retrieved in self._fetch("RETR", commands, max_octets, stop, reserve_memory):
            yield retrieved

    async def fetch_headers(self, numbers: Sequence[int], limit: int) -> AsyncIterator[Retrieved]:
        """TOP n 0: the header of each, in order; a refusal where the server knows no TOP."""
        requests = [(number, 8192, b"TOP %d 0\r\n" % number) for number in numbers]
        async for retrieved in self._fetch("TOP", requests, limit, lambda: False, None):
            yield retrieved

    async def delete(self, numbers: Sequence[int]) -> list[int]:
        """DELE each; it takes effect with QUIT. Returns those that the server refused."""
        self._current_command = "DELE"
        window = WINDOW_COMMANDS if self.capabilities.pipelining else 1
        refused = []
        for start in range(0, len(numbers), window):
            group = numbers[start : start + window]
            self._write(b"".join(b"DELE %d\r\n" % number for number in group))
            for number in group:
                ok, _ = await self._reply()
                if not ok:
                    refused.append(number)
        return refused

    async def quit(self) -> bool:
        """QUIT. Returns whether the server says that everything deleted is gone."""
        self._current_command = "QUIT"
        self._write(b"QUIT\r\n")
        ok, _ = await self._reply()
        return ok

    @property
    def _where(self) -> str:
        """The server and the command that waits for its reply, for error texts."""
        return f"{host_port(self.server)}: {self._current_command}"

    @property
    def past_half_time(self) -> bool:
        """Whether half of the session's time is over, so that it is better to begin another than to be cut."""
        return asyncio.get_running_loop().time() > self._ends - self._session_seconds / 2

    def disable_pipelining(self) -> None:
        """From now on send each command only after the reply to the one before."""
        self.capabilities = replace(self.capabilities, pipelining=False)

    def abort(self) -> None:
        """End the connection at once."""
        self._wire.transport.abort()

    # ------------------------------------------------------------------------------------------ replies

    async def _fetch(
        self,
        verb: str,
        requests: Sequence[tuple[int, int, bytes]],
        limit: int,
        stop: Callable[[], bool],
        room: ReserveMemory | None,
    ) -> AsyncIterator[Retrieved]:
        window = WINDOW_COMMANDS if self.capabilities.pipelining else 1
        flying: deque[tuple[int, int]] = deque()
        octets = 0
        position = 0
        while True:
            if len(flying) <= window // 2 and not stop():
                lines = []
                while position < len(requests) and len(flying) < window:
                    number, size, line = requests[position]
                    if flying and octets + size > WINDOW_OCTETS:
                        break
                    lines.append(line)
                    flying.append((number, size))
                    octets += size
                    position += 1
                if lines:
                    self._write(b"".join(lines))
            if not flying:
                return
            number, size = flying.popleft()
            octets -= size
            self._current_command = f"{verb} of mail {number}"
            self.reading = number
            ok, line = await self._reply()
            if ok:
                body = await self._body(limit, room)
                kept = None if body.too_large else body.kept
                retrieved = Retrieved(number, kept, body.octets, body.sha256, None, body.head)
                del body, kept  # or a mail would be held while the next one is read
            else:
                retrieved = Retrieved(number, None, 0, b"", trim(line))
            self.reading = None
            yield retrieved
            del retrieved

    async def _body(self, limit: int, room: ReserveMemory | None = None) -> Body:
        """The text of a multi-line reply whose status line has just been read."""
        if self._data[self._pos - 2 : self._pos] == b"\r\n":
            self._pos -= 2
        else:  # a status line that ended with a lone LF
            self._data, self._pos = b"\r\n" + self._data[self._pos :], 0
        body = Body(limit)
        allowed = STEP_OCTETS
        while True:
            ended, self._pos = body.feed(self._data, self._pos)
            if ended:
                return body
            if room is not None and len(body.kept) > allowed:
                await room(STEP_OCTETS)
                allowed += STEP_OCTETS
            if body.octets > 2 * limit + _BUFFER_HIGH:
                raise ReplyTooLong(
                    f"{self._where}: the reply has no end; given up after {body.octets} octets",
                    body.octets,
                )
            await self._more()

    async def _lines(self) -> list[bytes]:
        return bytes((await self._text()).kept).splitlines()

    async def _text(self) -> Body:
        body = await self._body(LIST_OCTETS)
        if body.too_large:
            raise ProtocolError(f"{self._where}: a list of more than {LIST_OCTETS} octets")
        return body

    async def _reply(self) -> tuple[bool, bytes]:
        """A status line: whether it is +OK, and what follows that."""
        answer, text = await self._answer()
        if answer == b"+":
            raise self._no_answer()
        return answer == b"+OK", text

    async def _answer(self) -> tuple[bytes, bytes]:
        """A line in answer to a command: +OK, -ERR or + (RFC 5034: the server wants a response), and what follows."""
        while (end := self._data.find(b"\n", self._pos)) < 0:
            if len(self._data) - self._pos > LINE_OCTETS:
                raise self._too_long()
            await self._more()
        if end - self._pos > LINE_OCTETS:
            raise self._too_long()
        line = self._data[self._pos : end].rstrip()
        self._pos = end + 1
        indicator, _, text = line.partition(b" ")
        if indicator.upper() not in (b"+OK", b"-ERR", b"+"):
            raise self._no_answer()
        return indicator.upper(), text

    def _no_answer(self) -> ProtocolError:
        """What came is not shown: it may be anything that this machine can reach."""
        return ProtocolError(f"{self._where}: that is no answer of a POP3 server; check host, port and tls")

    def _too_long(self) -> ProtocolError:
        return ProtocolError(f"{self._where}: a reply line of more than {LINE_OCTETS} octets")

    async def _stat_reply(self) -> tuple[int, int]:
        self._current_command = "STAT"
        ok, line = await self._reply()
        found = parse_stat(line) if ok else None
        if found is not None:
            return found
        raise ProtocolError(f"{host_port(self.server)}: STAT: no count of mails in the reply: {trim(line)}")

    async def _capa(self) -> Capabilities:
        self._current_command = "CAPA"
        self._write(b"CAPA\r\n")
        ok, _ = await self._reply()
        return parse_capa(await self._lines()) if ok else Capabilities()

    async def _start_tls(self) -> None:
        self._current_command = "STLS"
        if self.capabilities.answered and not self.capabilities.stls:
            raise TlsError(
                f"{host_port(self.server)}: the server offers no STARTTLS, and nothing is sent in clear text; "
                "set tls to implicit (port 995), or to none if you accept that"
            )
        self._write(b"STLS\r\n")
        ok, line = await self._reply()
        if not ok:
            raise TlsError(
                f"{host_port(self.server)}: the server refuses STARTTLS, and nothing is sent in clear text; "
                f"set tls to implicit (port 995), or to none if you accept that: {trim(line)}"
            )
        if self._pos < len(self._data) or not self._wire.empty:
            raise TlsError(
                f"{host_port(self.server)}: the server sent octets between STARTTLS and TLS: somebody may be in between"
            )
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._wire.transport,
                self._wire,
                client_context(self.server),
                server_hostname=self.server.host.strip("[]"),
                ssl_handshake_timeout=CONNECT_SECONDS,
            )
        except OSError as error:  # ssl.SSLError is one
            raise explain_tls(self.server, error) from error
        if secured is None:
            raise explain_tls(self.server, ConnectionResetError())
        self._wire.transport = secured
        _check_certificate(self.server, secured)

    def _write(self, data: bytes) -> None:
        self._wire.transport.write(data)

    async def _more(self) -> None:
        loop = asyncio.get_running_loop()
        by = min(loop.time() + self._read_seconds, self._ends)
        try:
            async with asyncio.timeout_at(by):
                chunk = await self._wire.chunk()
        except TimeoutError as error:
            if by == self._ends:
                raise ConnectTimeout(
                    f"{self._where}: the session took longer than {self._session_seconds:g} s"
                ) from error
            raise ConnectTimeout(f"{self._where}: no answer within {self._read_seconds:g} s") from error
        if not chunk:
            raise Pop3ConnectionLost(f"{self._where}: the server ended the connection")
        self._data = self._data[self._pos :] + chunk if self._pos < len(self._data) else chunk
        self._pos = 0


@asynccontextmanager
async def open_session(
    server: Server,
    allow_private: PrivateHosts,
    *,
    connect_seconds: float = CONNECT_SECONDS,
    read_seconds: float = READ_SECONDS,
    session_seconds: float = SESSION_SECONDS,
    progress: ProgressCallback = no_progress,
) -> AsyncIterator[Pop3Client]:
    """A session after its greeting, and after TLS where the account wants it; ended with the block.

    :param told: of the steps resolved, connected, encrypted and answered.

    Everything that it raises names host, port and what to change, and has a ``kind``.

    :raises Temporary: ``Unreachable``, ``Late``, ``Untrusted``, ``Busy``, ``Broken``, ``Cut``.
    :raises Permanent: ``Forbidden``, ``Refused``.
    """
    connection = await connect_socket(server, allow_private, connect_seconds, progress=progress)
    wire = _Pop3Stream()
    implicit = server.tls == "implicit"
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: wire,
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
    client = Pop3Client(server, wire, read_seconds, session_seconds)
    try:
        if implicit:
            _check_certificate(server, transport)
            progress("encrypted", describe_tls(transport.get_extra_info("ssl_object")))
        await client.greet(progress)
        yield client
    finally:
        client.abort()


def _check_certificate(server: Server, transport: asyncio.BaseTransport) -> None:
    secured: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    check_fingerprint(server, secured.getpeercert(True) if secured is not None else None)
