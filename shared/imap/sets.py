"""Sets of UIDs, as IMAP writes them: ``1:3,7`` (RFC 3501 section 9, sequence-set). Pure."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator

SET_OCTETS = 900
"""Longest set in a command: octets; RFC 2683 section 3.2.1.5 allows 1,000 for the whole command."""
UID_LIMIT = 2**32
"""UIDs are less (RFC 3501 section 2.3.1.1), and greater than 0."""
_STEP = 32 * 1024
"""UIDs, or octets, that are handled at once: other threads wait meanwhile, and one of them has the event loop."""

_RANGE = re.compile(rb"(\d{1,10})(?::(\d{1,10}))?(?:,|$)")


def write_sets(uids: Iterable[int]) -> Iterator[tuple[bytes, list[int]]]:
    """Yield sets of these UIDs and no others, in ascending order, each with its UIDs."""
    text = b""
    members: list[int] = []
    for first, last in _ranges(sorted(set(uids))):
        piece = b"%d" % first if first == last else b"%d:%d" % (first, last)
        if text and len(text) + len(piece) >= SET_OCTETS:
            yield text, members
            text, members = b"", []
        text = text + b"," + piece if text else piece
        members += range(first, last + 1)
    if text:
        yield text, members


def _ranges(ordered: list[int]) -> Iterator[tuple[int, int]]:
    first = last = 0
    for uid in ordered:
        if last and uid == last + 1:
            last = uid
            continue
        if last:
            yield first, last
        first = last = uid
    if last:
        yield first, last


def read_set(text: bytes, most: int) -> array[int] | None:
    """Return the UIDs of a set; None if it is malformed or has more than ``most`` UIDs."""
    uids = array("I")
    position = 0
    while position < len(text):
        found = _RANGE.match(text, position)
        if found is None:
            return None
        one, other = int(found[1]), int(found[2] or found[1])
        first, last = min(one, other), max(one, other)
        if not 0 < first <= last < UID_LIMIT or last - first >= most - len(uids):
            return None
        for start in range(first, last + 1, _STEP):
            uids.extend(range(start, min(start + _STEP, last + 1)))
        position = found.end()
    return uids


def read_numbers(text: bytes, most: int) -> array[int] | None:
    """Return UIDs separated by blanks, as SEARCH lists them; None if malformed or more than ``most``."""
    numbers = array("I")
    for piece in _pieces(text):
        words = piece.split()
        if len(numbers) + len(words) > most or not all(word.isdigit() and len(word) <= 10 for word in words):
            return None
        found = list(map(int, words))
        if found and not 0 < min(found) <= max(found) < UID_LIMIT:
            return None
        numbers.extend(found)
    return numbers


def _pieces(text: bytes) -> Iterator[bytes]:
    """Yield a text in pieces of some length, cut at blanks."""
    start = 0
    while start < len(text):
        end = text.find(b" ", start + _STEP)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end
