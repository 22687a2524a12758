"""Which mails to read from the database at once: those asked for, and those that will be asked for next.

Mail clients fetch mail after mail. One query for many small mails costs little more than a query for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shared.messages import HEAD_OCTETS

MAILS = 100
OCTETS = 512 * 1024
"""Read at once for one session at most."""
ALL_OCTETS = 16 * 1024 * 1024
"""Held by all sessions of the process together at most, see Budget."""


def plan(asked: int, waiting: Sequence[int], run: int, size_of: Callable[[int], int | None], room: int) -> list[int]:
    """The numbers to read now, ``asked`` first.

    :param asked: a number to be sent now, of a mail of up to HEAD_OCTETS.
    :param waiting: numbers that the client has asked for already, behind this one.
    :param run: how many mails the client has fetched in order up to here; as many more are read ahead.
    :param size_of: octets of the mail of a number; None if there is none, or it is marked as deleted.
    :param room: octets that may be read besides the mail asked for.
    """
    last = waiting[-1] if waiting else asked
    numbers = [asked]
    for number in dict.fromkeys((*waiting, *range(last + 1, last + 1 + run))):
        if len(numbers) == MAILS:
            break
        size = size_of(number)
        if number == asked or size is None or size > HEAD_OCTETS:
            continue
        room -= size
        if room < 0:
            break
        numbers.append(number)
    return numbers


class Budget:
    """Octets that all sessions of the process may hold to be faster: read ahead, or in pieces above the least size."""

    __slots__ = ("left",)

    def __init__(self, octets: int = ALL_OCTETS) -> None:
        """All of them are there."""
        self.left = octets

    def lend(self, octets: int) -> int:
        """Take so many octets, or none if they are not there; ``left`` gets them back."""
        lent = octets if octets <= self.left else 0
        self.left -= lent
        return lent


class Shelf:
    """The mails that one session has read and not yet sent, by number."""

    __slots__ = ("_budget", "_held", "_mails")

    def __init__(self, budget: Budget) -> None:
        """Empty. :param budget: shared by all sessions."""
        self._budget = budget
        self._mails: dict[int, bytes] = {}
        self._held = 0

    @property
    def room(self) -> int:
        """Octets that may be put here."""
        return min(OCTETS - self._held, self._budget.left)

    def put(self, mails: dict[int, bytes]) -> None:
        """Keep these mails."""
        for number, body in mails.items():
            if number not in self._mails:
                self._mails[number] = body
                self._count(len(body))

    def take(self, number: int) -> bytes | None:
        """The bytes of a mail, which are kept no longer."""
        body = self._mails.pop(number, None)
        if body is not None:
            self._count(-len(body))
        return body

    def clear(self) -> None:
        """Keep nothing."""
        self._mails.clear()
        self._count(-self._held)

    def _count(self, octets: int) -> None:
        self._held += octets
        self._budget.left -= octets
