"""Reads a large mail in pieces for one session, within the memory budget of its account."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import TracebackType
from typing import Any

from shared.runtime.memory_budget import MemoryBudget, reserve_share

PIECE_OCTETS = 16 * 1024
"""Smallest piece of a long reply: octets; for slow clients, and while the memory budget is exhausted."""
FIRST_PIECE_OCTETS = 256 * 1024
LARGE_PIECE_OCTETS = 1024 * 1024
"""Largest piece: octets; for a client that reads a piece within QUICK_SECONDS. Larger pieces need fewer queries."""
QUICK_SECONDS = 0.5

ReadSpan = Callable[[int, int, int], Coroutine[Any, Any, bytes]]
"""Reads bytes of a mail: its blob id, the first byte, and how many at most. b"" at the end of the mail."""


async def read_pieces(
    read_span: ReadSpan, budget: MemoryBudget, blob_id: int, start: int, end: int
) -> AsyncGenerator[bytes, None]:
    """Read the bytes of a mail from ``start`` up to ``end``. While a quick client reads a piece, the next is loaded.

    The caller closes the generator (``aclosing``), which returns the memory to the budget.

    :raises Temporary, Permanent: as ``read_span``.
    """
    position, size, quick = start, FIRST_PIECE_OCTETS, True
    with _PieceLoader(read_span, budget, blob_id) as loader:
        while position < end:
            loader.start(position, min(size, end - position))
            loaded = [await loader.finish()]
            loaded[0] = loaded[0][: end - position]
            position += len(loaded[0])
            if quick and position < end:
                loader.start(position, min(size, end - position))
            yielded_at = time.monotonic()
            yield loaded.pop()  # no reference stays here: while the client is slow, only the connection holds it
            quick = time.monotonic() - yielded_at < QUICK_SECONDS
            size = min(2 * size, LARGE_PIECE_OCTETS) if quick else PIECE_OCTETS


class _PieceLoader:
    """Loads one piece of a mail at a time, with memory of the budget until the piece is read."""

    def __init__(self, read_span: ReadSpan, budget: MemoryBudget, blob_id: int) -> None:
        self._read_span = read_span
        self._budget = budget
        self._blob_id = blob_id
        self._reserved = 0
        self._task: asyncio.Task[bytes] | None = None

    def __enter__(self) -> _PieceLoader:
        return self

    def start(self, position: int, octets: int) -> None:
        """Load the piece at this position, unless it is being loaded already."""
        if self._task is None:
            self._reserved = reserve_share(self._budget, octets)
            piece = self._read_span(self._blob_id, position, max(self._reserved, PIECE_OCTETS))
            self._task = asyncio.get_running_loop().create_task(piece)

    async def finish(self) -> bytes:
        """Wait for the piece that was started."""
        assert self._task is not None
        piece = await self._task
        self._task = None
        self._release()
        return piece

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._release()
        if self._task is not None:
            self._task.cancel()
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nothing waits for it

    def _release(self) -> None:
        self._budget.release(self._reserved)
        self._reserved = 0
