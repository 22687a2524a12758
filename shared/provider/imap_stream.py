"""The commands and responses of an IMAP session (RFC 3501, RFC 9051), with a limit of size for each.

A text of a mail is read in pieces as they arrive, never line by line, and is in memory once.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from shared.imap.names import quoted
from shared.model import Server
from shared.provider.imap_responses import (
    Literal,
    MalformedResponse,
    Part,
    Response,
    announces_data,
    parse_response,
)
from shared.provider.mail_text import MailText
from shared.provider.retrieval import STEP_OCTETS, ReserveMemory
from shared.provider.session_errors import ConnectionLost, ProtocolError, ReplyTooLong, ServerBusy
from shared.provider.session_stream import BUFFER_OCTETS, ReceivedOctets, SessionStream

LINE_OCTETS = 64 * 1024
"""Longest line of a response: octets; RFC 2683 section 3.2.1.5 wants 8,000 at least."""
LIST_OCTETS = 8 * 1024 * 1024
"""Longest list of UIDs (SEARCH): octets; room for a million mails."""
STRING_OCTETS = 64 * 1024
"""Longest literal that is no text of a mail: octets."""
MAX_LITERALS = 64
"""Literals in one response."""
MAX_UNTAGGED = 50_000
"""Untagged responses to one command, beside those that it asks for: other clients may delete that many mails."""
MAX_EMPTY_LINES = 10
"""Empty lines before a response."""
TURN_OCTETS = 8 * 1024
"""Octets of responses after which other tasks get a turn, beside texts: a server may send thousands at once."""
RESPONSE_OCTETS = 80
"""Octets that a response counts for beside its own: a short one takes as long to read as these."""

_LITERAL = re.compile(rb"~?\{(\d{1,18})\+?\}$")
"""At the end of a line: a literal follows. ``~`` is that of RFC 3516, ``+`` that of RFC 7888."""
_TEXT = re.compile(rb"[ (]BODY\[(?:HEADER)?\](?:<\d+>)? *$", re.IGNORECASE)
"""At the end of a fragment: the literal is the text of a mail, or its header."""
_FETCH = re.compile(rb"\* \d+ FETCH ", re.IGNORECASE)
_LONG_LIST = re.compile(rb"\* E?SEARCH ", re.IGNORECASE)


def _announced_literal(line: bytes) -> re.Match[bytes] | None:
    """Return the announcement of a literal at the end of a line, which may be a list of megabytes."""
    return _LITERAL.search(line, max(0, len(line) - 24)) if line.endswith(b"}") else None


def _no_data(response: Response) -> None:
    """Ignore the response."""


class ImapStream(SessionStream):
    """The connection of one IMAP session.

    alert: the last text that the server wants the user to see ([ALERT]), trimmed. text: the text of a mail that is
    being read or was read last.
    """

    def __init__(self, server: Server, received: ReceivedOctets, read_seconds: float, session_seconds: float) -> None:
        super().__init__(server, received, read_seconds, session_seconds)
        self.alert = ""
        self.text: MailText | None = None
        self.non_synchronizing = 0  # octets of the longest literal that needs no permission (RFC 7888)
        self.on_untagged: Callable[[Response], None] = _no_data  # hears every untagged response
        # Chosen at random: nothing in a mail can pass for the end of a command.
        self._prefix = secrets.token_hex(4)
        self._tags = 0
        self._busy = 0  # octets since other tasks had a turn

    def abort(self) -> None:
        """End the connection at once."""
        super().abort()
        self.on_untagged = _no_data  # its object refers to the stream: the cycle would stay in memory for long

    # ------------------------------------------------------------------------------------------ commands

    def new_tag(self) -> str:
        """Return the tag of the next command."""
        self._tags += 1
        return f"{self._prefix}{self._tags}"

    def send(self, command: bytes) -> str:
        """Send a command without strings that need a literal. Return its tag."""
        tag = self.new_tag()
        self.write(b"%s %s\r\n" % (tag.encode(), command))
        return tag

    async def run(
        self,
        command: bytes,
        strings: Sequence[bytes] = (),
        behind: bytes = b"",
        heard: Callable[[Response], None] = _no_data,
        expected: int = 0,
    ) -> Response:
        """Send a command and return the response that ends it: OK, NO or BAD.

        :param strings: arguments behind it, sent as quoted strings or literals. :param behind: the rest of the command.
        :param heard: called for each untagged response. :param expected: number of those that the command asks for.
        :raises ServerBusy: BYE. :raises ProtocolError: anything else comes.
        """
        tag = self.new_tag()
        line = b"%s %s" % (tag.encode(), command)
        for string in strings:
            if (plain := quoted(string)) is not None:
                line += b" " + plain
                continue
            unasked = len(string) <= self.non_synchronizing
            self.write(line + b" {%d%s}\r\n" % (len(string), b"+" if unasked else b""))
            if not unasked and (refusal := await self._permission(tag, heard)) is not None:
                return refusal
            line = string
        self.write(line + behind + b"\r\n")
        return await self.finish(tag, heard, expected)

    async def run_with_mail(
        self,
        command: bytes,
        name: bytes,
        before: bytes,
        pieces: AsyncIterator[bytes],
        octets: int,
        after: bytes,
        seconds: float,
    ) -> Response:
        """Send a command whose last argument is a mail, in pieces, as a literal that waits for permission.

        :param name: of a folder. :param before: between the name and the literal. :param after: behind the literal.
        :param seconds: the longest wait until the server takes the next piece. Errors: as ``run`` and ``send_octets``.
        """
        tag = self.new_tag()
        line = b"%s %s " % (tag.encode(), command)
        if (plain := quoted(name)) is None:
            self.write(line + b"{%d}\r\n" % len(name))
            if (refusal := await self._permission(tag, _no_data)) is not None:
                return refusal
            line, plain = b"", name
        self.write(line + plain + before + b"{%d}\r\n" % octets)
        if (refusal := await self._permission(tag, _no_data)) is not None:
            return refusal
        async for piece in pieces:
            octets -= len(piece)
            if octets < 0:
                break
            await self.send_octets(piece, seconds)
        if octets:  # what follows would be read as a part of the mail
            self.abort()
            raise ProtocolError(f"{self.where}: the mail has not the octets that were announced")
        self.write(after + b"\r\n")
        return await self.finish(tag)

    async def _permission(self, tag: str, heard: Callable[[Response], None]) -> Response | None:
        """Wait until the server asks for a literal (+); if it refuses, return its response."""
        response = await self.next_answer(tag, heard)
        return None if response.tag == "+" else response

    async def finish(self, tag: str, heard: Callable[[Response], None] = _no_data, expected: int = 0) -> Response:
        """Read up to the response that ends the command with this tag. Parameters and errors: as ``run``."""
        response = await self.next_answer(tag, heard, expected)
        if response.tag == "+":
            raise self.not_imap()
        return response

    async def next_answer(self, tag: str, heard: Callable[[Response], None] = _no_data, expected: int = 0) -> Response:
        """Read up to the response that ends the command with this tag, or a ``+``. Errors: as ``run``."""
        for _ in range(MAX_UNTAGGED + expected):
            response = await self.response()
            if response.tag in ("+", tag):
                return response
            if response.tag != "*":
                raise self.not_imap()
            self.check_bye(response)
            heard(response)
        raise ProtocolError(f"{self.where}: more than {MAX_UNTAGGED + expected} untagged responses")

    def check_bye(self, response: Response) -> None:
        """Check that the server does not end the session. :raises ServerBusy: it does."""
        if response.kind == "BYE":
            raise ServerBusy(f"{self.where}: the server ends the session: {response.shown}", response.code or None)

    # ------------------------------------------------------------------------------------------ responses

    async def response(self, max_octets: int | None = None, reserve_memory: ReserveMemory | None = None) -> Response:
        """Read the next response.

        :param max_octets: the most to keep of the text of a mail; None: no text is asked for.
        :param reserve_memory: awaited before a large text grows.
        :raises ReplyTooLong: a text exceeds the limit by far. :raises ProtocolError: it is no response.
        """
        if self._busy > TURN_OCTETS:
            self._busy = 0
            await asyncio.sleep(0)
        self._busy += RESPONSE_OCTETS
        self.text = None
        line = await self._line()
        for _ in range(MAX_EMPTY_LINES):  # some servers send one between responses
            if line:
                break
            line = await self._line()
        try:
            response = parse_response(await self._parts(line, max_octets, reserve_memory))
        except MalformedResponse as error:
            raise self.not_imap() from error
        if response.code == "ALERT":
            self.alert = response.shown
        if response.tag == "*":
            self.on_untagged(response)
        return response

    async def _parts(self, line: bytes, max_octets: int | None, reserve_memory: ReserveMemory | None) -> list[Part]:
        if not announces_data(line):
            return [line]
        parts: list[Part] = []
        with_text = _FETCH.match(line) is not None
        while (literal := _announced_literal(line)) is not None:
            octets = int(literal[1])
            fragment = line[: literal.start()]
            parts.append(fragment)
            if len(parts) > 2 * MAX_LITERALS:
                raise ProtocolError(f"{self.where}: more than {MAX_LITERALS} literals in a response")
            if with_text and _TEXT.search(fragment):
                limit = max_octets if max_octets is not None and self.text is None else 0
                parts.append(await self._mail_text(octets, limit, reserve_memory))
            else:
                if octets > STRING_OCTETS:
                    raise ProtocolError(f"{self.where}: a string of {octets} octets")
                string = bytearray()
                await self._read_literal(octets, string.extend)
                parts.append(Literal(bytes(string)))
            line = await self._line()
        return [*parts, line]

    async def _mail_text(self, octets: int, limit: int, reserve_memory: ReserveMemory | None) -> MailText:
        """Read a literal that is the text of a mail."""
        if octets > 2 * limit + BUFFER_OCTETS:
            raise ReplyTooLong(f"{self.where}: a text of {octets} octets", octets)
        text = MailText(limit)
        self.text = self.text or text
        await self._read_literal(octets, text.add, text, reserve_memory)
        text.finish()
        return text

    async def _read_literal(
        self,
        octets: int,
        add: Callable[[bytes], None],
        text: MailText | None = None,
        reserve_memory: ReserveMemory | None = None,
    ) -> None:
        self._too_slow_at = math.inf
        reserved = STEP_OCTETS
        while octets:
            if self._pos >= len(self._data):
                await self._more()
            piece = self._data[self._pos : self._pos + octets]
            self._pos += len(piece)
            octets -= len(piece)
            add(piece)
            if reserve_memory is not None and text is not None and len(text.kept) > reserved:
                await reserve_memory(STEP_OCTETS)
                self._too_slow_at = math.inf  # the wait was ours
                reserved += STEP_OCTETS

    async def _line(self) -> bytes:
        """Read a line without its end. :raises ProtocolError: it is too long."""
        self._too_slow_at = math.inf
        while (end := self._data.find(b"\n", self._pos)) < 0:
            if len(self._data) - self._pos > LINE_OCTETS:
                if _LONG_LIST.match(self._data, self._pos):
                    return await self._long_line()
                raise self.too_long(LINE_OCTETS)
            await self._more()
        line = self._data[self._pos : end]
        self._pos = end + 1
        self._busy += len(line)
        return line[:-1] if line.endswith(b"\r") else line

    async def _long_line(self) -> bytes:
        """Read a line that may be as long as a list of UIDs."""
        line = bytearray()
        while (end := self._data.find(b"\n", self._pos)) < 0:
            line += memoryview(self._data)[self._pos :]
            self._pos = len(self._data)
            if len(line) > LIST_OCTETS:
                raise self.too_long(LIST_OCTETS)
            await self._more()
        line += memoryview(self._data)[self._pos : end]
        self._pos = end + 1
        if line.endswith(b"\r"):
            del line[-1]
        return bytes(line)

    async def skip_to(self, tag: str, seconds: float) -> bool:
        """Skip lines, whatever they are, up to the one that ends the command with this tag. Return whether it came.

        :param seconds: the longest wait for each line.
        """
        octets = 0
        beginning = tag.encode() + b" "
        try:
            while octets <= LIST_OCTETS:
                async with asyncio.timeout(seconds):
                    line = await self._line()
                if line.startswith(beginning):
                    return True
                octets += len(line) + 1
        except (TimeoutError, ProtocolError, ConnectionLost):
            return False
        return False

    async def is_silent(self, seconds: float) -> bool:
        """Wait until the server sends something. Return whether it sent nothing for so long.

        The end of the connection counts as something: the next response raises it.
        """
        return seconds <= 0 or (not self.has_input and await self._received.is_silent(seconds))

    def not_imap(self) -> ProtocolError:
        """Return the error without the server's text: that may come from any server in this network."""
        return ProtocolError(f"{self.where}: the reply is not an IMAP reply; check host, port and tls")
