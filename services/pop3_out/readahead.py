"""Which mails to read from the database before they are asked for, and how much of them may be held.

Mail clients fetch mail after mail. One query for many small mails costs little more than a query for one, and while
the client gets some, the next ones come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_MAILS = 100
"""Read at once at most."""
MAILS_AHEAD = 4
"""Mails read ahead for each that the client has fetched in order up to here."""
SESSION_OCTETS = 1024 * 1024
"""Held for one session at most; half of it is read at once."""
PROCESS_OCTETS = 32 * 1024 * 1024
"""Held for all sessions of the process together, see Budget."""
SHARE = 8
"""A session gets up to this part of what is left: some stays for those that come later."""


def plan_reading(
    requested: Sequence[int],
    expected: Iterable[int],
    size_of: Callable[[int], int | None],
    buffer: PrefetchBuffer,
    max_octets: int,
) -> list[int]:
    """The numbers to read now, in the order in which they will be sent.

    :param asked: numbers that the client has asked for; the first is read in any case.
    :param onward: numbers that it will ask for if it goes on like this.
    :param size_of: octets of the mail of a number; None if it is not to be read ahead.
    :param held: what is here or on its way, and is not read again.
    :param room: octets that may be read besides the first of ``asked``.
    """
    numbers = list(requested[:1])
    for number in (*requested[1:], *expected):
        if len(numbers) == MAX_MAILS:
            break
        size = size_of(number)
        if size is None or number in buffer or number in numbers:
            continue
        max_octets -= size
        if max_octets < 0:
            break
        numbers.append(number)
    return numbers


class PrefetchBudget:
    """Octets that all sessions of the process may hold to be faster: read ahead, in pieces above the least size, or
    taken by no client yet. The last is counted as it comes, so ``left`` may be less than nothing for a while."""

    __slots__ = ("left",)

    def __init__(self, octets: int = PROCESS_OCTETS) -> None:
        """All of them are there."""
        self.left = octets

    @property
    def share(self) -> int:
        """What one session may take now."""
        return max(0, self.left // SHARE)

    def acquire(self, octets: int) -> int:
        """Take so many octets, or as many as one session may; ``left`` gets them back."""
        lent = min(octets, self.share)
        self.left -= lent
        return lent


class PrefetchBuffer:
    """The mails that one session has read, or is reading, and not yet sent; by number."""

    __slots__ = ("_budget", "_mails", "octets")

    def __init__(self, budget: PrefetchBudget) -> None:
        """Empty. :param budget: shared by all sessions."""
        self._budget = budget
        self._mails: dict[int, tuple[int, bytes | None]] = {}  # octets; the mail, once it is here
        self.octets = 0

    def __contains__(self, number: object) -> bool:
        """Whether a mail is here or on its way."""
        return number in self._mails

    @property
    def available(self) -> int:
        """Octets that may be read for it."""
        return min(SESSION_OCTETS - self.octets, self._budget.share)

    def reserve(self, sizes: Mapping[int, int]) -> None:
        """These mails are being read. :param sizes: the octets of each."""
        for number, octets in sizes.items():
            if number not in self._mails:
                self._mails[number] = octets, None
                self._count(octets)

    def store(self, mails: Mapping[int, bytes]) -> None:
        """Keep these mails, as far as they are expected still."""
        for number, body in mails.items():
            if number in self._mails:
                self._mails[number] = self._mails[number][0], body

    def drop_missing(self, numbers: Iterable[int]) -> None:
        """Those of these mails that have not come will not."""
        for number in numbers:
            if self._mails.get(number, (0, b""))[1] is None:
                self._count(-self._mails.pop(number)[0])

    def pop(self, number: int) -> bytes | None:
        """A mail, which is kept no longer; None if it is not here."""
        octets, body = self._mails.get(number, (0, None))
        if body is not None:
            del self._mails[number]
            self._count(-octets)
        return body

    def clear(self) -> None:
        """Keep nothing, and nothing that comes."""
        self._mails.clear()
        self._count(-self.octets)

    def _count(self, octets: int) -> None:
        self.octets += octets
        self._budget.left -= octets
