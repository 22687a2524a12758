"""The structures of mails (ENVELOPE, BODYSTRUCTURE, positions of parts): computed once per body, and kept.

Delivery computes none. Those of new mail are computed some seconds later (structures_ahead.py), any other one by the
first FETCH that needs it. A copy goes to the database meanwhile (table mail_structures). A lost copy is computed again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing

import structlog

from services.imap_out.mails_ahead import ReadHeads, read_groups
from services.imap_out.structure.stored import MailStructure, StructureReader, decode_structure, read_whole
from shared.db.arrays import array_literal
from shared.db.batch_loader import BatchLoader
from shared.db.database import Connection, Database
from shared.errors import Permanent, Temporary
from shared.runtime.memory_budget import MemoryBudget, session_share
from shared.runtime.parsing import Parsing
from shared.runtime.piece_reader import ReadSpan
from shared.store.blobs import CHUNK_OCTETS, HEAD_OCTETS

CACHE_OCTETS = 16 * 1024 * 1024
"""Structures in memory: octets."""
MAX_UNSAVED = 2_000
"""Structures that wait for the database; further ones are not stored now."""
SAVED_TOGETHER = 200
MAX_STORED_OCTETS = 64 * 1024
"""Largest structure that is stored: octets; only a hostile mail has a larger one."""
READ_OCTETS = 512 * 1024
"""Mails that are read and parsed together: octets; some hundredths of a second in a thread."""
MAX_READERS = 3
"""Queries for structures at once: leaves pool connections for changes."""

log = structlog.get_logger()


class StructureStore:
    """The structures that are in memory or in the database. ``run`` has to be started, or none is stored."""

    def __init__(self, database: Database, read_heads: ReadHeads, read_span: ReadSpan) -> None:
        """Create it with an empty memory."""
        self._database = database
        self._read_heads = read_heads
        self._read_span = read_span
        self._known: OrderedDict[int, MailStructure] = OrderedDict()  # by blob, oldest use first
        self._octets = 0
        self._stored: BatchLoader[int, MailStructure] = BatchLoader(self._read_stored, readers=MAX_READERS)
        self._unsaved: dict[int, MailStructure] = {}
        self._filled = asyncio.Event()

    def known(self, blob_id: int) -> MailStructure | None:
        """Return the structure of a mail if it is in memory."""
        return self._known.get(blob_id)

    async def load(
        self, mails: Mapping[int, int], budget: MemoryBudget, heads: Mapping[int, bytes] | None = None
    ) -> dict[int, MailStructure]:
        """Return the structures of mails by blob id, without those whose bytes are missing.

        :param mails: octets by blob id. :param budget: memory for mails. :param heads: the first HEAD_OCTETS of some of
            them, if they are in memory.
        :raises Temporary: the database is unavailable.
        """
        found = {}
        for blob_id in mails:
            if (structure := self._known.get(blob_id)) is not None:
                self._known.move_to_end(blob_id)
                found[blob_id] = structure
        if len(found) < len(mails):
            stored = await self._stored.get([blob_id for blob_id in mails if blob_id not in found])
            self._keep(stored)
            found |= stored
        if len(found) < len(mails):
            found |= await self._compute(
                {blob: mails[blob] for blob in mails if blob not in found}, budget, heads or {}
            )
        return found

    # ------------------------------------------------------------------------------------------ from the mails

    async def _compute(
        self, mails: Mapping[int, int], budget: MemoryBudget, heads: Mapping[int, bytes]
    ) -> dict[int, MailStructure]:
        found: dict[int, MailStructure] = {}
        parsing = Parsing()
        small = {blob_id: octets for blob_id, octets in mails.items() if octets <= HEAD_OCTETS}
        in_memory = {blob_id: heads[blob_id] for blob_id in small if blob_id in heads}
        if in_memory:
            found |= await parsing.run(sum(map(len, in_memory.values())), _read_all, in_memory)
        reserved = min(2 * READ_OCTETS, session_share(budget))  # one group is parsed while the next one is read
        rest = {blob_id: octets for blob_id, octets in small.items() if blob_id not in in_memory}

        async def read(group: Sequence[int]) -> Mapping[int, bytes]:
            return await self._read_heads(group, sum(small[blob_id] for blob_id in group))

        budget.add(reserved)
        try:
            async with aclosing(read_groups(_groups(rest, reserved // 2), read)) as groups:
                async for group, found_heads in groups:
                    octets = sum(small[blob_id] for blob_id in group)
                    found |= await parsing.run(octets, _read_all, found_heads)
                    del found_heads
        finally:
            budget.release(reserved)
        for blob_id, octets in mails.items():
            if octets > HEAD_OCTETS:
                structure = await self._read_large(blob_id, octets, parsing)
                if structure is not None:
                    found[blob_id] = structure
        self._keep(found)
        self._unsaved |= {blob: each for blob, each in found.items() if each.octets <= MAX_STORED_OCTETS}
        while len(self._unsaved) > MAX_UNSAVED:
            self._unsaved.popitem()
        self._filled.set()
        return found

    async def _read_large(self, blob_id: int, octets: int, parsing: Parsing) -> MailStructure | None:
        reader = StructureReader()
        position = 0
        while position < octets:
            try:
                piece = await self._read_span(blob_id, position, CHUNK_OCTETS)
            except Permanent:
                piece = b""
            if not piece:
                return None
            position += len(piece)
            await parsing.run(len(piece), reader.feed, piece)
        return await parsing.run(HEAD_OCTETS, reader.finish)

    def _keep(self, structures: Mapping[int, MailStructure]) -> None:
        for blob_id, structure in structures.items():
            if blob_id not in self._known:
                self._known[blob_id] = structure
                self._octets += structure.octets
        while self._octets > CACHE_OCTETS:
            _, dropped = self._known.popitem(last=False)
            self._octets -= dropped.octets

    # ------------------------------------------------------------------------------------------ in the database

    async def _read_stored(self, blob_ids: Sequence[int]) -> dict[int, MailStructure]:
        async with self._database.statement() as connection:
            return await load_structures(connection, blob_ids)

    async def run(self) -> None:
        """Store what was computed, until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._unsaved:
                batch = dict(list(self._unsaved.items())[:SAVED_TOGETHER])
                for blob_id in batch:
                    del self._unsaved[blob_id]
                try:
                    async with self._database.transaction() as connection:
                        await save_structures(connection, batch)
                except Temporary as failure:
                    log.info("structures not stored", mails=len(batch), error=str(failure))
                except Exception:  # a defect must not end the task: no structure would be stored any more
                    log.exception("structures not stored", mails=len(batch))


def _read_all(heads: Mapping[int, bytes]) -> dict[int, MailStructure]:
    return {blob_id: read_whole(octets) for blob_id, octets in heads.items()}


def _groups(mails: Mapping[int, int], most: int) -> Iterator[list[int]]:
    """Yield blob ids in groups of so many octets, but at least one."""
    group: list[int] = []
    total = 0
    for blob_id, octets in mails.items():
        if group and total + octets > most:
            yield group
            group, total = [], 0
        group.append(blob_id)
        total += octets
    if group:
        yield group


# ---------------------------------------------------------------------------------------------- table mail_structures


async def load_structures(connection: Connection, blob_ids: Sequence[int]) -> dict[int, MailStructure]:
    """Load the structures of mails by blob id. Those that are missing or of another version are left out."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        "select blob_id, structure from mail_structures where blob_id = any(%s::bigint[])", (array_literal(blob_ids),)
    )
    decoded = ((blob_id, decode_structure(stored)) for blob_id, stored in await cursor.fetchall())
    return {blob_id: structure for blob_id, structure in decoded if structure is not None}


async def save_structures(connection: Connection, structures: Mapping[int, MailStructure]) -> None:
    """Store structures by blob id; of purged mails none. The transaction need not survive a crash."""
    await connection.execute("set local synchronous_commit = off")
    ordered = sorted(structures)  # another process may store the same ones
    await connection.execute(
        """insert into mail_structures (blob_id, structure)
           select b.id, s.structure from unnest(%s::bigint[], %b::bytea[]) as s (blob_id, structure)
               join blobs b on b.id = s.blob_id order by b.id for key share of b
           on conflict (blob_id) do update set structure = excluded.structure""",
        (array_literal(ordered), [structures[blob_id].encode() for blob_id in ordered]),
    )
