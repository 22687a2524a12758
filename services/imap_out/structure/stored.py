"""What FETCH needs to know of a mail beyond its octets, computed once and kept."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.imap_out.structure.body_structure import format_structures
from services.imap_out.structure.content_fields import parse_token
from services.imap_out.structure.envelope import format_envelope
from services.imap_out.structure.mime_parser import MimeParser, MimePart, parse_whole

VERSION = 2
"""Form of the kept structure; one of another version is computed again."""
_HEAD = struct.Struct(">BIII")
"""Begins the kept structure: its version, and the octets of the three texts, which follow before the parts."""
_encode_parts = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
"""Made once: with separators of its own, ``json.dumps`` makes an encoder for each call."""


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
    """The structure of a mail. The first three are as FETCH sends them, in every session. encoded_parts: as JSON."""

    envelope: bytes
    body: bytes
    bodystructure: bytes
    encoded_parts: bytes

    @property
    def parts(self) -> tuple[PartSpan, ...]:
        """The parts, each one behind the part around it, in the order of the mail; decoded with each use."""
        return tuple(PartSpan(*part) for part in json.loads(self.encoded_parts))

    @property
    def octets(self) -> int:
        """About the memory of the structure."""
        return len(self.envelope) + len(self.body) + len(self.bodystructure) + len(self.encoded_parts) + 300

    def encode(self) -> bytes:
        """Return the form that is stored."""
        head = _HEAD.pack(VERSION, len(self.envelope), len(self.body), len(self.bodystructure))
        return b"".join((head, self.envelope, self.body, self.bodystructure, self.encoded_parts))


def decode_structure(stored: bytes) -> MailStructure | None:
    """Return a structure from its stored form; None if it is of another version."""
    if stored[:1] != bytes((VERSION,)):
        return None
    _, envelope, body, bodystructure = _HEAD.unpack_from(stored)
    body_start = _HEAD.size + envelope
    bodystructure_start = body_start + body
    parts_start = bodystructure_start + bodystructure
    return MailStructure(
        stored[_HEAD.size : body_start],
        stored[body_start:bodystructure_start],
        stored[bodystructure_start:parts_start],
        stored[parts_start:],
    )


def children(parts: Sequence[PartSpan], index: int) -> list[int]:
    """Return the indexes of the parts directly in the one at an index."""
    return [number for number, part in enumerate(parts) if part.parent == index]


class StructureReader:
    """Reads the structure of a mail while its octets arrive. Feed all of them, then call ``finish``."""

    def __init__(self) -> None:
        """Begin with no octets."""
        self._parser = MimeParser()
        self.feed = self._parser.feed

    def finish(self) -> MailStructure:
        """Return the structure, after all octets."""
        return _structure_of(self._parser.finish())


def _structure_of(mail: MimePart) -> MailStructure:
    body, bodystructure = format_structures(mail)
    return MailStructure(
        format_envelope(mail),
        body,
        bodystructure,
        _encode_parts(list(_spans(mail, -1, []))).encode("ascii"),
    )


def read_structure(pieces: Iterable[bytes]) -> MailStructure:
    """Return the structure of the mail that these octets are."""
    reader = StructureReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def read_whole(octets: bytes) -> MailStructure:
    """Return the structure of the mail that these octets are, as ``read_structure``."""
    return _structure_of(parse_whole(octets))


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
