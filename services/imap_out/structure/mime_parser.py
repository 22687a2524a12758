"""Finds the parts of a mail while its octets arrive in pieces of any size (RFC 2046 section 5.1). Pure.

The parser keeps the header of the current part and as many octets as a boundary is long. It reads what other programs
read: a lone LF is a line end, a boundary may be followed by anything, an inner part ends at an outer boundary, and one
without an end ends with the mail. Every limit makes the rest of the mail a part of what was found before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.imap_out.structure.content_fields import ContentField, parse_content_type
from shared.mime import headers

MAX_DEPTH = 50
"""Parts in parts; deeper ones are not looked for."""
MAX_PARTS = 1_000
"""Parts of a mail."""
HEADER_OCTETS = 256 * 1024
"""Octets of one header of which fields are read."""
ALL_HEADERS_OCTETS = 2 * 1024 * 1024
"""Octets of all headers of a mail of which fields are read."""
MAX_BOUNDARY = 1_000
"""Octets of a boundary that are compared (RFC 2046 section 5.1.1 allows 70)."""

_BLANK_LINE = re.compile(rb"\n\r?\n")
_WANTED = frozenset(
    (
        *("content-type", "content-transfer-encoding", "content-id", "content-description", "content-disposition"),
        *("content-md5", "content-language", "content-location"),
    )
)
_OF_ENVELOPE = frozenset(
    ("date", "subject", "from", "sender", "reply-to", "to", "cc", "bcc", "in-reply-to", "message-id")
)
_TEXT = b"text/plain"
_MESSAGE = b"message/rfc822"


@dataclass(slots=True)
class MimePart:
    """A part of a mail, or the mail. Positions are octets from the start of the mail."""

    start: int  # of its header
    body_start: int = 0  # behind the blank line
    body_end: int = 0  # before the line end that belongs to the boundary
    lines: int = 0  # line ends in the body
    fields: dict[str, list[bytes]] = field(default_factory=dict)  # raw values of wanted fields, by name in lower case
    content_type: ContentField | None = None  # None: there is none, or it is malformed
    kind: bytes = _TEXT  # type/subtype in lower case, with the default of RFC 2045 section 5.2
    children: list[MimePart] = field(default_factory=list)
    is_multipart: bool = False  # its children are parts between boundaries
    is_message: bool = False  # its child is a mail: message/rfc822

    def value(self, name: str) -> bytes | None:
        """Return the first raw value of a field; None if there is none."""
        return self.fields[name][0] if name in self.fields else None


class MimeParser:
    """A mail that is being read. Feed all octets, then call ``finish``."""

    def __init__(self) -> None:
        """Begin with the header of the mail."""
        self._buffer = b"\n"  # the first line of the mail begins behind a line end, too
        self._base = -1  # position of the buffer's first octet
        self._searched = 0  # index in the buffer: nothing is found before it
        self._counted = 0  # position up to which line ends are counted
        self._line_ends = 0
        self._ended = False
        self._parts = 1
        self._headers_left = ALL_HEADERS_OCTETS
        self._header = b""  # the beginning of a header that is longer than the buffer
        self._root = MimePart(0)
        self._path = [self._root]  # open parts
        self._line_ends_at = {0: 0}  # by index in the path: line ends before the body
        self._boundaries: list[tuple[bytes, int]] = []  # with the index of their multipart in the path
        self._pattern: re.Pattern[bytes] | None = None
        self._longest = 0  # octets of the longest boundary
        self._step = self._read_header
        self._after_line = self._read_body  # the step behind the line of a boundary

    def feed(self, octets: bytes) -> None:
        """Take the next octets."""
        self._buffer = self._buffer + octets if self._buffer else octets
        while self._step():
            pass

    def finish(self) -> MimePart:
        """Return the mail, after all octets."""
        self._ended = True
        while self._step():
            pass
        self._close(0, self._base + len(self._buffer))
        return self._root

    # ------------------------------------------------------------------------------------------ steps
    # A step returns whether another one can be done before more octets come.

    def _read_header(self) -> bool:
        """Look for the end of the header: a blank line, or a boundary."""
        part = self._path[-1]
        blank = _BLANK_LINE.search(self._buffer, self._searched)
        edge = self._search_boundary(self._searched, blank.start() + 1 if blank else len(self._buffer))
        if edge is not None:
            self._end_header(part, edge.start() + 1)
        elif blank is not None or self._ended:
            self._end_header(part, blank.end() if blank else len(self._buffer))
        else:
            self._keep_header(part)
            return False
        return True

    def _keep_header(self, part: MimePart) -> None:
        """Drop octets of a long header, but its beginning."""
        start = max(part.start - self._base, 0)
        keep = max(len(self._buffer) - self._longest - 4, start)
        if len(self._header) < HEADER_OCTETS:
            if len(self._buffer) - start < HEADER_OCTETS:
                self._searched = max(self._searched, len(self._buffer) - self._longest - 4)
                return
            self._header = self._buffer[start : start + HEADER_OCTETS]
        self._drop(keep)
        self._searched = 0

    def _end_header(self, part: MimePart, end: int) -> None:
        """Read the fields of a header that ends before this index, and begin with the body."""
        octets = self._header or self._buffer[max(part.start - self._base, 0) : end]
        octets = octets[: min(HEADER_OCTETS, self._headers_left)]
        self._headers_left -= len(octets)
        self._header = b""
        part.body_start = part.body_end = self._base + end
        self._line_ends_at[len(self._path) - 1] = self._line_ends_before(part.body_start)
        parent = self._path[-2] if len(self._path) > 1 else None
        read_fields(part, octets, is_mail=parent is None or parent.is_message)
        read_kind(part, _MESSAGE if parent is not None and parent.kind == b"multipart/digest" else _TEXT)
        self._drop(max(end - 1, 0))  # the line end before the body may begin a boundary
        self._searched = 0
        if len(self._path) <= MAX_DEPTH and self._parts < MAX_PARTS:
            if part.kind.startswith(b"multipart/"):
                self._open_multipart(part)
            elif part.kind == _MESSAGE:
                part.is_message = True
                self._open(part.body_start)
                return
        self._step = self._read_body

    def _open_multipart(self, part: MimePart) -> None:
        """Look for the boundary of a multipart; one that names none has no parts."""
        part.is_multipart = True
        boundary = part.content_type.parameter(b"boundary") if part.content_type else None
        if boundary:
            self._boundaries.append((boundary.rstrip(b" \t")[:MAX_BOUNDARY] or boundary[:1], len(self._path) - 1))
            self._compile()

    def _open(self, start: int) -> None:
        """Begin a part behind the current path."""
        part = MimePart(start)
        self._path[-1].children.append(part)
        self._path.append(part)
        self._parts += 1
        self._step = self._read_header

    def _read_body(self) -> bool:
        """Look for a boundary."""
        edge = self._search_boundary(self._searched, len(self._buffer))
        if edge is None:
            self._drop(max(len(self._buffer) - self._longest - 4, 0))
            self._searched = 0
            return False
        if not self._is_complete(edge):
            self._searched = edge.start()
            return False
        text = edge[1]
        index = next(number for known, number in reversed(self._boundaries) if known == text)
        before = edge.start() - (edge.start() > 0 and self._buffer[edge.start() - 1 : edge.start()] == b"\r")
        self._close(index + 1, self._base + before)
        del self._path[index + 1 :]
        while self._boundaries and self._boundaries[-1][1] > index:
            self._boundaries.pop()
        if self._buffer.startswith(b"--", edge.end()):
            self._boundaries.pop()
            self._after_line = self._read_body
        else:
            self._after_line = self._open_child
        self._compile()
        self._searched = edge.end()
        self._step = self._skip_line
        return True

    def _skip_line(self) -> bool:
        """Skip the rest of the line of a boundary."""
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._drop(len(self._buffer))
            self._searched = 0
            return False
        self._drop(end)
        self._searched = 0
        self._step = self._after_line
        return True

    def _open_child(self) -> bool:
        if self._parts >= MAX_PARTS:  # what follows belongs to the multipart
            self._boundaries.clear()
            self._compile()
            self._step = self._read_body
        else:
            self._open(self._base + 1)
        return True

    # ------------------------------------------------------------------------------------------ boundaries, lines

    def _compile(self) -> None:
        """Compile the search for all boundaries in force; of two that match, the longest is meant."""
        known = {text for text, _ in self._boundaries}
        self._longest = max(map(len, known), default=0) + 2
        ordered = b"|".join(re.escape(text) for text in sorted(known, key=len, reverse=True))
        self._pattern = re.compile(rb"\n--(" + ordered + rb")") if known else None

    def _search_boundary(self, start: int, end: int) -> re.Match[bytes] | None:
        return self._pattern.search(self._buffer, start, end) if self._pattern is not None else None

    def _is_complete(self, edge: re.Match[bytes]) -> bool:
        """Whether no longer boundary, and no ``--`` behind it, may still come."""
        enough = len(self._buffer) >= edge.start() + self._longest + 3
        return enough or self._ended or self._buffer.find(b"\n", edge.end()) >= 0

    def _close(self, index: int, end: int) -> None:
        """End the bodies of the parts of the path from an index on."""
        for number in reversed(range(index, len(self._path))):  # none ends before the parts in it
            part = self._path[number]
            end = part.body_end = max(end, part.body_start)
            part.lines = self._line_ends_before(part.body_end) - self._line_ends_at.get(number, 0)

    def _line_ends_before(self, position: int) -> int:
        """Return the number of line ends before a position. The positions that are asked for never fall."""
        if position > self._counted:
            self._line_ends += self._buffer.count(b"\n", max(self._counted - self._base, 0), position - self._base)
            self._counted = position
        return self._line_ends

    def _drop(self, index: int) -> None:
        """Forget the octets of the buffer before an index."""
        if index > 0:
            self._line_ends_before(self._base + index)
            self._buffer = self._buffer[index:]
            self._base += index


def read_fields(part: MimePart, header: bytes, is_mail: bool) -> None:
    """Keep the fields of a header that a structure needs. :param is_mail: those of the envelope, too."""
    wanted = _WANTED | _OF_ENVELOPE if is_mail else _WANTED
    for name, value in headers.iterate_values(header):
        if name in wanted:
            part.fields.setdefault(name, []).append(value)


def read_kind(part: MimePart, default: bytes) -> None:
    """Read the content type. :param default: of a part without one (RFC 2046 section 5.1.5)."""
    raw = part.value("content-type")
    part.content_type = parse_content_type(raw) if raw is not None else None
    part.kind = part.content_type.value.lower() if part.content_type else default if raw is None else _TEXT


def parse_mail(pieces: Iterable[bytes]) -> MimePart:
    """Return the mail that these octets are."""
    parser = MimeParser()
    for piece in pieces:
        parser.feed(piece)
    return parser.finish()


def parse_whole(octets: bytes) -> MimePart:
    """Return the mail that these octets are, as ``parse_mail``: at a third of the time if it has no parts."""
    part = MimePart(0)
    blank = _BLANK_LINE.search(octets)
    if octets.startswith((b"\n", b"\r\n")):
        part.body_start = octets.index(b"\n") + 1
    else:
        part.body_start = blank.end() if blank else len(octets)
    read_fields(part, octets[: min(part.body_start, HEADER_OCTETS)], is_mail=True)
    read_kind(part, _TEXT)
    if part.kind.startswith(b"multipart/") or part.kind == _MESSAGE:
        return parse_mail((octets,))
    part.body_end = len(octets)
    part.lines = octets.count(b"\n", part.body_start)
    return part
