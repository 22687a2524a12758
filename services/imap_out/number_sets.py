"""Sets of message numbers and UIDs (RFC 3501 section 9, sequence-set), resolved on the view of a session.

A view is the UIDs of a folder as the client knows them, ascending: index 0 is message number 1. A set costs time in
proportion to its ranges and to the mails that it names, never to the numbers that it spans.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shared.imap.sets import UID_LIMIT

LAST = UID_LIMIT
"""Stands for ``*`` in a range: greater than every number."""
MAX_RANGES = 20_000
"""Ranges of a set in a command; the length of its line allows no more than some thousand more."""


@dataclass(frozen=True, slots=True)
class NumberSet:
    """A set as a command names it.

    ranges: first and last, as written; ``LAST`` is ``*``. saved: ``$``, the result of the last search (RFC 5182).
    """

    ranges: tuple[tuple[int, int], ...] = ()
    saved: bool = False

    @property
    def is_numbers_only(self) -> bool:
        """Whether neither ``*`` nor ``$`` is in the set."""
        return not self.saved and all(LAST not in pair for pair in self.ranges)


SAVED = NumberSet(saved=True)
"""``$``."""


def parse_set(text: bytes) -> NumberSet | None:
    """Parse ``1:3,7,*`` or ``$``; None if it is malformed or has too many ranges."""
    if text == b"$":
        return SAVED
    if text.count(b",") >= MAX_RANGES:
        return None
    ranges = []
    for piece in text.split(b","):
        first, colon, last = piece.partition(b":")
        one = _number(first)
        other = _number(last) if colon else one
        if not one or not other:
            return None
        ranges.append((one, other))
    return NumberSet(tuple(ranges))


def _number(text: bytes) -> int:
    """Return a number; 0 if it is none."""
    if text == b"*":
        return LAST
    if not text.isdigit() or len(text) > 10 or text[:1] == b"0":
        return 0
    number = int(text)
    return number if number < UID_LIMIT else 0


def _merged(ranges: Iterable[tuple[int, int]], last: int) -> list[tuple[int, int]]:
    """Return the ranges ascending and without overlaps. :param last: the number that ``*`` stands for."""
    ordered = sorted(
        (min(one, other), max(one, other))
        for one, other in ((last if a == LAST else a, last if b == LAST else b) for a, b in ranges)
    )
    merged: list[tuple[int, int]] = []
    for low, high in ordered:
        if merged and low <= merged[-1][1] + 1:
            if high > merged[-1][1]:
                merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return merged


def indexes_of_numbers(numbers: NumberSet, count: int, clipped: bool = False) -> list[int] | None:
    """Return the indexes of a set of message numbers, ascending.

    :param count: mails in the view. :param clipped: ignore numbers that no mail has, as SEARCH does everywhere.
    :return: None if the set has a number that no mail has, which is BAD; so is ``*`` in an empty view (RFC 9051
        section 9, seq-number).
    """
    merged = _merged(numbers.ranges, count)
    if not clipped and merged and (merged[0][0] < 1 or merged[-1][1] > count):
        return None
    return [index for low, high in merged for index in range(max(low, 1) - 1, min(high, count))]


def indexes_of_uids(numbers: NumberSet, uids: Sequence[int]) -> list[int]:
    """Return the indexes of a set of UIDs, ascending. UIDs that no mail has are ignored (RFC 3501 section 6.4.8)."""
    if not uids:
        return []
    if len(numbers.ranges) == 1 and numbers.ranges[0][0] == numbers.ranges[0][1] != LAST:  # one mail, as clients read
        index = index_of_uid(numbers.ranges[0][0], uids)
        return [] if index is None else [index]
    found: list[int] = []
    for low, high in _merged(numbers.ranges, uids[-1]):
        found.extend(range(bisect_left(uids, low), bisect_right(uids, high)))
    return found


def index_of_uid(uid: int, uids: Sequence[int]) -> int | None:
    """Return the index of a UID; None if no mail has it."""
    index = bisect_left(uids, uid)
    return index if index < len(uids) and uids[index] == uid else None


def missing_uids(numbers: NumberSet, uids: Sequence[int], uidnext: int) -> list[tuple[int, int]]:
    """Return the ranges of UIDs of a set that no mail of the view has, ascending; those from ``uidnext`` on are left
    out, because no mail had them yet (RFC 7162 section 3.2.10).

    :param numbers: without ``$``; ``*`` is the last UID of the view, or the one before ``uidnext``.
    """
    last = uids[-1] if uids else uidnext - 1
    gaps: list[tuple[int, int]] = []
    for low, high in _merged(numbers.ranges, max(last, 1)):
        start, end = low, min(high, uidnext - 1)
        for index in range(bisect_left(uids, low), bisect_right(uids, high)):
            if start < uids[index]:
                gaps.append((start, uids[index] - 1))
            start = uids[index] + 1
        if start <= end:
            gaps.append((start, end))
    return gaps


def ranges_of(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of ascending numbers."""
    first = last = -1
    for number in numbers:
        if number == last + 1 and first >= 0:
            last = number
            continue
        if first >= 0:
            yield first, last
        first = last = number
    if first >= 0:
        yield first, last


def format_ranges(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Format ranges as a set: ``1:3,7``."""
    return b",".join(b"%d" % low if low == high else b"%d:%d" % (low, high) for low, high in ranges)


def format_numbers(numbers: Iterable[int]) -> bytes:
    """Format ascending numbers as the shortest set."""
    return format_ranges(ranges_of(numbers))
