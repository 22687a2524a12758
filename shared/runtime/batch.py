"""Divides the mails of a batch of messages into parts, each for one transaction: pure decisions of the queue worker.

Mails that may have crashed a process are replayed in small parts, behind the others. A part that fails is halved, down
to the mail at fault.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from shared.amqp.broker import Delivery


class Batch:
    """The unfinished mails of some messages, in parts.

    deliveries: the messages, to acknowledge in the end. redelivered: mails that a process had when it crashed, to be
    recorded before anything is handled. passed: replayed mails that are finished, whose records are to be deleted.
    """

    def __init__(self, max_mails: int) -> None:
        """:param max_mails: limit of mails in one part."""
        self.deliveries: list[Delivery] = []
        self.redelivered: set[int] = set()
        self.passed: set[int] = set()
        self._max_mails = max_mails
        self._new: dict[int, None] = {}  # in the order of the messages
        self._replayed: set[int] = set()
        self._parts: deque[list[int]] = deque()

    def add(self, delivery: Delivery, ids: Iterable[int]) -> None:
        """Add the mails of a message."""
        self.deliveries.append(delivery)
        self._new.update(dict.fromkeys(ids))
        if delivery.redelivered:
            self.redelivered.update(ids)

    def divide(self, limits: Mapping[int, int | None]) -> None:
        """Divide the mails into parts: the others first, then the redelivered ones, the least suspected ones first.

        :param limits: limit of mails together with each redelivered mail; None: it is isolated, and left out.
        """
        by_limit: dict[int, list[int]] = {}
        for row in self._new:
            limit = limits.get(row)
            if limit is not None:
                by_limit.setdefault(limit, []).append(row)
        self._parts.extend(_divided([row for row in self._new if row not in self.redelivered], self._max_mails))
        for limit, rows in sorted(by_limit.items(), reverse=True):
            self._parts.extend(_divided(rows, min(limit, self._max_mails)))
        self._replayed = {row for row in self.redelivered if limits.get(row) is not None}
        self.redelivered = set()
        self._new = {}

    @property
    def divided(self) -> bool:
        """Whether ``divide`` was called since mails were added."""
        return not self._new

    @property
    def part(self) -> Sequence[int]:
        """The mails to handle next, in one transaction; empty if all are finished."""
        return self._parts[0] if self._parts else ()

    @property
    def is_replay(self) -> bool:
        """Whether a process had the next part's mails when it crashed."""
        return not self._replayed.isdisjoint(self.part)

    def finish(self) -> None:
        """Remove the mails of the next part: they are handled."""
        self.passed.update(self._replayed.intersection(self._parts.popleft()))

    def isolate(self) -> None:
        """Remove the single mail of the next part: it is recorded for later, and has not passed."""
        self._replayed.difference_update(self._parts.popleft())

    def halve(self) -> None:
        """Divide the next part into halves."""
        part = self._parts.popleft()
        middle = (len(part) + 1) // 2
        self._parts.extendleft(half for half in (part[middle:], part[:middle]) if half)


def _divided(ids: Sequence[int], size: int) -> Iterable[list[int]]:
    rows = iter(ids)
    while part := list(islice(rows, size)):
        yield part
