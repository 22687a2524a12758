"""SEARCH, SORT and THREAD (RFC 3501 section 6.4.4, RFC 4731, RFC 5182, RFC 5256), in bounded memory."""

from __future__ import annotations

import asyncio
import datetime as dt
from array import array
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.fetch_texts import ReadableMail
from services.imap_out.grammar.commands import ImapCommand, SearchArguments, SortArguments, ThreadArguments
from services.imap_out.grammar.keys import SearchKey
from services.imap_out.mails_ahead import read_groups
from services.imap_out.responses import data
from services.imap_out.search.body_search import BodySearch
from services.imap_out.search.evaluation import (
    Need,
    SearchTest,
    SearchView,
    body_texts,
    compile_search,
    has_modseq,
    need_of,
    text_places,
)
from services.imap_out.search.mail_texts import SearchedMail, UnreadMail
from services.imap_out.search.plain_mails import lacking_texts, split_texts
from services.imap_out.search.sorting import SortFacts, needs_header, read_sort_facts, sort_mails
from services.imap_out.search.threading import (
    format_threads,
    read_thread_facts,
    thread_by_references,
    thread_by_subject,
)
from services.imap_out.structure.stored import MailStructure
from services.imap_out.view import FolderState, flag_bit
from shared.errors import Permanent
from shared.mime import headers
from shared.runtime.parsing import Parsing
from shared.store.blobs import HEAD_OCTETS

MAILS_IN_TURN = 2_000
"""Mails that are tested with the view alone before other sessions have their turn: some milliseconds."""
HEADERS_A_QUERY = 100
"""Headers that are read together."""
FACT_OCTETS = 100
"""About what SORT and THREAD know of a mail: octets; with many mails, they are put in order in a thread."""
UNREAD_A_QUERY = 1_000
"""Mails that the database looks into together: some hundredths of a second."""
MAX_SOUGHT_WORDS = 50
"""Words of all texts of a key for which the database is asked."""


async def run_search(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """SEARCH and UID SEARCH."""
    arguments = command.arguments
    assert isinstance(arguments, SearchArguments)
    selected = context.folder
    returns = arguments.returns
    if returns is None and context.rev2:
        returns = frozenset(("ALL",))  # RFC 9051 section 6.4.4: the answer is always ESEARCH
    if returns is not None and "SAVE" in returns:
        saved, selected.saved = selected.saved, ()  # a search that fails saves nothing (RFC 5182 section 2.1)
        found = await _find(context, arguments.key, saved)
    else:
        found = await _find(context, arguments.key, selected.saved)
    state = selected.state
    modseq = None
    if has_modseq(arguments.key):
        context.enabled.add("CONDSTORE")
        modseq = max((state.versions[index] for index in found), default=0)
    numbers = _numbers(state, found, command.uid)
    if returns is None:
        await context.send_all(data.search(numbers, modseq))
        return TaggedAnswer("searched")
    if "SAVE" in returns:
        selected.saved = _saved(state, found, returns)
    if returns != {"SAVE"}:
        context.transport.write(data.extended_search(command.tag, numbers, returns, command.uid, modseq))
    return TaggedAnswer("searched")


def _numbers(state: FolderState, indexes: Sequence[int], uid: bool) -> list[int]:
    return [state.uids[index] for index in indexes] if uid else [index + 1 for index in indexes]


def _saved(state: FolderState, found: Sequence[int], returns: Collection[str]) -> list[int]:
    """Return the UIDs that ``$`` stands for (RFC 5182 section 2.4)."""
    if {"MIN", "MAX"} & set(returns) and not {"ALL", "COUNT"} & set(returns):
        found = sorted({*(found[:1] if "MIN" in returns else ()), *(found[-1:] if "MAX" in returns else ())})
    return [state.uids[index] for index in found]


async def run_sort(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """SORT and UID SORT."""
    arguments = command.arguments
    assert isinstance(arguments, SortArguments)
    state = context.folder.state
    found = await _find(context, arguments.key, context.folder.saved)
    facts: list[SortFacts] = []
    parsing = Parsing()
    if needs_header(arguments.order):
        async with aclosing(_headers(context, state, found)) as mails:
            async for index, header in mails:
                arrival, octets = _arrival(state, index), state.octets[index]
                facts.append(await parsing.run(len(header), read_sort_facts, header, arrival, octets))
    else:
        facts = [SortFacts(_arrival(state, index), state.octets[index], 0.0) for index in found]
    positions = await parsing.run(FACT_OCTETS * len(facts), sort_mails, arguments.order, facts)
    ordered = [found[position] for position in positions]
    modseq = None
    if has_modseq(arguments.key):
        context.enabled.add("CONDSTORE")
        modseq = max((state.versions[index] for index in found), default=0)
    await context.send_all(data.search(_numbers(state, ordered, command.uid), modseq, "SORT"))
    return TaggedAnswer("sorted")


async def run_thread(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """THREAD and UID THREAD."""
    arguments = command.arguments
    assert isinstance(arguments, ThreadArguments)
    state = context.folder.state
    found = await _find(context, arguments.key, context.folder.saved)
    facts = []
    parsing = Parsing()
    async with aclosing(_headers(context, state, found)) as mails:
        async for index, header in mails:
            number = state.uids[index] if command.uid else index + 1
            facts.append(await parsing.run(len(header), read_thread_facts, header, number, _arrival(state, index)))
    join = thread_by_references if arguments.algorithm == "REFERENCES" else thread_by_subject
    threads = await parsing.run(FACT_OCTETS * len(facts), lambda: format_threads(join(facts)))
    context.transport.write(threads)
    return TaggedAnswer("threaded")


# ---------------------------------------------------------------------------------------------- the mails


class _Arrivals(Sequence[float]):
    """INTERNALDATE in seconds."""

    def __init__(self, dates: array[int]) -> None:
        self._dates = dates

    def __len__(self) -> int:
        return len(self._dates)

    def __getitem__(self, index: int) -> float:  # type: ignore[override]
        return self._dates[index] / 1_000_000

    def __iter__(self) -> Iterator[float]:
        return (date / 1_000_000 for date in self._dates)


def _arrival(state: FolderState, index: int) -> float:
    return state.dates[index] / 1_000_000


def _flag_test(state: FolderState) -> Callable[[str], Callable[[int], bool]]:
    def test(flag: str) -> Callable[[int], bool]:
        bit, flags = flag_bit(flag), state.flags
        if bit:
            return lambda index: flags[index] & bit != 0
        having = {uid for uid, words in state.keywords.items() if any(word.lower() == flag for word in words)}
        return lambda index: state.uids[index] in having

    return test


async def _find(context: ImapContext, key: SearchKey, saved: Collection[int]) -> list[int]:
    """Return the indexes of the mails that match, ascending. :raises Temporary: the database is unavailable."""
    state = context.folder.state
    view = SearchView(state.uids, state.octets, _Arrivals(state.dates), state.versions, _flag_test(state), saved)
    test = compile_search(key, view, dt.datetime.now(dt.UTC))
    found: list[int] = []
    unknown: list[int] = []
    for index in range(len(state)):
        matches = test(index, None)
        if matches is None:
            unknown.append(index)
        elif matches:
            found.append(index)
        if index % MAILS_IN_TURN == MAILS_IN_TURN - 1:
            await asyncio.sleep(0)
    if unknown:
        found += await _MailSearch(context, state, key, test).run(unknown)
    return sorted(found)


class _MailSearch:
    """The search of the mails that have to be read."""

    def __init__(self, context: ImapContext, state: FolderState, key: SearchKey, test: SearchTest) -> None:
        self._context = context
        self._state = state
        self._test = test
        self._in_bodies = body_texts(key) if need_of(key) is Need.TEXT else frozenset[str]()
        self._texts = split_texts(text_places(key))
        self._parsing = Parsing()

    async def run(self, indexes: Sequence[int]) -> list[int]:
        """Return the indexes of those of these mails that match. :raises Temporary: the database is unavailable."""
        found, unknown = await self._test_unread(indexes)
        async with aclosing(_beginnings(self._context, self._state, unknown)) as groups:
            async for group in groups:
                octets = sum(len(beginning) for _, beginning in group)
                matching, undecided = await self._parsing.run(octets, self._compare, group)
                found += matching
                if undecided:
                    found += await self._search_bodies(undecided)
        return found

    async def _test_unread(self, indexes: Sequence[int]) -> tuple[list[int], Sequence[int]]:
        """Test plain mails, in whose octets the database looks for the texts.

        :return: the indexes of mails that match; and of those that have to be read.
        """
        blob_ids, store = self._state.blob_ids, self._context.store
        sought = list(self._texts.values())
        if not any(text.words for text in sought) or sum(len(text.words) for text in sought) > MAX_SOUGHT_WORDS:
            return [], indexes
        found: list[int] = []
        unknown = [index for index in indexes if blob_ids[index] not in store.plain]
        plain = [index for index in indexes if blob_ids[index] in store.plain]
        for start in range(0, len(plain), UNREAD_A_QUERY):
            group = plain[start : start + UNREAD_A_QUERY]
            having = await store.find_texts([blob_ids[index] for index in group], sought)
            for index in group:
                there = having.get(blob_ids[index])
                lacking = (
                    {text for text, may in zip(self._texts, there, strict=True) if not may} if there else self._texts
                )
                matches = self._test(index, UnreadMail(lacking))
                if matches is None:
                    unknown.append(index)
                elif matches:
                    found.append(index)
        return found, sorted(unknown)

    def _compare(self, group: Sequence[tuple[int, bytes]]) -> tuple[list[int], dict[int, bytes]]:
        """Compare what can be known without the bodies. :param group: indexes and the beginnings of the mails.

        :return: the indexes of mails that match; and the beginnings of those whose bodies decide, by index.
        """
        found, undecided = [], {}
        for index, beginning in group:
            whole = len(beginning) == self._state.octets[index]
            lacking = lacking_texts(beginning, self._texts) if whole else frozenset[str]()
            if lacking:
                self._context.store.plain.add(self._state.blob_ids[index], beginning)
            header = beginning[: headers.header_end(beginning)]
            in_body = frozenset[str]() if whole and lacking.issuperset(self._in_bodies) else None
            matches = self._test(index, SearchedMail(header, in_body, lacking))
            if matches is None:
                undecided[index] = beginning
            elif matches:
                found.append(index)
        return found, undecided

    async def _search_bodies(self, undecided: Mapping[int, bytes]) -> list[int]:
        """Return the indexes of the mails that match by their bodies. :param undecided: beginnings by index."""
        state, context = self._state, self._context
        whole = {index: text for index, text in undecided.items() if len(text) == state.octets[index]}
        structures = await context.store.structures.load(
            {state.blob_ids[index]: state.octets[index] for index in undecided},
            context.transport.budget,
            {state.blob_ids[index]: text for index, text in whole.items()},
        )
        found: list[int] = []
        if whole:
            found += await self._parsing.run(sum(map(len, whole.values())), self._compare_bodies, whole, structures)
        for index, beginning in undecided.items():
            if index not in whole:
                there = await self._search_body(index, structures.get(state.blob_ids[index]))
                if await self._parsing.run(len(beginning), self._matches, index, beginning, there):
                    found.append(index)
        return found

    def _compare_bodies(self, mails: Mapping[int, bytes], structures: Mapping[int, MailStructure]) -> list[int]:
        found = []
        for index, mail in mails.items():
            searching = BodySearch(structures[self._state.blob_ids[index]], self._in_bodies)
            searching.feed(mail)
            searching.finish()
            if self._matches(index, mail, searching.found):
                found.append(index)
        return found

    def _matches(self, index: int, beginning: bytes, in_body: Collection[str]) -> bool:
        return self._test(index, SearchedMail(beginning[: headers.header_end(beginning)], in_body)) is True

    async def _search_body(self, index: int, structure: MailStructure | None) -> Collection[str]:
        """Return those of the texts that are in the body of a mail, which is read in pieces."""
        state, context = self._state, self._context
        mail = ReadableMail(
            context.store, context.transport.budget, state.blob_ids[index], state.octets[index], None, structure
        )
        try:
            searching = BodySearch(await mail.structure(), self._in_bodies)
            async with aclosing(mail.pieces(0, mail.octets)) as pieces:
                async for piece in pieces:
                    await self._parsing.run(len(piece), searching.feed, piece)
                    if searching.done:
                        break
            await self._parsing.run(1, searching.finish)
        except Permanent:  # its octets are purged: it is expunged, and has no text any more
            return ()
        return searching.found


async def _headers(
    context: ImapContext, state: FolderState, indexes: Sequence[int]
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the header of each mail; a mail whose octets are purged has none. The caller closes the generator."""
    async with aclosing(_beginnings(context, state, indexes)) as groups:
        async for group in groups:
            for index, beginning in group:
                yield index, beginning[: headers.header_end(beginning)]


async def _beginnings(
    context: ImapContext, state: FolderState, indexes: Sequence[int]
) -> AsyncGenerator[list[tuple[int, bytes]], None]:
    """Yield the beginnings of mails in groups: at least the header, as far as HEAD_OCTETS; b"": the mail is purged.

    The caller closes the generator.
    """
    store = context.store

    async def read(group: Sequence[int]) -> list[tuple[int, bytes]]:
        found = []
        beginnings = await store.read_headers(list(dict.fromkeys(state.blob_ids[index] for index in group)))
        for index in group:
            blob_id, octets = state.blob_ids[index], state.octets[index]
            beginning = beginnings.get(blob_id, b"")
            if len(beginning) < min(octets, HEAD_OCTETS) and headers.header_end(beginning) == len(beginning):
                beginning = (await store.read_heads([blob_id], HEAD_OCTETS)).get(blob_id, b"")
            found.append((index, beginning))
        return found

    groups = [indexes[start : start + HEADERS_A_QUERY] for start in range(0, len(indexes), HEADERS_A_QUERY)]
    async with aclosing(read_groups(groups, read)) as beginnings:
        async for _, group in beginnings:
            yield group
            await asyncio.sleep(0)
