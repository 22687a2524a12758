"""services/imap_out/mails_ahead.py: mails are read before they are needed, in bounded memory."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping, Sequence
from contextlib import aclosing

import pytest

from services.imap_out.mails_ahead import MAX_MAILS, MailsAhead, read_groups
from services.imap_out.view import FolderState, build_state
from shared.errors import Temporary
from shared.runtime.memory_budget import MemoryBudget
from shared.store.blobs import HEAD_OCTETS
from shared.store.folder_views import View
from shared.store.folders import Folder

MAILS = 200


def state(octets: int = 10) -> FolderState:
    """A folder with mails of so many octets; blob 1000 is the first one's."""
    folder = Folder(1, 1, "INBOX", "inbox", 1, 10, 9, 0, True)
    uids, blob_ids = (array("q", range(start, start + MAILS)) for start in (1, 1000))
    sizes, zeros = array("q", [octets] * MAILS), array("q", [0] * MAILS)
    return build_state(View(folder, uids, blob_ids, sizes, zeros, zeros, zeros, {}))


class Reads:
    """Reads mails, all of ``octets``. asked: the blob ids of each query."""

    def __init__(self, octets: int = 10) -> None:
        self.asked: list[Sequence[int]] = []
        self.gone: set[int] = set()
        self.octets = octets
        self.fails = False

    async def __call__(self, blob_ids: Sequence[int], octets: int) -> Mapping[int, bytes]:
        self.asked.append(list(blob_ids))
        assert octets == len(blob_ids) * self.octets
        if self.fails:
            raise Temporary("no database")
        return {blob_id: bytes([blob_id % 256]) * self.octets for blob_id in blob_ids if blob_id not in self.gone}


async def fetch(ahead: MailsAhead, folder: FolderState, *indexes: int) -> None:
    for index in indexes:
        blob_id = folder.blob_ids[index]
        assert await ahead.fetch(folder, index) == {blob_id: bytes([blob_id % 256]) * folder.octets[index]}


async def test_mails_that_are_fetched_in_order_are_read_in_few_queries() -> None:
    reads, budget, folder = Reads(), MemoryBudget(1 << 24), state()
    ahead = MailsAhead(reads, budget)
    await fetch(ahead, folder, *range(MAILS))
    assert sum(map(len, reads.asked)) == MAILS and len(reads.asked) < 10
    assert max(map(len, reads.asked)) == MAX_MAILS
    assert budget.in_use == 0


async def test_mails_in_another_order_are_not_read_ahead() -> None:
    reads, budget, folder = Reads(), MemoryBudget(1 << 24), state()
    ahead = MailsAhead(reads, budget)
    await fetch(ahead, folder, 5, 3, 1, 150, 7)
    assert [len(asked) for asked in reads.asked] == [1] * 5
    # what was read ahead is dropped when the client turns to others
    await fetch(ahead, folder, 10, 11, 12)
    assert budget.in_use
    await fetch(ahead, folder, 100)
    assert budget.in_use == 0


async def test_the_memory_is_that_of_the_budget() -> None:
    octets = HEAD_OCTETS // 4
    reads, folder = Reads(octets), state(octets)
    budget = MemoryBudget(16 * octets)
    ahead = MailsAhead(reads, budget)
    for index in range(20):
        await fetch(ahead, folder, index)
        assert budget.in_use <= 2 * octets
    ahead.clear()
    assert budget.in_use == 0
    budget.add(budget.octets)
    await fetch(ahead, folder, *range(20, 24))
    assert [len(asked) for asked in reads.asked[-4:]] == [1] * 4 and budget.in_use == budget.octets


async def test_what_is_gone_or_cannot_be_read_leaves_no_memory_counted() -> None:
    reads, budget, folder = Reads(), MemoryBudget(1 << 24), state()
    reads.gone = {1003, 1008}
    ahead = MailsAhead(reads, budget)
    for index in range(9):
        found = await ahead.fetch(folder, index)
        assert set(found) == {folder.blob_ids[index]} - reads.gone
    ahead.clear()
    reads.fails = True
    with pytest.raises(Temporary):
        await ahead.fetch(folder, 9)
    assert budget.in_use == 0


async def test_the_next_group_is_read_meanwhile() -> None:
    events: list[str] = []

    async def read(group: int) -> int:
        events.append(f"read {group}")
        await asyncio.sleep(0)
        return group * 10

    async with aclosing(read_groups([1, 2, 3], read)) as groups:
        async for group, result in groups:
            assert result == group * 10
            await asyncio.sleep(0)
            events.append(f"done {group}")
    assert events == ["read 1", "read 2", "done 1", "read 3", "done 2", "done 3"]


async def test_a_failure_or_an_early_end_leaves_no_read_behind() -> None:
    running: set[int] = set()

    async def read(group: int) -> int:
        running.add(group)
        try:
            if group == 2:
                raise Temporary("no database")
            await asyncio.Event().wait() if group == 20 else await asyncio.sleep(0)
            return group
        finally:
            running.discard(group)

    seen = []
    with pytest.raises(Temporary):
        async with aclosing(read_groups([1, 2, 3], read)) as groups:
            async for group, _ in groups:
                seen.append(group)
    assert seen == [1]
    async with aclosing(read_groups([10, 20], read)) as groups:
        async for _ in groups:
            break
    await asyncio.sleep(0)
    assert not running
