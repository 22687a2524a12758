"""Reads mails before they are needed: those that a client will fetch next, and the next ones of a long command.

One query for many mails costs little more than a query for one; and the database reads while this process parses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TypeVar

from services.imap_out.view import FolderState
from shared.runtime.memory_budget import MemoryBudget, session_share
from shared.store.blobs import HEAD_OCTETS

MAILS_AHEAD = 4
"""Mails read ahead for each mail that the client has fetched in order so far."""
MAX_MAILS = 50
"""Mails in one query."""
MAX_OCTETS = 512 * 1024
"""Memory of one session for mails that are read ahead: octets."""

_Group = TypeVar("_Group")
_Result = TypeVar("_Result")

ReadHeads = Callable[[Sequence[int], int], Awaitable[Mapping[int, bytes]]]
"""Reads the first HEAD_OCTETS of mails: their blob ids, and the octets of all together. Missing ones are left out."""


class MailsAhead:
    """The mails that one session has read and not fetched yet; each one is the whole of a small mail."""

    __slots__ = ("_budget", "_last", "_mails", "_octets", "_read", "_sequential")

    def __init__(self, read: ReadHeads, budget: MemoryBudget) -> None:
        """:param budget: of the session's account."""
        self._read = read
        self._budget = budget
        self._mails: dict[int, bytes] = {}  # by blob
        self._octets = 0
        self._last = -1  # index of the last mail that was fetched
        self._sequential = 0  # mails that were fetched in order before that one

    async def fetch(self, state: FolderState, index: int) -> Mapping[int, bytes]:
        """Return a small mail by its blob id, and read the next ones if the client fetches them in order.

        :param state: of the folder. :param index: of the mail. :return: empty if its bytes are missing.
        :raises Temporary: the database is unavailable.
        """
        self._sequential = self._sequential + 1 if index == self._last + 1 else 0
        self._last = index
        blob_id = state.blob_ids[index]
        mail = self._mails.pop(blob_id, None)
        if mail is not None:
            self._release(len(mail))
            return {blob_id: mail}
        self.clear()
        octets, wanted = state.octets[index], [blob_id]
        left = min(MAX_OCTETS, session_share(self._budget))
        for following in range(index + 1, min(index + 1 + self._sequential * MAILS_AHEAD, len(state))):
            left -= state.octets[following]
            if left < 0 or len(wanted) >= MAX_MAILS or state.octets[following] > HEAD_OCTETS:
                break
            wanted.append(state.blob_ids[following])
            octets += state.octets[following]
        self._budget.add(octets)
        try:
            found = dict(await self._read(wanted, octets))
        finally:
            self._budget.release(octets)
        mail = found.pop(blob_id, None)
        self._mails = found
        self._octets = sum(map(len, found.values()))
        self._budget.add(self._octets)
        return {} if mail is None else {blob_id: mail}

    def clear(self) -> None:
        """Drop all mails: the client does something else."""
        self._mails.clear()
        self._release(self._octets)

    def _release(self, octets: int) -> None:
        self._octets -= octets
        self._budget.release(octets)


async def read_groups(
    groups: Iterable[_Group], read: Callable[[_Group], Coroutine[None, None, _Result]]
) -> AsyncGenerator[tuple[_Group, _Result], None]:
    """Yield each group with what was read for it; the next one is read meanwhile. The caller closes the generator."""
    start = asyncio.get_running_loop().create_task
    reading: tuple[_Group, asyncio.Task[_Result]] | None = None
    try:
        for group in groups:
            if reading is None:
                reading = group, start(read(group))
                continue
            done = reading[0], await reading[1]
            reading = group, start(read(group))
            yield done
            del done
        if reading is not None:
            yield reading[0], await reading[1]
    finally:
        if reading is not None:
            reading[1].cancel()
            reading[1].add_done_callback(lambda task: task.cancelled() or task.exception())  # nothing waits for it
