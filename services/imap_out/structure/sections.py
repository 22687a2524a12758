"""Finds the octets of a section of a mail (RFC 3501 section 6.4.5, RFC 3516)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from services.imap_out.grammar.fetch_items import Section
from services.imap_out.structure.stored import MailStructure, PartSpan, children
from shared.mime import headers


class SectionSpan(NamedTuple):
    """Octets of a mail. names: only these header fields (``filter_header``); None: all octets."""

    start: int
    end: int
    names: frozenset[bytes] | None = None  # in upper case
    negated: bool = False  # all fields but these

    def clipped(self, partial: tuple[int, int] | None) -> SectionSpan:
        """Return the part that FETCH asks for by ``<first.count>``. :param partial: None: all."""
        if partial is None:
            return self
        start = min(self.start + partial[0], self.end)
        return self._replace(start=start, end=min(start + partial[1], self.end))


NOTHING = SectionSpan(0, 0)
"""The section of a part that is not there: other servers send the empty string, too."""


def needs_structure(section: Section) -> bool:
    """Whether the section is found with the structure only, and not with the end of the header alone."""
    return bool(section.part)


def section_span(section: Section, header_end: int, octets: int, structure: MailStructure | None = None) -> SectionSpan:
    """Return where a section is.

    :param header_end: start of the body of the mail. :param octets: of the mail.
    :param structure: None if ``needs_structure`` is false.
    """
    start, body_start, end = 0, header_end, octets
    is_mail = True
    if section.part:
        parts = structure.parts if structure is not None else ()
        index = find_part(parts, section.part)
        if index is None:
            return NOTHING
        part = parts[index]
        if section.text in ("", "MIME"):
            # a mail that is no multipart is its own part 1, with its own header (RFC 3501 section 6.4.5)
            start, end = (part.start, part.body_start) if section.text else (part.body_start, part.body_end)
            return SectionSpan(start, end)
        is_mail = part.form == "message"
        if is_mail:
            mail = parts[children(parts, index)[0]]
            start, body_start, end = mail.start, mail.body_start, mail.body_end
    if not is_mail:
        return NOTHING
    match section.text:
        case "":
            return SectionSpan(start, end)
        case "TEXT":
            return SectionSpan(body_start, end)
        case "HEADER":
            return SectionSpan(start, body_start)
    return SectionSpan(start, body_start, frozenset(section.fields), section.text.endswith(".NOT"))


def find_part(parts: Sequence[PartSpan], numbers: Collection[int]) -> int | None:
    """Return the index of a part by its numbers; None if there is none.

    A mail that is no multipart has one part, 1, which is its body; so has a mail within a mail. Other servers give
    every other part without parts the same one, so clients may count on it.
    """
    if not parts:
        return None
    index = 0
    is_mail, is_own = True, False  # the part is a mail; its number 1, which is itself, has been named
    for number in numbers:
        part = parts[index]
        if part.form == "message" and not is_mail:
            index = children(parts, index)[0]
            part = parts[index]
            is_mail, is_own = True, False
        if part.form == "multipart":
            within = children(parts, index)
            if number > len(within):
                return None
            index, is_mail, is_own = within[number - 1], False, False
        elif number == 1 and not is_own:
            is_mail, is_own = False, True
        else:
            return None
    return index


def leaf_span(structure: MailStructure, numbers: Collection[int]) -> PartSpan | None:
    """Return the part whose decoded octets BINARY wants; None if it is none, or has parts in it."""
    parts = structure.parts
    index = find_part(parts, numbers)
    part = parts[index] if index is not None else None
    return part if part is not None and part.form != "multipart" else None


def filter_header(header: bytes, names: frozenset[bytes], negated: bool = False) -> bytes:
    """Return the fields of a header with these names, or all others, and the blank line (RFC 3501 section 6.4.5)."""
    kept = []
    for line in headers.iterate_fields(header):
        if (line.name.upper().encode("ascii") in names) != negated:
            kept.append(header[line.start : line.end])
    return b"".join(kept) + b"\r\n"
