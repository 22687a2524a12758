"""Status responses and response codes (RFC 3501 section 7.1, RFC 9051 section 7.1, RFC 5530)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from services.imap_out.number_sets import format_numbers, format_ranges

_UNPRINTABLE = re.compile(rb"[\x00-\x1f\x7f-\xff]+")
ALREADY_EXISTS = b"ALREADYEXISTS"
EXPUNGE_ISSUED = b"EXPUNGEISSUED"
NONEXISTENT = b"NONEXISTENT"
OVER_QUOTA = b"OVERQUOTA"
READ_ONLY = b"READ-ONLY"
READ_WRITE = b"READ-WRITE"
TRY_CREATE = b"TRYCREATE"
UNAVAILABLE = b"UNAVAILABLE"


def tagged(tag: str, kind: str, text: str, code: bytes | str = b"") -> bytes:
    """Format the answer to a command. :param kind: OK, NO or BAD. :param code: with arguments, without brackets."""
    return _status(tag.encode("ascii"), kind, text, code)


def untagged(kind: str, text: str, code: bytes | str = b"") -> bytes:
    """Format an untagged status response. :param kind: OK, NO, BAD, PREAUTH or BYE."""
    return _status(b"*", kind, text, code)


def continuation(text: str = "") -> bytes:
    """Format a continuation request (RFC 3501 section 7.5); the blank is wanted even without a text."""
    return b"+ " + _printable(text) + b"\r\n"


def _status(tag: bytes, kind: str, text: str, code: bytes | str) -> bytes:
    octets = code.encode("ascii", "replace") if isinstance(code, str) else code
    bracket = b"[%b] " % octets if octets else b""
    return b"%b %b %b%b\r\n" % (tag, kind.encode("ascii"), bracket, _printable(text))


@lru_cache(200)
def _printable(text: str) -> bytes:
    """Return a text for people as one line of ASCII."""
    return _UNPRINTABLE.sub(b"?", text.encode("ascii", "replace"))


def append_uid(uidvalidity: int, uid: int) -> bytes:
    """Format the code APPENDUID (RFC 4315 section 3)."""
    return b"APPENDUID %d %d" % (uidvalidity, uid)


def copy_uid(uidvalidity: int, uids: Iterable[int], new_uids: Iterable[int]) -> bytes:
    """Format the code COPYUID (RFC 4315 section 3). :param uids: ascending. :param new_uids: place by place theirs."""
    return b"COPYUID %d %b %b" % (uidvalidity, format_numbers(uids), format_numbers(new_uids))


def modified(numbers: Iterable[int]) -> bytes:
    """Format the code MODIFIED (RFC 7162 section 3.1.3). :param numbers: message numbers or UIDs, ascending."""
    return b"MODIFIED " + format_numbers(numbers)


def highest_modseq(modseq: int) -> bytes:
    """Format the code HIGHESTMODSEQ (RFC 7162 section 3.1.2.1)."""
    return b"HIGHESTMODSEQ %d" % modseq


def vanished(ranges: Iterable[tuple[int, int]], earlier: bool = False) -> bytes:
    """Format VANISHED (RFC 7162 section 3.2.10). :param ranges: of UIDs, ascending. :return: b"" if there is none."""
    uids = format_ranges(ranges)
    return b"* VANISHED %b%b\r\n" % (b"(EARLIER) " if earlier else b"", uids) if uids else b""
