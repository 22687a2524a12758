"""Reads the content after DATA: its end, dot-stuffing, line ends and limits (RFC 5321 sections 4.1.1.4, 4.5.2, 4.5.3).

The stored form is built as the chunks arrive, in one growing buffer, so a mail of 50 MB uses little more memory than
its size.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from services.smtp_in.header_opening import HeaderOpening
from shared.model import Content

LINE_OCTETS = 16 * 1024 * 1024
HEADER_OCTETS = 1024 * 1024
MAX_FIELDS = 10_000
"""Fields of a header section: each one takes processor time, here and in the services that follow."""
HIDDEN = frozenset({"bcc", "resent-bcc"})
"""Fields that are removed from the header, lower case."""

_END = b"\r\n.\r\n"
# Matches every field and every other line, and names the fields that are checked or removed. As in
# shared/mime/headers.py, blanks may precede the colon; without a record of each of 10,000 fields it takes a quarter of
# the time.
_FIELD = re.compile(
    rb"^(?:(from|sender|resent-from|received|message-id|bcc|resent-bcc)[ \t]*+:|)([^\n]*+(?:\n[ \t][^\n]*+)*+)\n?",
    re.MULTILINE | re.IGNORECASE,
)

Values = dict[str, list[bytes]]
"""Raw values of the fields that the policies check (From, Sender, Resent-From, Received, Message-ID), in order, by name
in lower case."""


@dataclass(frozen=True, slots=True)
class SmtpRefusal:
    """A reply that refuses a command: reply code, enhanced status code (RFC 3463) and text."""

    code: int
    status: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.status} {self.text}"


class DataReader:
    """Reads chunks until the end of the mail and builds the stored form: CRLF line ends, no dot-stuffing.

    Only CRLF.CRLF ends a mail, and dots are unstuffed only after CRLF. Other line ends cannot smuggle a second mail
    inside the first one.

    :ivar refusal: reason why the mail is refused.
    :ivar ended: the end of the mail was read; ``header``, ``header_octets`` and ``values`` are complete.
    :ivar octets: size of the mail, also if it is refused.
    :ivar ascii: the mail is ASCII so far.
    """

    def __init__(self, octets: int) -> None:
        """:param octets: largest mail, counted without dot-stuffing and with CRLF line ends."""
        self.refusal: SmtpRefusal | None = None
        self.ended = False
        self.octets = 0
        self.ascii = True
        self.header_octets: int | None = None
        self.values: Values = {}
        self._max_octets = octets
        self._pending = b"\r\n"  # the line end of DATA: a mail may start with a dot, or be empty
        self._started = False
        self._header_clean = True  # each piece so far had CRLF line ends; until the header ends
        self._opening = HeaderOpening()
        self._body = bytearray()
        self._digest = hashlib.sha256()
        self._line_octets = 0

    def feed(self, chunk: bytes) -> bytes:
        """Read the next octets, fewer than LINE_OCTETS. Returns the octets after the end of the mail."""
        window = self._pending + chunk
        end = window.find(_END)
        if end >= 0:
            piece, self._pending, rest = window[: end + 2], b"", window[end + len(_END) :]
        else:
            keep = _partial_end_octets(window)
            piece, self._pending, rest = window[: len(window) - keep], window[len(window) - keep :], b""
        if piece:
            self._add_piece(piece)
        if end >= 0:
            self._finish()
        return rest

    @property
    def octets_in_memory(self) -> int:
        """Size of the content in memory."""
        return len(self._body)

    @property
    def header(self) -> bytes:
        """The header section with the blank line that ends it."""
        return bytes(memoryview(self._body)[: self.header_octets])

    def beginning(self, octets: int) -> bytes:
        """The first octets of the mail."""
        return bytes(memoryview(self._body)[:octets])

    def content(self) -> Content:
        """The mail, with its digest."""
        return Content(self._body, len(self._body), self._digest.digest())

    def refuse(self, refusal: SmtpRefusal) -> None:
        """Drop the content, also what is still to come. The first refusal is kept."""
        self.refusal = self.refusal or refusal
        self._body = bytearray()

    def _add_piece(self, piece: bytes) -> None:
        # A piece never ends in CR or in CRLF. that may be the start of the end: these octets wait for the next chunk.
        # Therefore no line end and no stuffed dot is split.
        piece = piece.replace(b"\r\n.", b"\r\n")
        if not self._started:
            piece, self._started = piece[2:], True
        self._measure_lines(piece)
        if self.refusal is not None:
            self.octets += len(piece)
            return
        if self.header_octets is None:
            if not _is_clean(piece):
                self._header_clean = False
                piece = piece.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            piece = self._add_header(piece if self._opening.decided else self._opening.feed(piece))
            if self._header_clean:  # so is what follows the header in this piece: most mails are checked once
                self._append(piece)
                return
        self._add_body(piece)

    def _add_body(self, piece: bytes) -> None:
        if not _is_clean(piece):  # faster than a regular expression where every octet is a line end
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        self._append(piece)

    def _add_header(self, piece: bytes) -> bytes:
        """Append the part that belongs to the header section, and return the rest."""
        overlap = bytes(self._body[-2:])
        blank = (overlap + piece).find(b"\r\n\r\n")
        if not self._body and piece.startswith(b"\r\n"):
            ended, length = True, 2  # a blank line first: the header is empty
        elif blank >= 0:
            ended, length = True, blank + 4 - len(overlap)
        else:
            ended, length = False, len(piece)
        header = piece[:length]
        if b"\0" in header or header.count(b"\r") != header.count(b"\r\n"):
            self.refuse(SmtpRefusal(550, "5.6.0", "The header has a NUL or a carriage return without a line feed"))
        if len(self._body) + length > HEADER_OCTETS:
            self.refuse(SmtpRefusal(552, "5.3.4", f"The header is longer than {HEADER_OCTETS} octets"))
        self._append(header)
        if ended:
            self._end_header()
        return piece[length:]

    def _end_header(self) -> None:
        """Parse the fields, and remove Bcc: local recipients receive the mail as it is stored."""
        header, kept, position = bytes(self._body), [], 0
        if header.count(b"\n") - header.count(b"\n ") - header.count(b"\n\t") > MAX_FIELDS + 1:  # the blank line
            self.refuse(SmtpRefusal(552, "5.3.4", f"The header has more than {MAX_FIELDS} fields"))
        for field in () if self.refusal else _FIELD.finditer(header):
            if field[1] is None:
                continue
            key = field[1].decode("ascii").lower()
            if key in HIDDEN:
                kept.append(header[position : field.start()])
                position = field.end()
            else:
                self.values.setdefault(key, []).append(field[2].removesuffix(b"\r"))
        if kept:
            self._body = bytearray(b"".join([*kept, header[position:]]))
            self._digest = hashlib.sha256(self._body)
        self.header_octets = len(self._body)

    def _append(self, piece: bytes) -> None:
        self.octets += len(piece)
        if self.octets > self._max_octets:
            self.refuse(SmtpRefusal(552, "5.3.4", f"The mail is larger than {self._max_octets} octets"))
        if self.refusal is None:
            self._body += piece
            self._digest.update(piece)
            self.ascii = self.ascii and piece.isascii()

    def _measure_lines(self, piece: bytes) -> None:
        first = piece.find(b"\n")
        self._line_octets += len(piece) if first < 0 else first
        if self._line_octets > LINE_OCTETS:
            self.refuse(SmtpRefusal(554, "5.6.0", f"A line is longer than {LINE_OCTETS} octets"))
        if first >= 0:
            self._line_octets = len(piece) - piece.rfind(b"\n") - 1

    def _finish(self) -> None:
        self.ended = True
        if not self._opening.decided:
            self._add_body(self._add_header(self._opening.finish()))
        if self.header_octets is None:
            self._end_header()


def _is_clean(piece: bytes) -> bool:
    """Whether each line ends in CRLF: counting is cheap, and nearly all do."""
    crlf = piece.count(b"\r\n")
    return piece.count(b"\n") == crlf == piece.count(b"\r")


def _partial_end_octets(window: bytes) -> int:
    """How many octets at the end of the window may be the start of CRLF.CRLF."""
    for length in range(len(_END) - 1, 0, -1):
        if window.endswith(_END[:length]):
            return length
    return 0
