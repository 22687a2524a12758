"""The replies of a POP3 session: status lines, texts and lists.

Replies are read in pieces as they arrive, never line by line: a mail of 50 MB is in memory once, and ten thousand small
mails a second pass through.
"""

from __future__ import annotations

import math

from shared.provider.pop3_replies import Body
from shared.provider.retrieval import STEP_OCTETS, ReserveMemory
from shared.provider.session_errors import ProtocolError, ReplyTooLong
from shared.provider.session_stream import BUFFER_OCTETS, SessionStream

LINE_OCTETS = 4096
"""Longest reply line: octets; RFC 2449 section 4 allows 512."""
LIST_OCTETS = 64 * 1024 * 1024
"""Longest list (CAPA, LIST, UIDL): octets."""


class Pop3Stream(SessionStream):
    """The connection of one POP3 session."""

    async def reply(self) -> tuple[bool, bytes]:
        """Read a status line: whether it is +OK, and the text after that.

        :raises ProtocolError: another line comes.
        """
        answer, text = await self.answer()
        if answer == b"+":
            raise self.not_pop3()
        return answer == b"+OK", text

    async def answer(self) -> tuple[bytes, bytes]:
        """Read a reply line: +OK, -ERR or + (RFC 5034: a continuation request), and the text after that.

        :raises ProtocolError: another line comes.
        """
        line = await self.line()
        indicator, _, text = line.partition(b" ")
        if indicator.upper() not in (b"+OK", b"-ERR", b"+"):
            raise self.not_pop3()
        return indicator.upper(), text

    async def line(self, limit: int = LINE_OCTETS) -> bytes:
        """Read a line without its end. :param limit: its octets. :raises ProtocolError: it is longer."""
        self._too_slow_at = math.inf
        while (end := self._data.find(b"\n", self._pos)) < 0:
            if len(self._data) - self._pos > limit:
                raise self.too_long(limit)
            await self._more()
        if end - self._pos > limit:
            raise self.too_long(limit)
        line = self._data[self._pos : end].rstrip()
        self._pos = end + 1
        return line

    async def body(self, max_octets: int, reserve_memory: ReserveMemory | None = None) -> Body:
        """Read the text of a multi-line reply after its status line.

        :param max_octets: the most to keep. :param reserve_memory: awaited before a large text grows.
        :raises ReplyTooLong: it does not end.
        """
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
            if body.octets > 2 * max_octets + BUFFER_OCTETS:
                raise ReplyTooLong(
                    f"{self.where}: the reply does not end; aborted after {body.octets} octets",
                    body.octets,
                )
            await self._more()

    async def text(self) -> Body:
        """Read a list after its status line. :raises ProtocolError: it has more than LIST_OCTETS."""
        body = await self.body(LIST_OCTETS)
        if body.too_large:
            raise ProtocolError(f"{self.where}: a list of more than {LIST_OCTETS} octets")
        return body

    async def lines(self) -> list[bytes]:
        """Read the lines of a list after its status line. :raises ProtocolError: it has more than LIST_OCTETS."""
        return bytes((await self.text()).kept).splitlines()

    def not_pop3(self) -> ProtocolError:
        """Return the error without the server's text: that may come from any server in this network."""
        return ProtocolError(f"{self.where}: the reply is not a POP3 reply; check host, port and tls")
