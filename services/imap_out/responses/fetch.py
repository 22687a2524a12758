"""FETCH responses (RFC 3501 section 7.4.2, RFC 3516, RFC 7162): flags, and texts, which may be streamed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from services.imap_out.grammar.fetch_items import FetchAttribute
from services.imap_out.responses.strings import astring, flag_list

END = b")\r\n"


def start(number: int) -> bytes:
    """Return the beginning of the response for a message number; items follow, with blanks between, then ``END``."""
    return b"* %d FETCH (" % number


def response(number: int, items: Iterable[bytes]) -> bytes:
    """Format a whole response."""
    return b"* %d FETCH (%b)\r\n" % (number, b" ".join(items))


def uid(value: int) -> bytes:
    """Format UID."""
    return b"UID %d" % value


def flags(names: Iterable[str]) -> bytes:
    """Format FLAGS."""
    return b"FLAGS " + flag_list(names)


def modseq(value: int) -> bytes:
    """Format MODSEQ (RFC 7162 section 3.1.4.2)."""
    return b"MODSEQ (%d)" % value


def binary_size(attribute: FetchAttribute, octets: int) -> bytes:
    """Format BINARY.SIZE (RFC 3516 section 4.2)."""
    return b"%b %d" % (label(attribute), octets)


def text(attribute: FetchAttribute, octets: bytes) -> tuple[bytes, bytes]:
    """Format a text that is in memory, in two pieces: the octets are not copied."""
    has_nul = attribute.name.startswith("BINARY") and b"\0" in octets
    return announced(attribute, len(octets), has_nul), octets if has_nul else octets.replace(b"\0", b"\x80")


def announced(attribute: FetchAttribute, octets: int, has_nul: bool = False) -> bytes:
    """Return the beginning of a text of so many octets, which follow.

    :param has_nul: they may have NULs: a literal8, for BINARY only. Without it the sender of the octets replaces each
        NUL by 0x80, which no literal may have (RFC 3501 section 9, CHAR8).
    """
    return b"%b %b{%d}\r\n" % (label(attribute), b"~" if has_nul else b"", octets)


@lru_cache(1_000)
def label(attribute: FetchAttribute) -> bytes:
    """Return the name of an item with its section and the first octet of a partial one."""
    section = attribute.section
    if section is None:
        return attribute.name.encode("ascii")
    name = ".".join((*map(str, section.part), *([section.text] if section.text else []))).encode("ascii")
    if section.fields:
        name += b" (" + b" ".join(map(astring, section.fields)) + b")"
    first = b"<%d>" % attribute.partial[0] if attribute.partial else b""
    return attribute.name.removesuffix("[]").encode("ascii") + b"[" + name + b"]" + first
