"""Remembers mails with long headers that wait for another batch, so that they cost nothing in the batches before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

READ_AGAIN = 16
"""Limits the deferred mails that a batch tries to read: mails, about as many as its budget allows."""
REMEMBERED = 20_000
"""Limits the deferred mails that are remembered: mails, some 3 MB. The oldest ones are forgotten, and read from again;
another router may have routed them long ago."""


class DeferredMails:
    """The deferred mails of one process, with the addresses of their external accounts."""

    def __init__(self) -> None:
        self._addresses: dict[int, str] = {}

    def divide(self, ids: Sequence[int]) -> tuple[list[int], list[tuple[int, str]]]:
        """Divide the mails of a batch into those to read now and those to defer again, with their addresses.

        The oldest deferred mails are read in each batch, so every mail is read in the end.
        """
        known = [row for row in ids if row in self._addresses]
        later = {row: self._addresses[row] for row in islice(known, READ_AGAIN, None)}
        return [row for row in ids if row not in later], list(later.items())

    def record(self, read: Iterable[int], deferred: Iterable[tuple[int, str]]) -> None:
        """Record the outcome of a batch: the mails that it tried to read, and which of them are deferred."""
        for row in read:
            self._addresses.pop(row, None)
        self._addresses.update(deferred)
        for row in list(islice(self._addresses, max(0, len(self._addresses) - REMEMBERED))):
            del self._addresses[row]
