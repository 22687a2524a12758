"""Parses Content-Type, Content-Disposition and their relatives (RFC 2045 section 5.1, RFC 2183, RFC 2231). Tolerant.

The values are the octets of the mail, not decoded: FETCH BODYSTRUCTURE returns them so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

MAX_PARAMETERS = 50
"""Parameters of one field that are read."""
MAX_VALUE = 8_192
"""Octets of one field's value that are read."""
OFTEN_OCTETS = 100
"""Longest Content-Type that is remembered: octets."""

_FOLD = re.compile(rb"[\r\n]+")
_BLANKS = re.compile(rb"[ \t\r\n]+")
_WORD = rb'[^\x00-\x20()<>@,;:\\"/\[\]?=\x7f]++'
_TOKEN = re.compile(rb"[ \t]*+(" + _WORD + rb")")
_PARAMETER = re.compile(
    rb"[;\s]*+(" + _WORD + rb')\s*+=\s*+(?:"((?:[^"\\]++|\\.)*+)"?+|([^;"\s]*+))',
    re.DOTALL,
)
_NEXT = re.compile(rb'(?:[^;"]++|"(?:[^"\\]++|\\.)*+"?+)*+;', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_SECTION = re.compile(rb"([^*]+)\*(\d{1,4})(\*?)")

Parameters = tuple[tuple[bytes, bytes], ...]
"""Names and values, in order."""


class ContentField(NamedTuple):
    """A value with parameters. value: as written, of Content-Type with its slash."""

    value: bytes
    parameters: Parameters

    def parameter(self, name: bytes) -> bytes | None:
        """Return the first parameter of this name (in lower case); None if there is none."""
        return next((value for known, value in self.parameters if known.lower() == name), None)


def parse_content_type(raw: bytes) -> ContentField | None:
    """Parse ``type/subtype; name=value``; None if there is no type."""
    return _parse_often(raw) if len(raw) <= OFTEN_OCTETS else _parse_content_type(raw)


@lru_cache(500)
def _parse_often(raw: bytes) -> ContentField | None:
    """Parse what other parts have, too."""
    return _parse_content_type(raw)


def _parse_content_type(raw: bytes) -> ContentField | None:
    text = _cleaned(raw)
    kind = _TOKEN.match(text)
    if kind is None:
        return None
    end = kind.end()
    slash = text.find(b"/", end)
    subtype = None
    if slash >= 0 and not text[end:slash].strip():
        subtype = _TOKEN.match(text, slash + 1)
        end = subtype.end() if subtype else slash + 1
    value = kind[1] + b"/" + (subtype[1] if subtype else b"")
    return ContentField(value, parse_parameters(text, end)) if subtype else None


def parse_disposition(raw: bytes) -> ContentField | None:
    """Parse ``attachment; filename=x``; None if there is no kind."""
    text = _cleaned(raw)
    kind = _TOKEN.match(text)
    return ContentField(kind[1], parse_parameters(text, kind.end())) if kind else None


def parse_token(raw: bytes) -> bytes | None:
    """Parse a single word: Content-Transfer-Encoding (RFC 2045 section 6.1); None if there is none."""
    found = _TOKEN.match(_cleaned(raw))
    return found[1] if found else None


def parse_languages(raw: bytes) -> list[bytes]:
    """Parse Content-Language: tags between commas (RFC 3282)."""
    found = (_TOKEN.match(piece) for piece in _cleaned(raw).split(b",")[:MAX_PARAMETERS])
    return [one[1] for one in found if one]


def unfolded(raw: bytes) -> bytes:
    """Return a value without line ends and blanks around it."""
    return _FOLD.sub(b"", raw[:MAX_VALUE]).strip(b" \t")


def collapsed(raw: bytes) -> bytes:
    """Return an unstructured value with a single blank in place of blanks and line ends."""
    return _BLANKS.sub(b" ", raw[:MAX_VALUE]).strip(b" ")


def _cleaned(raw: bytes) -> bytes:
    """Return a value without line ends and comments (RFC 5322 section 3.2.2)."""
    text = unfolded(raw)
    return _without_comments(text) if b"(" in text else text


def _without_comments(text: bytes) -> bytes:
    kept = bytearray()
    depth, quoted, position = 0, False, 0
    while position < len(text):
        octet = text[position : position + 1]
        if octet == b"\\":
            octet = text[position : position + 2]
        elif octet == b'"' and not depth:
            quoted = not quoted
        elif octet == b"(" and not quoted:
            depth += 1
        position += len(octet)
        if not depth:
            kept += octet
        elif octet == b")" and not quoted:
            depth -= 1
    return bytes(kept)


def parse_parameters(text: bytes, position: int) -> Parameters:
    """Parse parameters, and join those that RFC 2231 section 3 has split. The joined ones come last."""
    plain: list[tuple[bytes, bytes]] = []
    split: dict[bytes, dict[int, tuple[bytes, bool]]] = {}
    for _ in range(MAX_PARAMETERS):
        start = _NEXT.match(text, position)
        if start is None:
            break
        found = _PARAMETER.match(text, start.end())
        if found is None:
            position = start.end()
            continue
        position = found.end()
        value = _ESCAPED.sub(rb"\1", found[2]) if found[2] is not None else found[3]
        section = _SECTION.fullmatch(found[1])
        if section is None:
            plain.append((found[1], value))
        else:
            split.setdefault(section[1], {}).setdefault(int(section[2]), (value, bool(section[3])))
    return (*plain, *(_joined(name, split[name]) for name in sorted(split)))


def _joined(name: bytes, pieces: dict[int, tuple[bytes, bool]]) -> tuple[bytes, bytes]:
    """Join the pieces 0, 1, …; the name keeps its ``*`` if one of them is encoded."""
    values = []
    for number in range(len(pieces)):
        if number not in pieces:
            break
        values.append(pieces[number])
    if not any(encoded for _, encoded in values):
        return name, b"".join(value for value, _ in values)
    return name + b"*", b"".join(value if encoded else value.replace(b"%", b"%25") for value, encoded in values)
