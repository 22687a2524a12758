"""Chooses the mails to read before the client requests them, and limits their memory.

Mail clients fetch mail after mail. One query for many small mails costs little more than a query for one. The next
mails are read while the client receives earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from shared.runtime.memory_budget import MemoryBudget, session_share

MAX_MAILS = 100
"""Mails in one query."""
MAILS_AHEAD = 4
"""Mails read ahead for each mail that the client has fetched in order so far."""
SESSION_OCTETS = 1024 * 1024
"""Memory of one session for mails that are read ahead: octets; one query reads up to half of it."""
PROCESS_OCTETS = 32 * 1024 * 1024
"""Memory of all sessions of the process together, to serve them faster: octets. It covers mails that are read ahead,
the part of a piece above the smallest size, and unsent replies (counted while they are unsent, without a check)."""
ACCOUNT_OCTETS = 8 * 1024 * 1024
"""Share of an account in this memory: octets; four accounts whose clients read slowly use up the memory, one does not.
Then sessions are served more slowly, with the smallest pieces."""


def plan_reading(
    requested: Sequence[int],
    expected: Iterable[int],
    size_of: Callable[[int], int | None],
    buffer: PrefetchBuffer,
    max_octets: int,
) -> list[int]:
    """The numbers of the mails to read now, in the order in which they will be sent.

    :param requested: numbers that the client has requested; the first is read in any case.
    :param expected: numbers that the client will request if it continues in order.
    :param size_of: octets of the mail with a number; None if the mail is not to be read ahead.
    :param buffer: mails that are loaded or being read, which are not read again.
    :param max_octets: octets that may be read besides the first of ``requested``.
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


class PrefetchBuffer:
    """The mails that one session has read, or is reading, and has not sent yet, by number.

    :ivar octets: memory that the buffer uses.
    """

    __slots__ = ("_budget", "_mails", "octets")

    def __init__(self, budget: MemoryBudget) -> None:
        """:param budget: of the session's account."""
        self._budget = budget
        self._mails: dict[int, tuple[int, bytes | None]] = {}  # octets; the mail, None while it is being read
        self.octets = 0

    def __contains__(self, number: object) -> bool:
        """Whether a mail is loaded or being read."""
        return number in self._mails

    @property
    def available(self) -> int:
        """Octets that may be read into the buffer now."""
        return min(SESSION_OCTETS - self.octets, session_share(self._budget))

    def reserve(self, sizes: Mapping[int, int]) -> None:
        """Reserve memory for mails that are being read. :param sizes: octets by number."""
        reserved = 0
        for number, octets in sizes.items():
            if number not in self._mails:
                self._mails[number] = octets, None
                reserved += octets
        self.octets += reserved
        self._budget.add(reserved)

    def store(self, mails: Mapping[int, bytes]) -> None:
        """Store these mails, except those whose reservation was released."""
        for number, body in mails.items():
            if number in self._mails:
                self._mails[number] = self._mails[number][0], body

    def drop_missing(self, numbers: Iterable[int]) -> None:
        """Release the memory of those of these mails that were not stored."""
        for number in numbers:
            if self._mails.get(number, (0, b""))[1] is None:
                octets, _ = self._mails.pop(number)
                self.octets -= octets
                self._budget.release(octets)

    def pop(self, number: int) -> bytes | None:
        """Remove a mail and return it; None if it is not loaded."""
        octets, body = self._mails.get(number, (0, None))
        if body is not None:
            del self._mails[number]
            self.octets -= octets
            self._budget.release(octets)
        return body

    def clear(self) -> None:
        """Drop all mails and reservations."""
        self._mails.clear()
        self._budget.release(self.octets)
        self.octets = 0
