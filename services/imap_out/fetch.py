"""FETCH (RFC 3501 section 6.4.5, RFC 3516, RFC 7162 section 3.1.4): streams what it reads, in bounded memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.fetch_texts import ReadableMail
from services.imap_out.grammar.commands import FetchArguments, ImapCommand
from services.imap_out.grammar.errors import CommandError
from services.imap_out.grammar.fetch_items import FetchAttribute, Section
from services.imap_out.number_sets import SAVED, NumberSet, ranges_of
from services.imap_out.responses import fetch, status
from services.imap_out.selected import vanished_since
from services.imap_out.structure.sections import SectionSpan, needs_structure
from services.imap_out.structure.stored import PartSpan
from services.imap_out.structure.transfer_decoding import is_known
from services.imap_out.view import with_flags
from shared.errors import Permanent
from shared.runtime.memory_budget import session_share
from shared.runtime.served_connection import BURST_OCTETS
from shared.store import folder_edits
from shared.store.blobs import HEAD_OCTETS
from shared.store.folder_views import SEEN

MAILS_A_QUERY = 100
"""Mails whose beginnings are read together."""
QUERY_OCTETS = 512 * 1024
"""The same: octets of these beginnings."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_STRUCTURE_ITEMS = frozenset(("ENVELOPE", "BODYSTRUCTURE", "BODY", "BINARY[]", "BINARY.SIZE[]"))


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
        items.append(FetchAttribute("MODSEQ"))
    if command.uid:
        items.insert(0, FetchAttribute("UID"))
    items = list(dict.fromkeys(items))
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
    async with context.change() as connection:
        result = await folder_edits.store_flags(connection, context.account.id, state.folder.id, unseen, "add", SEEN)
    changed = [(mail.uid, mail.flags, mail.keywords) for mail in result.changed]
    context.show_own_change(with_flags(state, changed, result.folder))
    return frozenset(uid for uid, _, _ in changed)


@dataclass(slots=True)
class _Fetch:
    """One FETCH. missing: a mail's octets are purged. unknown_encoding: BINARY could not decode a part."""

    context: ImapContext
    items: Sequence[FetchAttribute]
    seen: frozenset[int]
    missing: bool = False
    unknown_encoding: bool = False

    async def run(self, indexes: Sequence[int]) -> None:
        """Send the responses."""
        texts = [item for item in self.items if item.source is not None]
        if not texts and not any(item.name in _STRUCTURE_ITEMS for item in self.items):
            await self.context.send_all(map(self._short_response, indexes))
            return
        async for index, beginning in self._beginnings(indexes):
            state = self.context.folder.state
            mail = ReadableMail(
                self.context.store, self.context.transport.budget, state.blob_ids[index], state.octets[index], beginning
            )
            await self._send(index, mail)

    def _short_response(self, index: int) -> bytes:
        return fetch.response(index + 1, [self._short(index, item) for item in self._all_items(index)])

    def _all_items(self, index: int) -> Sequence[FetchAttribute]:
        if self.seen and self.context.folder.state.uids[index] in self.seen:
            modseq = [FetchAttribute("MODSEQ")] if self.context.shows_modseq else []  # RFC 7162 section 3.2
            return list(dict.fromkeys((*self.items, FetchAttribute("FLAGS"), *modseq)))
        return self.items

    def _short(self, index: int, item: FetchAttribute) -> bytes:
        state = self.context.folder.state
        match item.name:
            case "UID":
                return fetch.uid(state.uids[index])
            case "FLAGS":
                return fetch.flags(state.flag_names(index))
            case "MODSEQ":
                return fetch.modseq(state.versions[index])
            case "RFC822.SIZE":
                return fetch.size(state.octets[index])
        return fetch.internal_date(_EPOCH + dt.timedelta(microseconds=state.dates[index]))

    async def _beginnings(self, indexes: Sequence[int]) -> AsyncIterator[tuple[int, bytes | None]]:
        """Yield each mail with its beginning, as far as the items need it; many are read together."""
        context = self.context
        whole, some = self._needed()
        if not some:
            for index in indexes:
                yield index, None
            return
        state, store, budget = context.folder.state, context.store, context.transport.budget
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
            ids = [state.blob_ids[index] for index in group if self._wants_beginning(index, whole)]
            budget.add(octets)
            try:
                read = store.read_heads(list(dict.fromkeys(ids)), octets) if whole else store.read_headers(ids)
                found = await read
                for index in group:
                    yield index, found.get(state.blob_ids[index])
            finally:
                budget.release(octets)

    def _needed(self) -> tuple[bool, bool]:
        """Return whether whole small mails are needed, and whether their beginnings are."""
        sections = [item.source for item in self.items if item.source is not None]
        structure = any(item.name in _STRUCTURE_ITEMS for item in self.items) or any(map(needs_structure, sections))
        bodies = any(section.text in ("", "TEXT") for section in sections)
        return structure or bodies, structure or bool(sections)

    def _wants_beginning(self, index: int, whole: bool) -> bool:
        """Whether the beginning of a mail is worth reading: not of a large one whose pieces are streamed anyway."""
        state = self.context.folder.state
        if not whole or state.octets[index] <= HEAD_OCTETS:
            known = self.context.store.known_structure(state.blob_ids[index]) is not None
            return not (known and all(item.name in _STRUCTURE_ITEMS or item.source is None for item in self.items))
        return False

    # ------------------------------------------------------------------------------------------ a mail

    async def _send(self, index: int, mail: ReadableMail) -> None:
        """Send the response of one mail: what is short at once, long texts in pieces."""
        context = self.context
        out = [fetch.start(index + 1)]
        octets = 0
        blank = b""
        try:
            if any(item.name in ("ENVELOPE", "BODYSTRUCTURE", "BODY") for item in self.items):
                await mail.structure()  # before a part of the response is sent
            for item in self._all_items(index):
                value = await self._value(index, item, mail)
                if isinstance(value, bytes):
                    out += (blank, value)
                    octets += len(value)
                elif isinstance(value, SectionSpan):
                    out += (blank, fetch.announced(item, value.end - value.start))
                    await self._stream(out, mail.pieces(value.start, value.end), binary=False)
                    out, octets = [], 0
                elif value is not None:
                    out += (blank, fetch.announced(item, value.end - value.start, value.has_nul))
                    await self._stream(out, value.pieces(mail), binary=True)
                    out, octets = [], 0
                blank = b" " if value is not None else blank
                if octets > BURST_OCTETS:
                    context.transport.write(b"".join(out))
                    context.in_response = True
                    out, octets = [], 0
                    await context.transport.drain()
        except Permanent:
            if context.in_response:
                raise
            self.missing = True
            return
        context.transport.write(b"".join((*out, fetch.END)))
        context.in_response = False
        await context.transport.drain()

    async def _value(
        self, index: int, item: FetchAttribute, mail: ReadableMail
    ) -> bytes | SectionSpan | _DecodedSpan | None:
        """Return an item, or the octets to stream; None: it is left out."""
        match item.name:
            case "ENVELOPE":
                return fetch.envelope((await mail.structure()).envelope)
            case "BODYSTRUCTURE":
                return fetch.body_structure((await mail.structure()).bodystructure, extended=True)
            case "BODY":
                return fetch.body_structure((await mail.structure()).body, extended=False)
            case "BINARY[]" | "BINARY.SIZE[]":
                return await self._binary(item, mail)
        if item.source is None:
            return self._short(index, item)
        return await self._text(item, item.source, mail)

    async def _text(self, item: FetchAttribute, section: Section, mail: ReadableMail) -> bytes | SectionSpan:
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

    async def _stream(self, before: Sequence[bytes], pieces: AsyncGenerator[bytes, None], binary: bool) -> None:
        """Send octets in pieces, as the client reads them. :param binary: NULs may be sent (``fetch.announced``)."""
        transport = self.context.transport
        async with aclosing(pieces):
            started = False
            async for piece in pieces:
                if not started:  # after the first piece: a failure before it is answered
                    transport.write(b"".join(before))
                    self.context.in_response = started = True
                transport.write(piece.replace(b"\0", b"\x80") if b"\0" in piece and not binary else piece)
                del piece  # while the client is slow, only the connection holds it
                await transport.drain()
            if not started:
                transport.write(b"".join(before))
                self.context.in_response = True

    # ------------------------------------------------------------------------------------------ BINARY

    async def _binary(self, item: FetchAttribute, mail: ReadableMail) -> bytes | _DecodedSpan | None:
        """Return BINARY.SIZE, or what to decode; None if the part's encoding is not known, which fails the command.

        The size is known only after decoding, so a part is decoded twice rather than held in memory.
        """
        section = item.section
        assert section is not None
        part = await mail.leaf(section) if section.part else None
        if section.part and part is None:
            return fetch.binary_size(item, 0) if item.name == "BINARY.SIZE[]" else fetch.text(item, b"")
        if part is not None and not is_known(part.encoding):
            self.unknown_encoding = True
            return None
        size, has_nul = 0, False
        async with aclosing(mail.decoded(part)) as pieces:
            async for piece in pieces:
                size += len(piece)
                has_nul = has_nul or b"\0" in piece
        if item.name == "BINARY.SIZE[]":
            return fetch.binary_size(item, size)
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
