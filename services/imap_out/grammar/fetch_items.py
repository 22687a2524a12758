"""Parses what FETCH asks for (RFC 3501 section 6.4.5, RFC 3516, RFC 7162)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.imap_out.grammar.errors import CommandError
from services.imap_out.grammar.reader import ArgumentReader

MAX_ITEMS = 200
"""Items of one FETCH."""
MAX_FIELDS = 500
"""Names of header fields in one section; K-9 and Thunderbird ask for some 20."""
MAX_PART_NUMBERS = 100
"""Depth of a part that can be named; deeper ones are not in the structure either."""

_SIMPLE = frozenset(
    (
        *("ENVELOPE", "FLAGS", "INTERNALDATE", "RFC822.SIZE", "BODYSTRUCTURE", "BODY", "UID", "MODSEQ"),
        *("RFC822", "RFC822.HEADER", "RFC822.TEXT"),
    )
)
_FAST = ("FLAGS", "INTERNALDATE", "RFC822.SIZE")
_MACROS = {"FAST": _FAST, "ALL": (*_FAST, "ENVELOPE"), "FULL": (*_FAST, "ENVELOPE", "BODY")}
_NAME = re.compile(rb"[A-Za-z0-9.]++")
_SECTION = re.compile(rb"([0-9.]*)([A-Za-z.]*)")
_NUMBERS = re.compile(rb"(?:[1-9]\d{0,8}(?:\.[1-9]\d{0,8})*)?")
_PARTIAL = re.compile(rb"<(\d{1,19})\.(\d{1,19})>")
_TEXTS = frozenset(("", "HEADER", "HEADER.FIELDS", "HEADER.FIELDS.NOT", "TEXT", "MIME"))


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a mail (RFC 3501 section 6.4.5).

    part: numbers of the part; () is the mail. text: '', HEADER, HEADER.FIELDS, HEADER.FIELDS.NOT, TEXT or MIME.
    fields: names in upper case.
    """

    part: tuple[int, ...] = ()
    text: str = ""
    fields: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchAttribute:
    """An item of FETCH.

    name: ENVELOPE, FLAGS, INTERNALDATE, RFC822.SIZE, BODYSTRUCTURE, BODY (the structure), UID, MODSEQ, RFC822,
    RFC822.HEADER, RFC822.TEXT, or with a section BODY[], BINARY[] and BINARY.SIZE[].
    """

    name: str
    section: Section | None = None
    peek: bool = True  # does not set \Seen
    partial: tuple[int, int] | None = None  # first octet and number of octets

    @property
    def source(self) -> Section | None:
        """The section that the value is made of, also for RFC822 and its relatives; None if it is no text."""
        return self.section if self.section is not None else _OLD_NAMES.get(self.name)


_OLD_NAMES = {"RFC822": Section(), "RFC822.HEADER": Section(text="HEADER"), "RFC822.TEXT": Section(text="TEXT")}


def read_items(reader: ArgumentReader) -> tuple[FetchAttribute, ...]:
    """Read a macro, an item, or items in parentheses. :raises CommandError: one is unknown or malformed."""
    if not reader.skips(b"("):
        position = reader.position
        found = reader.match(_NAME)
        macro = _MACROS.get(found[0].decode().upper()) if found else None
        if macro and reader.peek() in (b"", b" "):
            return tuple(map(FetchAttribute, macro))
        reader.position = position
        return (_read_item(reader),)
    items: dict[FetchAttribute, None] = {}
    while not reader.skips(b")"):
        items[_read_item(reader)] = None
        if len(items) > MAX_ITEMS:
            raise CommandError(f"FETCH has more than {MAX_ITEMS} items")
        reader.skips_space()
    if not items:
        raise CommandError("FETCH has no items")
    return tuple(items)


def _read_item(reader: ArgumentReader) -> FetchAttribute:
    found = reader.match(_NAME)
    name = found[0].decode().upper() if found else ""
    if not reader.skips(b"["):
        if name not in _SIMPLE:
            raise CommandError("FETCH has an unknown item")
        return FetchAttribute(name, peek=name not in ("RFC822", "RFC822.TEXT"))
    kind = name.removesuffix(".PEEK")
    if kind not in ("BODY", "BINARY", "BINARY.SIZE") or (kind == "BINARY.SIZE" and name != kind):
        raise CommandError("FETCH has an unknown item with a section")
    section = _read_section(reader, kind)
    partial = None
    if kind != "BINARY.SIZE" and reader.peek() == b"<":
        partial = _read_partial(reader)
    return FetchAttribute(f"{kind}[]", section, name != kind or kind == "BINARY.SIZE", partial)


def _read_section(reader: ArgumentReader, kind: str) -> Section:
    found = reader.match(_SECTION)
    numbers, text = (found[1], found[2].decode().upper()) if found else (b"", "")
    if text and numbers:
        numbers = numbers[:-1] if numbers.endswith(b".") and len(numbers) > 1 else b"."
    if not _NUMBERS.fullmatch(numbers) or numbers.count(b".") >= MAX_PART_NUMBERS:
        raise CommandError(f"{kind}[: the part's number is malformed")
    part = tuple(map(int, numbers.split(b"."))) if numbers else ()
    if text not in _TEXTS or (text == "MIME" and not part) or (text and kind != "BODY"):
        raise CommandError(f"{kind}[: the section is unknown")
    fields = _read_fields(reader) if text.startswith("HEADER.FIELDS") else ()
    reader.expect(b"]", f"{kind}[")
    return Section(part, text, fields)


def _read_fields(reader: ArgumentReader) -> tuple[bytes, ...]:
    """Read the names of header fields. A ``]`` is no character of a name (RFC 5322 section 2.2 allows it)."""
    what = "the names of header fields"
    reader.space(what)
    reader.expect(b"(", what)
    fields = []
    while not reader.skips(b")"):
        fields.append(reader.astring(what).upper())
        if len(fields) > MAX_FIELDS:
            raise CommandError(f"{what} are more than {MAX_FIELDS}")
        reader.skips_space()
    if not fields:
        raise CommandError(f"{what} are missing")
    return tuple(fields)


def _read_partial(reader: ArgumentReader) -> tuple[int, int]:
    found = reader.match(_PARTIAL)
    if found is None or not 0 < int(found[2]) < 2**63 or int(found[1]) >= 2**63:  # RFC 9051 section 9, number64
        raise CommandError("FETCH: the octets of a partial section are malformed: <first.count>, with a count from 1")
    return int(found[1]), int(found[2])
