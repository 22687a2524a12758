"""Reads the octets of one mail for FETCH: its beginning, its structure, and any part of it in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from services.imap_out.folder_store import FolderStore
from services.imap_out.grammar.fetch_items import Section
from services.imap_out.structure.sections import SectionSpan, filter_header, leaf_span, needs_structure, section_span
from services.imap_out.structure.stored import MailStructure, PartSpan
from services.imap_out.structure.transfer_decoding import TransferDecoder
from shared.errors import Permanent
from shared.mime import headers
from shared.runtime.memory_budget import MemoryBudget
from shared.runtime.parsing import Parsing
from shared.runtime.piece_reader import read_pieces
from shared.store.blobs import HEAD_OCTETS

MAX_HEADER_OCTETS = 2 * 1024 * 1024
"""Octets of a header whose fields are filtered; the rest of a longer one is left out."""


class ReadableMail:
    """A mail of which FETCH reads some."""

    def __init__(
        self,
        store: FolderStore,
        budget: MemoryBudget,
        blob_id: int,
        octets: int,
        beginning: bytes | None = None,
        structure: MailStructure | None = None,
    ) -> None:
        """:param beginning: its first octets, if they are in memory. :param structure: if it is in memory."""
        self.octets = octets
        self._store = store
        self._budget = budget
        self._blob_id = blob_id
        self._beginning = beginning or b""
        self._structure = structure or store.structures.known(blob_id)

    async def structure(self) -> MailStructure:
        """Return the structure. :raises Temporary: the database is unavailable. :raises Permanent: the mail is gone."""
        if self._structure is None:
            heads = {self._blob_id: self._beginning} if len(self._beginning) == self.octets else None
            found = await self._store.structures.load({self._blob_id: self.octets}, self._budget, heads)
            self._structure = found.get(self._blob_id)
            if self._structure is None:
                raise Permanent(f"the bytes of blob {self._blob_id} are gone")
        return self._structure

    async def span(self, section: Section) -> SectionSpan:
        """Return where a section is."""
        if section == Section():
            return SectionSpan(0, self.octets)
        if needs_structure(section):
            return section_span(section, 0, self.octets, await self.structure())
        return section_span(section, await self._header_end(), self.octets)

    async def leaf(self, section: Section) -> PartSpan | None:
        """Return the part whose octets BINARY wants; None: there is none, or it has parts. () is the whole mail."""
        return leaf_span(await self.structure(), section.part)

    async def _header_end(self) -> int:
        if self._structure is not None:
            return self._structure.parts[0].body_start
        end = headers.header_end(self._beginning)
        if end < len(self._beginning) or len(self._beginning) == self.octets:
            return end
        if len(self._beginning) < min(self.octets, HEAD_OCTETS):
            found = await self._store.read_heads([self._blob_id], min(self.octets, HEAD_OCTETS))
            self._beginning = found.get(self._blob_id, b"")
            if not self._beginning:
                raise Permanent(f"the bytes of blob {self._blob_id} are gone")
            return await self._header_end()
        return (await self.structure()).parts[0].body_start

    def in_memory(self, span: SectionSpan) -> bytes | None:
        """Return these octets if they are in memory."""
        return self._beginning[span.start : span.end] if span.end <= len(self._beginning) else None

    async def pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Read octets in pieces. The caller closes the generator. :raises Temporary, Permanent: they are missing."""
        if end <= len(self._beginning):
            yield self._beginning[start:end]
            return
        position = start
        async with aclosing(read_pieces(self._store.read_span, self._budget, self._blob_id, start, end)) as pieces:
            async for piece in pieces:
                if not piece:
                    raise Permanent(f"the bytes of blob {self._blob_id} from {position} on are missing")
                position += len(piece)
                yield piece

    async def read(self, start: int, end: int) -> bytes:
        """Read octets into memory."""
        async with aclosing(self.pieces(start, end)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def header_fields(self, span: SectionSpan) -> bytes:
        """Return the fields of a header that a section names."""
        assert span.names is not None
        header = await self.read(span.start, min(span.end, span.start + MAX_HEADER_OCTETS))
        return await Parsing().run(len(header), filter_header, header, span.names, span.negated)

    async def decoded(self, part: PartSpan | None) -> AsyncGenerator[bytes, None]:
        """Decode the octets of a part, or of the mail, in pieces. The caller closes the generator."""
        if part is None:
            start, end, decoder = 0, self.octets, TransferDecoder("binary")
        else:
            start, end, decoder = part.body_start, part.body_end, TransferDecoder(part.encoding)
        async with aclosing(self.pieces(start, end)) as pieces:
            async for piece in pieces:
                yield decoder.feed(piece)
        yield decoder.finish()
