"""Folds the lines of a header that are longer than servers accept (RFC 5322 section 2.1.1). Pure, over bytes."""

from __future__ import annotations

import re

from services.sender.header_fields import FIELDS
from shared.mime import headers

MAX_LINE_OCTETS = 998
"""Limits a line of a header, without its line end: octets (RFC 5322 section 2.1.1)."""
_LISTS = frozenset(
    {"references", "in-reply-to", *(key for key, treatment in FIELDS.items() if treatment == "mailboxes")}
)
"""Fields in which a blank may be added after a comma or between two ids."""
_BLANKS = re.compile(rb"[ \t]++(?=[^ \t])")
_LIST_BREAKS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[ \t]++(?=[^ \t])|(?<=,)(?=[^ \t])|(?<=>)(?=<)')
_BEGINNING = re.compile(rb"(?:[!-9;-~]++[ \t]*+:)?[ \t]*+")


def fold_long_lines(header: bytes) -> bytes:
    """Fold each line of more than ``MAX_LINE_OCTETS`` at blanks, in lists also between two members.

    A line without such a place stays as it is.
    """
    if max(map(len, header.split(b"\n"))) <= MAX_LINE_OCTETS:
        return header
    edits = [
        (field.start, field.end, _fold_field(header[field.start : field.end], field.key in _LISTS))
        for field in headers.iterate_fields(header)
    ]
    return headers.splice(header, edits)


def _fold_field(field: bytes, is_list: bool) -> bytes:
    return b"\n".join(_fold_line(line, is_list) if len(line) > MAX_LINE_OCTETS else line for line in field.split(b"\n"))


def _fold_line(line: bytes, is_list: bool) -> bytes:
    """Return the line in parts, as few as possible; no part is blank or has a field's name alone."""
    text = line.removesuffix(b"\r")
    beginning = _BEGINNING.match(text)
    first = beginning.end() + 1 if beginning else 1
    places = [
        match.start()
        for match in (_LIST_BREAKS if is_list else _BLANKS).finditer(text, first)
        if not match[0].startswith(b'"')
    ]
    parts = []
    start = fold = 0
    for place in [*places, len(text)]:
        if place - start >= MAX_LINE_OCTETS and fold > start:  # a blank may be added to a part
            parts.append(text[start:fold])
            start = fold
        fold = place
    parts.append(text[start:])
    folded = parts[0] + b"".join(b"\r\n" + (b"" if part[:1] in b" \t" else b" ") + part for part in parts[1:])
    return folded + line[len(text) :]
