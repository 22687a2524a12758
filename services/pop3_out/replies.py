"""The replies of the server, and the dot-stuffing of mails: pure functions over bytes."""

from __future__ import annotations

import re

OK = b"+OK\r\n"
END = b".\r\n"
GREETING = b"+OK mailgroup POP3 server ready\r\n"
UNAVAILABLE = b"-ERR [SYS/TEMP] the mailbox is not available now, try again later\r\n"
STOPPING = b"-ERR [SYS/TEMP] the server is going down, try again later\r\n"
TOO_MANY_CONNECTIONS = b"-ERR [SYS/TEMP] too many connections\r\n"
MECHANISMS = b"+OK mechanisms follow\r\nPLAIN\r\n.\r\n"

_BLANK_LINE = re.compile(rb"\n\r?\n")
_DOTTED_LINE = re.compile(rb"\n\.")
_MAX_DOT_CHECKS = 24
"""Limit of dots that are checked one by one, plus one for each KiB: a usual header has about this number. For more dots
the regular expression is faster."""


def ok(text: str) -> bytes:
    """A positive reply of one line (RFC 1939 section 3)."""
    return f"+OK {text}\r\n".encode()


def error(text: str) -> bytes:
    """A negative reply; ``text`` may start with a response code (RFC 2449 section 8, RFC 3206)."""
    return f"-ERR {text}\r\n".encode()


def capabilities(passwords: bool, stls: bool, delay: int) -> bytes:
    """The reply to CAPA (RFC 2449).

    :param passwords: USER and AUTH are accepted now. :param stls: STLS is accepted now.
    :param delay: minimum seconds between two logins; 0: no limit.
    """
    lines = ["+OK capability list follows", "TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "UTF8"]
    if passwords:
        lines += ["USER", "SASL PLAIN"]
    if stls:
        lines.append("STLS")
    if delay:
        lines.append(f"LOGIN-DELAY {delay}")
    # Only DELE deletes mail, not its age: EXPIRE NEVER (RFC 2449 section 6.7).
    lines += ["EXPIRE NEVER", "IMPLEMENTATION mailgroup", ".", ""]
    return "\r\n".join(lines).encode()


def _needs_stuffing(piece: bytes) -> bool:
    """Whether a line other than the first starts with a dot.

    Most bytes are attachments in base64, which has no dots, and the search for one octet is the fastest.
    """
    at = piece.find(b".", 1)
    for _ in range(_MAX_DOT_CHECKS + len(piece) // 1024):
        if at < 0:
            return False
        if piece[at - 1] == 10:
            return True
        at = piece.find(b".", at + 1)
    return at >= 0 and _DOTTED_LINE.search(piece, at - 1) is not None


class StuffedReply:
    """Encodes one mail, piece by piece, as the body of a multi-line reply (RFC 1939 section 3).

    A dot at the start of a line is doubled. A line starts after every LF, so clients that accept a lone LF as a line
    end find no line of one dot inside a mail either.
    """

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        """Start a reply."""
        self._tail = b"\r\n"  # the end of the line before

    def put(self, piece: bytes) -> bytes:
        """Return the next piece, dot-stuffed."""
        stuffed = piece.replace(b"\n.", b"\n..") if _needs_stuffing(piece) else piece
        if self._tail.endswith(b"\n") and piece.startswith(b"."):
            stuffed = b"." + stuffed
        self._tail = piece[-2:] if len(piece) > 1 else (self._tail + piece)[-2:]
        return stuffed

    def end(self) -> bytes:
        """Return the end of the reply: a line of one dot."""
        return END if self._tail == b"\r\n" else b"\r\n" + END


def retr_reply(body: bytes) -> bytes:
    """The whole reply to RETR for a mail that is loaded."""
    if body.endswith(b"\r\n") and not body.startswith(b".") and not _needs_stuffing(body):
        return b"".join((b"+OK %d octets\r\n" % len(body), body, END))
    stuffing = StuffedReply()
    return b"".join((b"+OK %d octets\r\n" % len(body), stuffing.put(body), stuffing.end()))


class TopCutter:
    """Cuts a mail, piece by piece, to its header, the blank line and the first lines of its body (RFC 1939, TOP)."""

    __slots__ = ("_in_header", "_lines_left", "_tail", "done")

    def __init__(self, lines: int) -> None:
        """:param lines: of the body."""
        self._lines_left = lines
        self._in_header = True
        self._tail = b"\n"  # a mail that starts with a blank line has an empty header
        self.done = False

    def cut(self, piece: bytes) -> bytes:
        """Return the part of the next piece that belongs to the reply. ``done`` is set after the last part."""
        start = 0
        if self._in_header:
            joined = self._tail + piece
            blank = _BLANK_LINE.search(joined)
            if blank is None:
                self._tail = joined[-2:]
                return piece
            self._in_header = False
            start = blank.end() - len(self._tail)
        lines = piece.count(b"\n", start)
        if lines < self._lines_left:
            self._lines_left -= lines
            return piece
        for _ in range(self._lines_left):
            start = piece.index(b"\n", start) + 1
        self.done = True
        return piece[:start]
