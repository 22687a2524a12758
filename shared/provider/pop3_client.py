"""A POP3 client (RFC 1939, RFC 2449 CAPA, RFC 2595 STLS) for maildrops of any size and servers of any quality.

Replies are read in pieces as they arrive, never line by line: a mail of 50 MB is in memory once, and ten thousand small
mails a second pass through. If the server announces PIPELINING, commands are sent ahead, in a window limited by number
and octets. Whatever the server does, every wait has a time limit and every reply a size limit.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import ssl
import time
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
from shared.provider.pop3_errors import (
    LoginRefused,
    OutOfStep,
    Pop3ConnectionLost,
    ProtocolError,
    ReplyTooLong,
    ServerBusy,
)
from shared.provider.pop3_fence import Fence
from shared.provider.pop3_mechanisms import (
    apop_digest,
    choose_mechanisms,
    cram_md5_response,
    plain_response,
    timestamp_of,
)
from shared.provider.pop3_replies import (
    HEAD_OCTETS,
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
"""Time limit for the connection, and for the TLS handshake: seconds."""
READ_SECONDS = 60.0
"""Time limit for the next octets of a reply: seconds."""
MIN_RATE = 1024
"""Least rate of a reply: octets a second, on average over READ_SECONDS; a slower server would keep a poll for hours."""
SESSION_SECONDS = 3600.0
"""Time limit for a session: seconds."""

WINDOW_COMMANDS = 200
"""Pipelined commands without a reply."""
WINDOW_OCTETS = 4 * 1024 * 1024
"""Octets of the mails that pipelined commands request."""
STEP_OCTETS = 1024 * 1024
"""Step in which a large mail reserves memory: octets."""
BATCH_MAILS = 200
"""Mails behind which one fence follows where commands are not sent ahead: it costs a round trip."""
BATCH_OCTETS = STEP_OCTETS
"""Octets of mails behind which one fence follows: they are in memory until then. Only the last mail reserves more."""
BATCH_SECONDS = 5.0
"""Longest time between two fences: seconds; a connection that is lost costs the mails since the last one."""
LINE_OCTETS = 4096
"""Longest reply line: octets; RFC 2449 section 4 allows 512."""
LIST_OCTETS = 64 * 1024 * 1024
"""Longest list (CAPA, LIST, UIDL): octets."""

_BUFFER_HIGH = 1024 * 1024
"""Octets in the read buffer at which reading pauses."""
_INITIAL_RESPONSE_HOSTS = ("gmail.com", "googlemail.com")
"""Domains of servers that accept the XOAUTH2 response only with the command."""

ReserveMemory = Callable[[int], Awaitable[None]]
"""Called with the number of octets before a large mail grows by them."""


@dataclass(frozen=True, slots=True)
class RetrRequest:
    """A mail to retrieve. octets: its size from LIST, trusted for the window only."""

    number: int
    octets: int


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The result of one RETR or TOP."""

    number: int
    body: bytearray | None  # CRLF line ends, dot-stuffing undone; None if refused or too large
    octets: int  # length of the body, also if it was too large
    sha256: bytes
    refusal: str | None  # the trimmed -ERR reply
    head: bytes = b""  # the first octets of a mail that was too large


class _Pop3Stream(asyncio.Protocol):
    """Queues the octets as they arrive, and pauses reading when the queue is full."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport  # set by connection_made, before everything else
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses

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
        """Whether no octets wait to be read."""
        return not self._chunks

    async def read_chunk(self) -> bytes:
        """Return the next octets; b"" at the end of the connection."""
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


class _Window:
    """The RETR or TOP commands of a transfer: how many may be sent before their replies."""

    def __init__(self, verb: str, requests: Sequence[RetrRequest], commands: int) -> None:
        """:param commands: limit of commands without a reply."""
        self._form = b"TOP %d 0\r\n" if verb == "TOP" else b"RETR %d\r\n"
        self._requests = requests
        self._commands = commands
        self._sent = 0
        self._octets = 0
        self._pending: deque[RetrRequest] = deque()

    def fill(self, fence: Fence | None) -> bytes:
        """Return the commands to send now. :param fence: to send behind each."""
        if len(self._pending) > self._commands // 2:
            return b""
        lines = []
        while self._sent < len(self._requests) and len(self._pending) < self._commands:
            mail = self._requests[self._sent]
            if self._pending and self._octets + mail.octets > WINDOW_OCTETS:
                break
            lines.append(self._form % mail.number)
            if fence is not None:
                lines.append(fence.command(mail.number))
            self._pending.append(mail)
            self._octets += mail.octets
            self._sent += 1
        return b"".join(lines)

    def next(self) -> int | None:
        """Return the number of the mail whose reply comes next; None if none was requested."""
        if not self._pending:
            return None
        mail = self._pending.popleft()
        self._octets -= mail.octets
        return mail.number


def _is_full(batch: Sequence[Retrieved]) -> bool:
    return len(batch) >= BATCH_MAILS or sum(mail.octets for mail in batch) >= BATCH_OCTETS


class Pop3Client:
    """One session, from ``open_session``; for one task at a time.

    reading: the number of the mail whose reply is being read, for the report if the session ends there.
    """

    def __init__(self, server: Server, stream: _Pop3Stream, read_seconds: float, session_seconds: float) -> None:
        self.server = server
        self.capabilities = Capabilities()
        self.reading: int | None = None
        self._stream = stream
        self._read_seconds = read_seconds
        self._session_seconds = session_seconds
        self._ends = asyncio.get_running_loop().time() + session_seconds
        self._too_slow_at = math.inf  # unless more octets of the reply come before
        self._data = b""
        self._pos = 0
        self._current_command = "greeting"
        self._timestamp: bytes | None = None  # of the greeting, for APOP
        self._uidls: dict[int, str] = {}
        self._fence: Fence | None = None
        self._alone = False

    # ------------------------------------------------------------------------------------------ the session's steps

    async def greet(self, progress: ProgressCallback = no_progress) -> None:
        """Read the greeting and the capabilities; start TLS if the account demands STLS.

        :param progress: called for the steps encrypted (after STLS) and answered.
        :raises ServerBusy: the server refuses connections now. :raises TlsError: no TLS.
        """
        ok, line = await self._reply()
        if not ok:
            raise ServerBusy(f"{host_port(self.server)}: the server refuses service now: {trim(line)}")
        self._timestamp = timestamp_of(line)
        self.capabilities = await self._capa()
        if self.server.tls == "starttls":
            await self._start_tls()
            progress("encrypted", describe_tls(self._stream.transport.get_extra_info("ssl_object")))
            # RFC 2595 section 4: discard the capabilities from before TLS
            self.capabilities = await self._capa()
        progress(
            "answered",
            self.capabilities.shown() if self.capabilities.answered else "the server announces no capabilities (CAPA)",
        )

    async def login(self, credential: Credential) -> None:
        """Log in with USER and PASS, a SASL mechanism or APOP, or with a token by AUTH XOAUTH2.

        :raises LoginRefused: wrong name or password. :raises ServerBusy: [IN-USE], [LOGIN-DELAY], [SYS/TEMP].
        """
        if any(c in text for text in (credential.login, credential.secret) for c in "\r\n\0"):
            raise LoginRefused(
                f"{host_port(self.server)}: name or password contain a line break or NUL; set them again", None
            )
        if credential.token:
            await self._authenticate(xoauth2(credential.login, credential.secret))
        else:
            await self._log_in_by_password(credential.login, credential.secret)
        before = self.capabilities
        if before.answered and (not before.pipelining or before.login_delay_by_user):
            after = await self._capa()
            self.capabilities = after if after.answered else before

    async def _log_in_by_password(self, user: str, password: str) -> None:
        encrypted = self.server.tls != "none"
        mechanisms = choose_mechanisms(self.capabilities, self._timestamp, encrypted)
        for position, mechanism in enumerate(mechanisms, 1):
            self._current_command = mechanism
            first = {"USER": f"USER {user}", "APOP": f"APOP {user} {apop_digest(self._timestamp or b'', password)}"}
            self._write(first.get(mechanism, f"AUTH {mechanism}").encode() + b"\r\n")
            answer, line = await self._answer()
            begun = answer == (b"+OK" if mechanism in first else b"+")
            if begun and mechanism != "APOP":
                self._current_command = "PASS" if mechanism == "USER" else mechanism
                self._write(self._proof(mechanism, user, password, line) + b"\r\n")
                answer, line = await self._answer()
            if answer == b"+":
                raise self._not_pop3()
            if answer == b"+OK":
                return
            reply = trim(line)
            # a server that refused to begin has seen no password
            if begun or mechanism == "APOP" or is_temporary(reply) or position == len(mechanisms):
                raise self._login_failure(reply)

    def _proof(self, mechanism: str, user: str, password: str, challenge: bytes) -> bytes:
        """Return the line that proves the password. :param challenge: in base64, for CRAM-MD5."""
        if mechanism == "USER":
            return f"PASS {password}".encode()
        if mechanism == "PLAIN":
            return base64.b64encode(plain_response(user, password))
        try:
            decoded = base64.b64decode(challenge.strip(), validate=True)
        except binascii.Error as error:
            raise self._not_pop3() from error
        return base64.b64encode(cram_md5_response(user, password, decoded))

    async def _authenticate(self, response: bytes) -> None:
        """Authenticate with XOAUTH2 (RFC 5034).

        Microsoft accepts the response only on a line of its own, Google only with the command. A server that
        refuses the bare command gets the response with the command: it has not seen the token yet.
        """
        self._current_command = "AUTH"
        with_command = self.server.host.lower().endswith(_INITIAL_RESPONSE_HOSTS)
        self._write(b"AUTH XOAUTH2 " + response + b"\r\n" if with_command else b"AUTH XOAUTH2\r\n")
        answer, line = await self._answer()
        if not with_command and answer != b"+OK":
            self._write(response + b"\r\n" if answer == b"+" else b"AUTH XOAUTH2 " + response + b"\r\n")
            answer, line = await self._answer()
        if answer == b"+":  # the error as JSON, to be acknowledged
            self._write(b"\r\n")
            answer, line = await self._answer()
        if answer != b"+OK":
            raise self._login_failure(trim(line), "AUTH")

    def _login_failure(self, reply: str, default_code: str | None = None) -> Exception:
        code = response_code(reply)
        if is_temporary(reply):
            return ServerBusy(f"{host_port(self.server)}: the mailbox cannot be opened now: {reply}", code)
        code = code or default_code
        return LoginRefused(
            f"{host_port(self.server)}: the login was refused; check login name and password: {reply}", code
        )

    async def stat(self) -> tuple[int, int]:
        """Return the number of mails and their octets (STAT)."""
        self._write(b"STAT\r\n")
        return await self._stat_reply()

    async def fetch_list(self) -> Listing:
        """Send STAT and UIDL, as ``fetch_list_reply``, and parse the replies."""
        listing = (await self.fetch_list_reply()).parse()
        self.use_uidls(listing)
        return listing

    def use_uidls(self, listing: Listing) -> None:
        """Keep the unique ids of this session's list, which the fence behind a mail asks for again."""
        if not listing.position_keyed:
            self._uidls = dict(listing.mails)

    async def fetch_list_reply(self) -> ListReply:
        """Send STAT and UIDL, or LIST to a server without UIDL; do not parse the list.

        :raises ServerBusy, ProtocolError: the server returns no list now.
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
        position_keyed = not ok
        if position_keyed:
            self._check_refused_list(line)
            self._current_command = "LIST"
            self._write(b"LIST\r\n")
            ok, line = await self._reply()
        if not ok:
            raise ProtocolError(f"{host_port(self.server)}: the server lists no mails: {trim(line)}")
        text = await self._text()
        digest = hashlib.sha256(b"%d %d %d " % (position_keyed, count, octets) + text.sha256).digest()
        return ListReply(count, text.kept, digest, position_keyed)

    def _check_refused_list(self, line: bytes) -> None:
        """Check why UIDL was refused. :raises ServerBusy, ProtocolError: the server knows UIDL and refuses it now."""
        reply = trim(line)
        if is_temporary(reply):
            raise ServerBusy(f"{host_port(self.server)}: the server lists no mails now: {reply}", response_code(reply))
        if self.capabilities.uidl:
            raise ProtocolError(
                f"{host_port(self.server)}: the server announces unique ids (UIDL) and does not list them: {reply}"
            )

    async def fetch_sizes(self) -> dict[int, int]:
        """Send LIST: octets by number, as far as the server reports them."""
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
        """Send RETR for each mail, in order. When ``stop()`` is true, no further mail is requested.

        A mail is returned after the fence behind it: it is whole.

        :param max_octets: the largest mail to keep. :param reserve_memory: awaited before a large mail grows.
        :raises OutOfStep: a mail is not whole; ``reading`` is its number if it was fetched alone, otherwise None.
        """
        async for retrieved in self._fetch("RETR", requests, max_octets, stop, reserve_memory):
            yield retrieved
            del retrieved  # otherwise it stays in memory while the next one is read

    async def fetch_headers(self, numbers: Sequence[int], max_octets: int) -> AsyncIterator[Retrieved]:
        """Send ``TOP n 0`` for each mail: its header, in order; a refusal from a server without TOP."""
        requests = [RetrRequest(number, 8192) for number in numbers]
        async for retrieved in self._fetch("TOP", requests, max_octets, lambda: False, None):
            yield retrieved

    async def delete(self, numbers: Sequence[int]) -> list[int]:
        """Send DELE for each mail; it takes effect at QUIT. Return the numbers that the server refused."""
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
        """Send QUIT. Return whether the server confirms the deletions."""
        self._current_command = "QUIT"
        self._write(b"QUIT\r\n")
        ok, _ = await self._reply()
        return ok

    @property
    def _where(self) -> str:
        """Server and current command, for error texts."""
        return f"{host_port(self.server)}: {self._current_command}"

    @property
    def past_half_time(self) -> bool:
        """Whether half of the session's time is over: a new session is then better than a time-out."""
        return asyncio.get_running_loop().time() > self._ends - self._session_seconds / 2

    def fetch_alone(self) -> None:
        """Send each further command only after the reply to the previous one, and a fence behind each mail."""
        self.capabilities = replace(self.capabilities, pipelining=False)
        self._alone = True

    def abort(self) -> None:
        """End the connection at once."""
        self._stream.transport.abort()

    # ------------------------------------------------------------------------------------------ replies

    async def _fetch(
        self,
        verb: str,
        requests: Sequence[RetrRequest],
        max_octets: int,
        stop: Callable[[], bool],
        reserve_memory: ReserveMemory | None,
    ) -> AsyncIterator[Retrieved]:
        if not requests:
            return
        fence = self._fence = self._fence or await self._find_fence(requests[0].number)
        ahead = self.capabilities.pipelining
        window = _Window(verb, requests, WINDOW_COMMANDS if ahead else 1)
        batch: deque[Retrieved] = deque()  # read, and not fenced yet
        due = 0.0
        number: int | None = 0
        while number is not None:
            commands = b"" if stop() else window.fill(fence if ahead else None)
            if commands:
                self._write(commands)
            number = window.next()
            if number is not None:
                due = due if batch else time.monotonic() + BATCH_SECONDS
                batch.append(await self._mail(verb, number, max_octets, reserve_memory, first=not batch))
            if batch and (number is None or ahead or self._alone or _is_full(batch) or time.monotonic() > due):
                await self._pass_fence(fence, batch, sent=ahead)
                while batch:
                    yield batch.popleft()

    async def _mail(
        self, verb: str, number: int, max_octets: int, reserve_memory: ReserveMemory | None, *, first: bool
    ) -> Retrieved:
        """Read the reply to RETR or TOP. :param first: of its batch; else the reply may be the rest of a mail before.

        :raises OutOfStep: as it may be.
        """
        self._current_command = f"{verb} of mail {number}"
        self.reading = number if first else None
        try:
            ok, line = await self._reply()
            if not ok:
                return Retrieved(number, None, 0, b"", trim(line))
            body = await self._body(max_octets, reserve_memory)
        except ProtocolError as error:
            if first:
                raise
            raise self._out_of_step(()) from error
        kept = None if body.too_large else body.kept
        return Retrieved(number, kept, body.octets, body.sha256, None, body.head)

    async def _pass_fence(self, fence: Fence, batch: Sequence[Retrieved], *, sent: bool) -> None:
        """Check that the reply to the fence comes next. :param sent: the fence was sent with the command before it.

        :raises OutOfStep: something else comes.
        """
        self.reading = batch[0].number if len(batch) == 1 else None
        given = [mail.number for mail in batch if mail.refusal is None]
        if not given and not sent:
            self.reading = None
            return
        number = given[-1] if given else batch[-1].number
        self._current_command = f"{fence.verb} behind mail {number}"
        if not sent:
            self._write(fence.command(number))
        try:
            answer, text = await self._answer()
        except ProtocolError as error:
            raise self._out_of_step(batch) from error
        matches = answer == b"+OK" and fence.matches(number, text)
        gone = not given and answer == b"-ERR"  # a mail that does not exist any more is refused twice
        if not (matches or gone) or (not sent and self._has_input):
            raise self._out_of_step(batch)
        self.reading = None

    def _out_of_step(self, batch: Sequence[Retrieved]) -> OutOfStep:
        """Return the error. Only a mail that was fetched alone is at fault: pipelining may be, too."""
        head = b""
        if not self._alone:
            self.reading = None
        elif self.reading is not None:
            head = batch[0].head if batch[0].body is None else bytes(memoryview(batch[0].body)[:HEAD_OCTETS])
        return OutOfStep(
            f"{self._where}: another reply; a mail before it may be cut short at a line that is a lone dot "
            "(RFC 1939 section 3)",
            head,
        )

    @property
    def _has_input(self) -> bool:
        """Whether octets wait to be read."""
        return self._pos < len(self._data) or not self._stream.empty

    async def _find_fence(self, number: int) -> Fence:
        """Return the fence that the server answers as expected."""
        if self._uidls and await self._is_answered(fence := Fence.of_uidls(self._uidls), number):
            return fence
        sizes = await self.fetch_sizes()
        if sizes and await self._is_answered(fence := Fence.of_sizes(sizes), number):
            return fence
        if await self._is_answered(fence := Fence.of_counts(*await self.stat()), number):
            return fence
        raise ProtocolError(
            f"{host_port(self.server)}: UIDL, LIST and STAT have other replies each time, so a mail that is cut short "
            "cannot be detected"
        )

    async def _is_answered(self, fence: Fence, number: int) -> bool:
        """Whether the server answers the fence as expected, while nothing else can come."""
        self._current_command = f"{fence.verb} of one mail"
        self._write(fence.command(number))
        ok, text = await self._reply()
        if ok and fence.matches(number, text):
            return True
        if ok:  # a server that ignores the number sends the whole list, whose lines begin with numbers
            self._write(b"NOOP\r\n")
            octets = 0
            while not (line := await self._line(LIST_OCTETS)).upper().startswith((b"+OK", b"-ERR")):
                octets += len(line)
                if octets > LIST_OCTETS:
                    raise self._too_long(LIST_OCTETS)
        return False

    async def _body(self, max_octets: int, reserve_memory: ReserveMemory | None = None) -> Body:
        """Read the text of a multi-line reply after its status line."""
        if self._data[self._pos - 2 : self._pos] == b"\r\n":
            self._pos -= 2
        else:  # a status line that ended with a lone LF
            self._data, self._pos = b"\r\n" + self._data[self._pos :], 0
        body = Body(max_octets)
        reserved = STEP_OCTETS
        while True:
            ended, self._pos = body.feed(self._data, self._pos)
            if ended:
                return body
            if reserve_memory is not None and len(body.kept) > reserved:
                await reserve_memory(STEP_OCTETS)
                self._too_slow_at = math.inf  # the wait was ours
                reserved += STEP_OCTETS
            if body.octets > 2 * max_octets + _BUFFER_HIGH:
                raise ReplyTooLong(
                    f"{self._where}: the reply does not end; aborted after {body.octets} octets",
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
        """Read a status line: whether it is +OK, and the text after that."""
        answer, text = await self._answer()
        if answer == b"+":
            raise self._not_pop3()
        return answer == b"+OK", text

    async def _answer(self) -> tuple[bytes, bytes]:
        """Read a reply line: +OK, -ERR or + (RFC 5034: a continuation request), and the text after that."""
        line = await self._line()
        indicator, _, text = line.partition(b" ")
        if indicator.upper() not in (b"+OK", b"-ERR", b"+"):
            raise self._not_pop3()
        return indicator.upper(), text

    async def _line(self, limit: int = LINE_OCTETS) -> bytes:
        """Read a line without its end."""
        self._too_slow_at = math.inf
        while (end := self._data.find(b"\n", self._pos)) < 0:
            if len(self._data) - self._pos > limit:
                raise self._too_long(limit)
            await self._more()
        if end - self._pos > limit:
            raise self._too_long(limit)
        line = self._data[self._pos : end].rstrip()
        self._pos = end + 1
        return line

    def _not_pop3(self) -> ProtocolError:
        """Return the error without the server's text: that may come from any server in this network."""
        return ProtocolError(f"{self._where}: the reply is not a POP3 reply; check host, port and tls")

    def _too_long(self, limit: int) -> ProtocolError:
        return ProtocolError(f"{self._where}: a reply line of more than {limit} octets")

    async def _stat_reply(self) -> tuple[int, int]:
        self._current_command = "STAT"
        ok, line = await self._reply()
        counts = parse_stat(line) if ok else None
        if counts is not None:
            return counts
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
        if self._has_input:
            raise TlsError(
                f"{host_port(self.server)}: the server sent octets between STARTTLS and TLS: this may be an attack"
            )
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._stream.transport,
                self._stream,
                client_context(self.server),
                server_hostname=self.server.host.strip("[]"),
                ssl_handshake_timeout=CONNECT_SECONDS,
            )
        except OSError as error:  # ssl.SSLError is a subclass
            raise explain_tls(self.server, error) from error
        if secured is None:
            raise explain_tls(self.server, ConnectionResetError())
        self._stream.transport = secured
        _check_certificate(self.server, secured)

    def _write(self, data: bytes) -> None:
        self._stream.transport.write(data)

    async def _more(self) -> None:
        loop = asyncio.get_running_loop()
        silent_at = loop.time() + self._read_seconds
        by = min(silent_at, self._too_slow_at, self._ends)
        try:
            async with asyncio.timeout_at(by):
                chunk = await self._stream.read_chunk()
        except TimeoutError as error:
            if by == self._ends:
                raise ConnectTimeout(
                    f"{self._where}: the session took longer than {self._session_seconds:g} s"
                ) from error
            if by < silent_at - self._read_seconds / 10:
                raise ConnectTimeout(f"{self._where}: the reply is slower than {MIN_RATE} octets a second") from error
            raise ConnectTimeout(f"{self._where}: no answer within {self._read_seconds:g} s") from error
        if not chunk:
            raise Pop3ConnectionLost(f"{self._where}: the server ended the connection")
        self._too_slow_at = min(loop.time() + self._read_seconds, self._too_slow_at + len(chunk) / MIN_RATE)
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
    """Open a session: connection, TLS if the account demands it, greeting. The session ends with the block.

    Every error names host, port and what to change, and has a ``kind``.

    :param progress: called for the steps resolved, connected, encrypted and answered.
    :raises Temporary: ``Unreachable``, ``ConnectTimeout``, ``TlsError``, ``ServerBusy``, ``ProtocolError``,
        ``Pop3ConnectionLost``. :raises Permanent: ``AddressNotAllowed``, ``LoginRefused``.
    """
    connection = await connect_socket(server, allow_private, connect_seconds, progress=progress)
    stream = _Pop3Stream()
    implicit = server.tls == "implicit"
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: stream,
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
    client = Pop3Client(server, stream, read_seconds, session_seconds)
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
