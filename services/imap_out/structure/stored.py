"""What FETCH needs to know of a mail beyond its octets, computed once and kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from services.imap_out.structure.body_structure import format_structure
from services.imap_out.structure.content_fields import parse_token
from services.imap_out.structure.envelope import format_envelope
from services.imap_out.structure.mime_parser import MimeParser, MimePart

VERSION = 1
"""Form of the kept structure; one of another version is computed again."""


class PartSpan(NamedTuple):
    """A part of a mail, or the mail (the first one). Positions are octets from the start of the mail."""

    parent: int  # index of the part around it; -1: the mail
    kind: str  # type/subtype in lower case
    form: str  # leaf, multipart, or message: its only child is a mail
    start: int  # of its header
    body_start: int
    body_end: int
    encoding: str = "7bit"  # Content-Transfer-Encoding in lower case
    charset: str = ""  # the label of a text; '': there is none


@dataclass(frozen=True, slots=True)
class MailStructure:
    """The structure of a mail. The first three are as FETCH sends them, in every session."""

    envelope: bytes
    body: bytes
    bodystructure: bytes
    parts: tuple[PartSpan, ...]  # each one behind the part around it, in the order of the mail

    def encode(self) -> bytes:
        """Return the form that is stored."""
        texts = (text.decode("latin-1") for text in (self.envelope, self.body, self.bodystructure))
        return json.dumps([VERSION, *texts, self.parts], separators=(",", ":")).encode("ascii")

    def children(self, index: int) -> list[int]:
        """Return the indexes of the parts directly in this one."""
        return [number for number, part in enumerate(self.parts) if part.parent == index]


def decode_structure(stored: bytes) -> MailStructure | None:
    """Return a structure from its stored form; None if it is of another version."""
    version, *values = json.loads(stored)
    if version != VERSION:
        return None
    envelope, body, bodystructure, parts = values
    spans = tuple(PartSpan(*part) for part in parts)
    return MailStructure(envelope.encode("latin-1"), body.encode("latin-1"), bodystructure.encode("latin-1"), spans)


class StructureReader:
    """Reads the structure of a mail while its octets arrive. Feed all of them, then call ``finish``."""

    def __init__(self) -> None:
        """Begin with no octets."""
        self._parser = MimeParser()
        self.feed = self._parser.feed

    def finish(self) -> MailStructure:
        """Return the structure, after all octets."""
        mail = self._parser.finish()
        return MailStructure(
            format_envelope(mail),
            format_structure(mail, extended=False),
            format_structure(mail, extended=True),
            tuple(_spans(mail, -1, [])),
        )


def read_structure(pieces: Iterable[bytes]) -> MailStructure:
    """Return the structure of the mail that these octets are."""
    reader = StructureReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def _spans(part: MimePart, parent: int, known: list[None]) -> Iterator[PartSpan]:
    """Yield a part and those in it. :param known: as many elements as parts have been yielded."""
    index = len(known)
    known.append(None)
    raw = part.value("content-transfer-encoding")
    encoding = parse_token(raw) if raw is not None else None
    charset = part.content_type.parameter(b"charset") if part.content_type else None
    yield PartSpan(
        parent,
        part.kind.decode("latin-1"),
        "multipart" if part.is_multipart else "message" if part.is_message else "leaf",
        *(part.start, part.body_start, part.body_end),
        (encoding or b"7bit").decode("latin-1").lower(),
        (charset or b"").decode("latin-1"),
    )
    for child in part.children:
        yield from _spans(child, index, known)
