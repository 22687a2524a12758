"""Dot-stuffing: every dot at the start of a line is doubled (RFC 1939 section 3, RFC 5321 section 4.5.2). Pure."""

from __future__ import annotations

import re

_DOT_LINE = re.compile(rb"\n\.")
_LONE_CR_OR_LF = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_SEARCHES = 24
"""Single dots that ``has_dot_line`` checks one by one, plus one for each KiB: about as many as a header has. With more
dots, the regular expression is faster."""


def has_dot_line(piece: bytes) -> bool:
    """Whether a line starts with a dot; the start of ``piece`` does not count as the start of a line.

    Most octets of mail are base64, which has no dots, and the search for one octet is the fastest one.
    """
    at = piece.find(b".", 1)
    for _ in range(_SEARCHES + len(piece) // 1024):
        if at < 0:
            return False
        if piece[at - 1] == ord("\n"):
            return True
        at = piece.find(b".", at + 1)
    return at >= 0 and _DOT_LINE.search(piece, at - 1) is not None


class DotStuffer:
    """Doubles the dots of one mail, piece by piece. Line ends stay as they are.

    A line starts after every LF. A client that accepts a lone LF as a line end thus finds no line of one dot either.
    """

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the last two octets; the start of the mail is the start of a line

    def feed(self, piece: bytes) -> bytes:
        """Return the next piece, stuffed."""
        stuffed = piece.replace(b"\n.", b"\n..") if has_dot_line(piece) else piece
        if piece.startswith(b".") and self._tail.endswith(b"\n"):
            stuffed = b"." + stuffed
        self._tail = piece[-2:] if len(piece) > 1 else (self._tail + piece)[-2:]
        return stuffed

    def finish(self) -> bytes:
        """Return what has to precede the final dot after the last piece: a CRLF if the mail does not end with one."""
        return b"" if self._tail == b"\r\n" else b"\r\n"


class CrlfDotStuffer(DotStuffer):
    """Doubles the dots and makes every line end a CRLF, as SMTP demands (RFC 5321 section 2.3.8).

    A lone CR or LF becomes a CRLF, wherever the pieces are cut. No server can thus find a second end of the mail.
    """

    __slots__ = ("_cr",)

    def __init__(self) -> None:
        super().__init__()
        self._cr = b""  # a CR at the end of the last piece: the next piece may begin with its LF

    def feed(self, piece: bytes) -> bytes:
        """Return what to send for the next piece. A CR at its end is held back until the next call."""
        data = self._cr + piece
        self._cr = b""
        if data.endswith(b"\r"):
            data, self._cr = data[:-1], b"\r"
        if not data.count(b"\r\n") == data.count(b"\r") == data.count(b"\n"):
            data = _LONE_CR_OR_LF.sub(b"\r\n", data)
        return super().feed(data)

    def finish(self) -> bytes:
        """Return what has to precede the final dot after the last piece: a CRLF if the mail does not end with one."""
        return b"\r\n" if self._cr else super().finish()
