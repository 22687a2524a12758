"""Looks for texts in the body of a mail while its octets arrive (RFC 3501 section 6.4.4).

Parts with text, and reports such as message/delivery-status, are decoded in pieces that end with a line, so a large
mail is never in memory. Of HTML the text between its tags counts. Headers of mails within the mail are part of it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from services.imap_out.folding import fold_text
from services.imap_out.search.mail_texts import HEADER_OCTETS, header_text
from services.imap_out.structure.stored import MailStructure
from services.imap_out.structure.transfer_decoding import TransferDecoder
from shared.mime import charsets

PIECE_OCTETS = 64 * 1024
"""Octets of a decoded text that are compared at once; a longer line is cut."""
TAG_CHARACTERS = 4_096
"""Longest tag of HTML that is known as one if it is cut by the end of a piece: characters."""

_TAG = re.compile(r"</?([A-Za-z0-9]*+)[^<>]*+>")
_INLINE = frozenset(("a", "abbr", "b", "big", "code", "em", "font", "i", "s", "small", "span", "strong", "u", "wbr"))
"""Elements that do not end a word."""


class _Region(NamedTuple):
    """Octets of a mail that are searched."""

    start: int
    end: int
    kind: str  # header, text or html
    encoding: str
    codec: str


class BodySearch:
    """Looks for texts in the body of a mail. Feed its octets from the start of the mail, until ``done``.

    :ivar found: texts that are in the body. :ivar done: nothing is left to look for, or to look into.
    """

    def __init__(self, structure: MailStructure, texts: Collection[str]) -> None:
        """:param texts: as ``fold_text`` returns them; '' is in every body."""
        self.found: set[str] = {text for text in texts if not text}
        self._left = sorted({text for text in texts if text})
        self._regions = sorted(_regions(structure), reverse=True)  # the next one is the last
        self._position = 0
        self._reader: _RegionText | None = None
        self.done = not self._left or not self._regions

    def feed(self, octets: bytes) -> None:
        """Take the next octets."""
        start = self._position
        self._position += len(octets)
        while not self.done and self._regions[-1].start < self._position:
            region = self._regions[-1]
            if self._reader is None:
                self._reader = _RegionText(region, self._left)
            self._reader.feed(octets[max(region.start - start, 0) : region.end - start])
            if region.end > self._position:
                self._collect(self._reader)
                break
            self._end_region(self._reader)

    def finish(self) -> None:
        """End the search, after all octets."""
        if self._reader is not None:
            self._end_region(self._reader)
        self.done = True

    def _end_region(self, reader: _RegionText) -> None:
        reader.finish()
        self._collect(reader)
        self._reader = None
        self._regions.pop()
        self.done = self.done or not self._regions

    def _collect(self, reader: _RegionText) -> None:
        if reader.found:
            self.found |= reader.found
            self._left = [text for text in self._left if text not in self.found]
            reader.texts = self._left
            self.done = not self._left


def _regions(structure: MailStructure) -> Iterable[_Region]:
    parts = structure.parts
    for part in parts:
        if part.parent >= 0 and parts[part.parent].form == "message" and part.start < part.body_start:
            yield _Region(part.start, part.body_start, "header", "7bit", charsets.GUESSED)
        if part.form == "leaf" and part.kind.startswith(("text/", "message/")) and part.body_start < part.body_end:
            kind = "html" if part.kind == "text/html" else "text"
            codec = charsets.find_codec(part.charset) if part.charset else charsets.GUESSED
            yield _Region(part.body_start, part.body_end, kind, part.encoding, codec or charsets.GUESSED)


class _RegionText:
    """The text of one region."""

    def __init__(self, region: _Region, texts: Sequence[str]) -> None:
        self.texts = texts
        self.found: set[str] = set()
        self._kind = region.kind
        self._codec = region.codec
        self._decoder = TransferDecoder(region.encoding)
        self._octets = b""
        self._tag = ""  # the beginning of a tag
        self._before = ""  # the end of the text that has been compared
        self._overlap = max(map(len, texts), default=1) - 1

    def feed(self, octets: bytes) -> None:
        self._octets += self._decoder.feed(octets)
        if self._kind == "header":
            self._octets = self._octets[:HEADER_OCTETS]
        elif len(self._octets) >= PIECE_OCTETS:
            self._compare(self._cut())

    def finish(self) -> None:
        octets, self._octets = self._octets + self._decoder.finish(), b""
        self._compare(octets)

    def _cut(self) -> bytes:
        """Return octets up to a line end, or up to a whole character of UTF-16 and UTF-32."""
        end = self._octets.rfind(b"\n") + 1
        if self._codec.startswith(("utf_16", "utf_32")) or not end:
            end = len(self._octets) // 4 * 4
        piece, self._octets = self._octets[:end], self._octets[end:]
        return piece

    def _compare(self, octets: bytes) -> None:
        if self._kind == "header":
            folded = header_text(octets)
        else:
            text = charsets.decode(octets, self._codec)
            folded = fold_text(self._visible(text) if self._kind == "html" else text)
        window = self._before + folded
        self.found.update(text for text in self.texts if text in window)
        self._before = window[-self._overlap :] if self._overlap else ""

    def _visible(self, text: str) -> str:
        """Return the text between the tags."""
        text = self._tag + text
        self._tag = ""
        opened = text.rfind("<")
        if opened > text.rfind(">") and len(text) - opened < TAG_CHARACTERS:
            text, self._tag = text[:opened], text[opened:]
        return html.unescape(_TAG.sub(lambda tag: "" if tag[1].lower() in _INLINE else " ", text))
