"""FETCH (RFC 3501 section 6.4.5, RFC 3516, RFC 7162 section 3.1.4): streams what it reads, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.fetch_answers import FetchAnswer
from services.imap_out.fetch_rows import FORMS, STRUCTURE_ITEMS, format_item, format_rows
from services.imap_out.fetch_texts import ReadableMail
from services.imap_out.grammar.commands import FetchArguments, ImapCommand
from services.imap_out.grammar.errors import CommandError
from services.imap_out.grammar.fetch_items import FetchAttribute, Section
from services.imap_out.number_sets import SAVED, NumberSet, ranges_of
from services.imap_out.responses import fetch, status
from services.imap_out.selected import vanished_since
from services.imap_out.structure.sections import SectionSpan, needs_structure
from services.imap_out.structure.stored import MailStructure, PartSpan
from services.imap_out.structure.transfer_decoding import is_known
from shared.errors import Permanent
from shared.runtime.memory_budget import session_share
from shared.runtime.served_connection import BURST_OCTETS
from shared.store.blobs import HEAD_OCTETS
from shared.store.folder_views import SEEN

MAILS_A_QUERY = 100
"""Mails whose beginnings are read together."""
QUERY_OCTETS = 512 * 1024
"""The same: octets of these beginnings."""
STRUCTURES_A_QUERY = 500
"""Structures that are read together, from the database or (in smaller groups) from the mails."""

_UID, _MODSEQ = FetchAttribute("UID"), FetchAttribute("MODSEQ")
_WHOLE = Section()
_WHOLE_MAIL = ("BODY[]", "RFC822")
"""Items whose text may be the whole mail."""
_PLAIN = FORMS.keys() - STRUCTURE_ITEMS
_WITH_STRUCTURE = STRUCTURE_ITEMS | {"BINARY[]", "BINARY.SIZE[]"}


async def run_fetch(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """FETCH and UID FETCH."""
    arguments = command.arguments
    assert isinstance(arguments, FetchArguments)
    if arguments.vanished and not (command.uid and "QRESYNC" in context.enabled):
        raise CommandError("VANISHED is for UID FETCH, after ENABLE QRESYNC (RFC 7162 section 3.2.6)")
    indexes = context.indexes(arguments.numbers, command.uid)
    items = list(arguments.items)
    if arguments.changed_since is not None or any(item.name == "MODSEQ" for item in items):
        context.enabled.add("CONDSTORE")
    if arguments.changed_since is not None:
        since, versions = arguments.changed_since, context.folder.state.versions
        if arguments.vanished:
            known = arguments.numbers
            if known == SAVED:
                known = NumberSet(tuple(ranges_of(context.folder.saved)))
            context.transport.write(status.vanished(await vanished_since(context, since, known), earlier=True))
        indexes = [index for index in indexes if versions[index] > since]
        items = list(dict.fromkeys((*items, _MODSEQ)))
    if command.uid:
        items = [_UID, *(item for item in items if item.name != "UID")]
    seen = await _mark_seen(context, indexes, items)
    fetching = _Fetch(context, items, seen)
    await fetching.run(indexes)
    if fetching.missing:
        return TaggedAnswer("some of the mails are gone", status.EXPUNGE_ISSUED, "NO")
    if fetching.unknown_encoding:
        return TaggedAnswer("a part has an encoding that is not known", "UNKNOWN-CTE", "NO")
    return TaggedAnswer("fetched")


async def _mark_seen(context: ImapContext, indexes: Sequence[int], items: Iterable[FetchAttribute]) -> frozenset[int]:
    """Set \\Seen where a text is read without PEEK. :return: UIDs of the mails whose flags have changed."""
    selected = context.folder
    if selected.read_only or all(item.peek for item in items):
        return frozenset()
    state = selected.state
    unseen = [state.uids[index] for index in indexes if not state.flags[index] & SEEN]
    if not unseen:
        return frozenset()
    result = await context.store_flags(unseen, "add", ("\\Seen",))
    return frozenset(mail.uid for mail in result.changed)


@dataclass(slots=True)
class _Fetch:
    """One FETCH. missing: a mail's octets are purged. unknown_encoding: BINARY could not decode a part."""

    context: ImapContext
    items: Sequence[FetchAttribute]
    seen: frozenset[int]
    missing: bool = False
    unknown_encoding: bool = False
    _out: list[bytes] = field(default_factory=list)  # not written yet
    _octets: int = 0  # of that

    async def run(self, indexes: Sequence[int]) -> None:
        """Send the responses."""
        names = [item.name for item in self.items]
        if all(name in FORMS for name in names):
            await self._send_rows(indexes, names)
        elif len(indexes) == 1 and self._is_whole_mail(indexes[0]):
            await self._send_whole_mail(indexes[0])
        else:
            await self._send_texts(indexes)

    def _is_whole_mail(self, index: int) -> bool:
        """Return whether a small mail is fetched whole, with nothing that needs its structure."""
        return self.context.folder.state.octets[index] <= HEAD_OCTETS and all(
            item.source == _WHOLE if item.name in _WHOLE_MAIL else item.name in _PLAIN for item in self.items
        )

    async def _send_whole_mail(self, index: int) -> None:
        """Send a small mail: what clients ask for mail after mail, so it has a short way of its own."""
        context, state = self.context, self.context.folder.state
        mail = (await context.ahead().fetch(state, index)).get(state.blob_ids[index])
        if mail is None:
            self.missing = True
            return
        out = [fetch.start(index + 1)]
        for item in self._all_items(index):
            if len(out) > 1:
                out.append(b" ")
            if item.source is None:
                out.append(format_item(item.name, state, index, None))
                continue
            first, count = item.partial or (0, len(mail))
            octets = mail[first : first + count]
            context.stats.fetched += 1
            context.stats.octets += len(octets)
            out += fetch.text(item, octets)
        out.append(fetch.END)
        context.send(out)

    async def _send_rows(self, indexes: Sequence[int], names: Sequence[str]) -> None:
        """Send responses without texts."""
        state, answers = self.context.folder.state, self.context.store.answers
        known = answers.find(state, names, indexes)
        if known is not None:
            await self.context.send_all(known)
            return
        with answers.record(state, names, indexes) as answer:
            if STRUCTURE_ITEMS.isdisjoint(names):
                await self.context.send_all(format_rows(names, state, indexes, {}), answer.add)
            else:
                await self._send_structures(indexes, names, answer)
            answer.complete = not self.missing

    async def _send_structures(self, indexes: Sequence[int], names: Sequence[str], answer: FetchAnswer) -> None:
        """Send responses with the structures of the mails. :param answer: gets what is sent."""
        state, store = self.context.folder.state, self.context.store
        for start in range(0, len(indexes), STRUCTURES_A_QUERY):
            group = indexes[start : start + STRUCTURES_A_QUERY]
            mails = {state.blob_ids[index]: state.octets[index] for index in group}
            structures = await store.structures.load(mails, self.context.transport.budget)
            if len(structures) < len(mails):
                self.missing = True
                group = [index for index in group if state.blob_ids[index] in structures]
            await self.context.send_all(format_rows(names, state, group, structures), answer.add)

    async def _send_texts(self, indexes: Sequence[int]) -> None:
        """Send responses with texts; many mails are written together."""
        try:
            async with aclosing(self._mails(indexes)) as mails:
                async for index, mail in mails:
                    await self._send(index, mail)
                    if self._octets > BURST_OCTETS:
                        await self._flush()
        finally:  # a response that has begun has to end
            if not self.context.in_response:
                self.context.transport.write(self._taken())

    async def _flush(self) -> None:
        self.context.transport.write(self._taken())
        await self.context.transport.drain()

    def _taken(self) -> bytes:
        out, self._out, self._octets = b"".join(self._out), [], 0
        return out

    def _all_items(self, index: int) -> Sequence[FetchAttribute]:
        if self.seen and self.context.folder.state.uids[index] in self.seen:
            modseq = [_MODSEQ] if self.context.shows_modseq else []  # RFC 7162 section 3.2
            return list(dict.fromkeys((*self.items, FetchAttribute("FLAGS"), *modseq)))
        return self.items

    # ------------------------------------------------------------------------------------------ what is read

    async def _mails(self, indexes: Sequence[int]) -> AsyncGenerator[tuple[int, ReadableMail], None]:
        """Yield each mail with its beginning and structure, as far as the items need them; many are read together.

        The caller closes the generator.
        """
        whole, some = self._needed()
        state, store, budget = self.context.folder.state, self.context.store, self.context.transport.budget
        position = 0
        while position < len(indexes):
            group: list[int] = []
            octets = 0
            most = max(min(QUERY_OCTETS, session_share(budget)), 1)
            while position < len(indexes) and len(group) < MAILS_A_QUERY:
                size = min(state.octets[indexes[position]], HEAD_OCTETS) if whole else 4096
                if group and octets + size > most:
                    break
                group.append(indexes[position])
                octets += size
                position += 1
            mails = {state.blob_ids[index]: state.octets[index] for index in group}
            budget.add(octets)
            try:
                found: Mapping[int, bytes] = {}
                if whole and len(indexes) == 1 and state.octets[group[0]] <= HEAD_OCTETS:
                    found = await self.context.ahead().fetch(state, group[0])
                elif whole:  # the pieces of a large one are streamed anyway
                    found = await store.read_heads([blob for blob in mails if mails[blob] <= HEAD_OCTETS], octets)
                elif some:
                    found = await store.read_headers(list(mails))
                structures: Mapping[int, MailStructure] = {}
                if self._needs_structure():
                    structures = await store.structures.load(mails, budget, found if whole else None)
                for index in group:
                    blob_id = state.blob_ids[index]
                    yield (
                        index,
                        ReadableMail(
                            store, budget, blob_id, mails[blob_id], found.get(blob_id), structures.get(blob_id)
                        ),
                    )
            finally:
                budget.release(octets)

    def _needs_structure(self) -> bool:
        return any(
            item.name in _WITH_STRUCTURE or (item.source is not None and needs_structure(item.source))
            for item in self.items
        )

    def _needed(self) -> tuple[bool, bool]:
        """Return whether whole small mails are needed, and whether their beginnings are."""
        sections = [item.source for item in self.items if item.source is not None]
        bodies = any(section.part or section.text in ("", "TEXT") for section in sections)
        return bodies, bool(sections)

    # ------------------------------------------------------------------------------------------ a mail

    async def _send(self, index: int, mail: ReadableMail) -> None:
        """Add the response of one mail to what is written next; long texts are streamed."""
        out = self._out
        began = len(out)
        out.append(fetch.start(index + 1))
        blank = b""
        try:
            if self._needs_structure():
                await mail.structure()  # before a part of the response is sent
            for item in self._all_items(index):
                value = await self._value(index, item, mail)
                if value is None:
                    continue
                out.append(blank)
                blank = b" "
                if isinstance(value, SectionSpan):
                    out.append(fetch.announced(item, value.end - value.start))
                    await self._stream(mail.pieces(value.start, value.end), binary=False)
                elif isinstance(value, _DecodedSpan):
                    out.append(fetch.announced(item, value.end - value.start, value.has_nul))
                    await self._stream(value.pieces(mail), binary=True)
                else:
                    out += value
                    self._octets += sum(map(len, value))
                if self._octets > BURST_OCTETS:
                    self.context.in_response = True
                    await self._flush()
                out = self._out
        except Exception as failure:
            if not self.context.in_response:
                del self._out[began:]
            if self.context.in_response or not isinstance(failure, Permanent):
                raise
            self.missing = True
            return
        out.append(fetch.END)
        self.context.in_response = False

    async def _value(
        self, index: int, item: FetchAttribute, mail: ReadableMail
    ) -> tuple[bytes, ...] | SectionSpan | _DecodedSpan | None:
        """Return an item in pieces, or the octets to stream; None: it is left out."""
        if item.source is not None:
            if item.name.startswith("BINARY"):
                return await self._binary(item, mail)
            return await self._text(item, item.source, mail)
        structure = await mail.structure() if item.name in STRUCTURE_ITEMS else None
        return (format_item(item.name, self.context.folder.state, index, structure),)

    async def _text(
        self, item: FetchAttribute, section: Section, mail: ReadableMail
    ) -> tuple[bytes, ...] | SectionSpan:
        span = await mail.span(section)
        stats = self.context.stats
        stats.fetched += 1
        if span.names is not None:
            kept = await mail.header_fields(span)
            first, count = item.partial or (0, len(kept))
            return fetch.text(item, kept[first : first + count])
        span = span.clipped(item.partial)
        stats.octets += span.end - span.start
        octets = mail.in_memory(span)
        return span if octets is None else fetch.text(item, octets)

    async def _stream(self, pieces: AsyncGenerator[bytes, None], binary: bool) -> None:
        """Send octets in pieces, as the client reads them. :param binary: NULs may be sent (``fetch.announced``)."""
        transport = self.context.transport
        async with aclosing(pieces):
            async for piece in pieces:
                if self._out:  # after the first piece: a failure before it is answered
                    transport.write(self._taken())
                    self.context.in_response = True
                transport.write(piece.replace(b"\0", b"\x80") if b"\0" in piece and not binary else piece)
                del piece  # while the client is slow, only the connection holds it
                await transport.drain()

    # ------------------------------------------------------------------------------------------ BINARY

    async def _binary(self, item: FetchAttribute, mail: ReadableMail) -> tuple[bytes, ...] | _DecodedSpan | None:
        """Return BINARY.SIZE, or what to decode; None if the part's encoding is not known, which fails the command.

        The size is known only after decoding, so a part is decoded twice rather than held in memory.
        """
        section = item.section
        assert section is not None
        part = await mail.leaf(section) if section.part else None
        if section.part and part is None:
            return (fetch.binary_size(item, 0),) if item.name == "BINARY.SIZE[]" else fetch.text(item, b"")
        if part is not None and not is_known(part.encoding):
            self.unknown_encoding = True
            return None
        size, has_nul = 0, False
        async with aclosing(mail.decoded(part)) as pieces:
            async for piece in pieces:
                size += len(piece)
                has_nul = has_nul or b"\0" in piece
        if item.name == "BINARY.SIZE[]":
            return (fetch.binary_size(item, size),)
        self.context.stats.fetched += 1
        first, count = item.partial or (0, size)
        start = min(first, size)
        return _DecodedSpan(part, start, min(start + count, size), has_nul)


@dataclass(frozen=True, slots=True)
class _DecodedSpan:
    """Decoded octets of a part. part: None: the mail."""

    part: PartSpan | None
    start: int
    end: int
    has_nul: bool

    async def pieces(self, mail: ReadableMail) -> AsyncGenerator[bytes, None]:
        """Decode them. The caller closes the generator."""
        position = 0
        async with aclosing(mail.decoded(self.part)) as pieces:
            async for piece in pieces:
                wanted = piece[max(self.start - position, 0) : max(self.end - position, 0)]
                position += len(piece)
                if wanted:
                    yield wanted
