"""Reads the mails of one session: small ones whole and ahead of the client, large ones in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence

import structlog

from services.pop3_out import snapshot
from services.pop3_out.interfaces import MailboxStore
from services.pop3_out.readahead import (
    MAILS_AHEAD,
    MAX_MAILS,
    SESSION_OCTETS,
    PrefetchBuffer,
    plan_reading,
)
from shared.errors import Permanent
from shared.runtime.memory_budget import MemoryBudget, session_share
from shared.runtime.piece_reader import PIECE_OCTETS, read_pieces
from shared.store.blobs import HEAD_OCTETS

log = structlog.get_logger()


class MailReader:
    """Reads mails for one session, within the memory budget of its account and of all sessions.

    :ivar snapshot: the mailbox; empty until the login.
    :ivar buffer: mails that are read ahead.
    """

    def __init__(
        self, store: MailboxStore, budget: MemoryBudget, deleted: Collection[int], client: Mapping[str, str]
    ) -> None:
        """:param deleted: numbers that are marked as deleted, kept up to date by the session.
        :param client: fields for the log."""
        self.snapshot = snapshot.empty_snapshot()
        self.buffer = PrefetchBuffer(budget)
        self._client = client
        self._store = store
        self._budget = budget
        self._deleted = deleted
        self._last_number = -1  # of the last mail that the client requested
        self._sequential = 0  # mails requested in order before that one
        self._next_prefetch = 0  # first number after those that were read ahead
        self._prefetch_task: asyncio.Task[None] | None = None

    def use_budget(self, budget: MemoryBudget) -> None:
        """Use the budget of the account that has logged in. Nothing is reserved before."""
        self._budget, self.buffer = budget, PrefetchBuffer(budget)

    def size_of(self, number: int) -> int | None:
        """Octets of the mail with a number; None if there is none, or it is marked as deleted."""
        exists = 0 < number <= len(self.snapshot) and number not in self._deleted
        return self.snapshot.octets[number - 1] if exists else None

    def release_memory(self) -> None:
        """Drop what is read ahead: the client pauses or has disconnected."""
        self.buffer.clear()
        self._sequential = self._next_prefetch = 0

    def pop_prefetched(self, number: int) -> bytes | None:
        """The mail that the client requests now, if it is loaded; the next mails are read then."""
        self._sequential = self._sequential + 1 if number == self._last_number + 1 else 0
        self._last_number = number
        body = self.buffer.pop(number)
        if body is not None:
            self._start_prefetch(number)
        return body

    def is_large(self, number: int) -> bool:
        """Whether to read this mail by ``pieces``, and not by ``read``."""
        octets = self.snapshot.octets[number - 1]
        return octets > HEAD_OCTETS or octets > max(PIECE_OCTETS, session_share(self._budget))

    async def read(self, number: int, pending_numbers: Callable[[], list[int]]) -> bytes:
        """Read a small mail, or wait for it if it is being read; with it the mails that will be requested next.

        :param pending_numbers: returns the numbers that the client has requested already, after this one.
        :raises Permanent: the mail's bytes are missing.
        """
        if number in self.buffer and self._prefetch_task is not None:
            await asyncio.wait([self._prefetch_task])
            self._start_prefetch(number)
        body = self.buffer.pop(number)
        if body is None:
            requested = [number, *pending_numbers()]
            expected = self._expected_numbers(requested[-1] + 1)
            numbers = plan_reading(requested, expected, self._prefetch_octets, self.buffer, self.buffer.available)
            body = (await self._load_mails(numbers)).get(number)
            self.buffer.pop(number)
        if body is None:
            raise Permanent(f"the bytes of blob {self.snapshot.blob_ids[number - 1]} are gone")
        return body

    def pieces(self, number: int) -> AsyncGenerator[bytes, None]:
        """Read a large mail in pieces. The caller closes the generator (``aclosing``)."""
        blob_id, octets = self.snapshot.blob_ids[number - 1], self.snapshot.octets[number - 1]
        return read_pieces(self._store.read_span, self._budget, blob_id, 0, octets)

    # ------------------------------------------------------------------------------------------ reading ahead

    def _start_prefetch(self, number: int) -> None:
        """Read the mails after those that are loaded. :param number: of the mail that is sent now."""
        if (
            self._prefetch_task is None
            and self.buffer.octets <= SESSION_OCTETS // 2
            and self._next_prefetch <= len(self.snapshot)
        ):
            expected = self._expected_numbers(max(self._next_prefetch, number + 1))
            numbers = plan_reading([], expected, self._prefetch_octets, self.buffer, self.buffer.available)
            if numbers:
                self._prefetch_task = asyncio.get_running_loop().create_task(self._prefetch(numbers))

    def _expected_numbers(self, start: int) -> range:
        """The numbers from ``start`` on that a client which fetches mail after mail will request."""
        last = min(self._last_number + MAILS_AHEAD * self._sequential, start + MAX_MAILS, len(self.snapshot))
        return range(start, last + 1)

    def _prefetch_octets(self, number: int) -> int | None:
        """Octets of a mail that may be read ahead, else None."""
        size = self.size_of(number)
        return None if size is None or size > HEAD_OCTETS else size

    async def _prefetch(self, numbers: Sequence[int]) -> None:
        """Read ahead. A failure is only logged: the same read fails again, and is answered, when it is requested."""
        try:
            await self._load_mails(numbers)
        except Exception as failure:  # any failure: the client has not requested these mails yet
            log.info("prefetch failed", error=str(failure), **self._client)
        finally:
            self._prefetch_task = None

    async def _load_mails(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Read mails into the buffer, and return them without those whose bytes are missing."""
        blob_ids, octets = self.snapshot.blob_ids, self.snapshot.octets
        sizes = {number: octets[number - 1] for number in numbers}
        self._next_prefetch = max(self._next_prefetch, numbers[-1] + 1) if self._sequential else numbers[-1] + 1
        self.buffer.reserve(sizes)
        try:
            bodies = await self._store.read_mails([blob_ids[number - 1] for number in numbers], sum(sizes.values()))
            mails = {number: bodies[blob_ids[number - 1]] for number in numbers if blob_ids[number - 1] in bodies}
            self.buffer.store(mails)
        finally:
            self.buffer.drop_missing(numbers)
        return mails
