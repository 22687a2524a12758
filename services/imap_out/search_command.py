"""SEARCH, SORT and THREAD (RFC 3501 section 6.4.4, RFC 4731, RFC 5182, RFC 5256), in bounded memory."""

from __future__ import annotations

import asyncio
import datetime as dt
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.fetch_texts import ReadableMail
from services.imap_out.grammar.commands import ImapCommand, SearchArguments, SortArguments, ThreadArguments
from services.imap_out.grammar.keys import SearchKey
from services.imap_out.responses import data
from services.imap_out.search.body_search import BodySearch
from services.imap_out.search.evaluation import Need, SearchView, body_texts, compile_search, has_modseq, need_of
from services.imap_out.search.mail_texts import SearchedMail
from services.imap_out.search.sorting import SortFacts, needs_header, read_sort_facts, sort_mails
from services.imap_out.search.threading import (
    format_threads,
    read_thread_facts,
    thread_by_references,
    thread_by_subject,
)
from services.imap_out.view import FolderState, flag_bit
from shared.errors import Permanent
from shared.mime import headers
from shared.runtime.parsing import Parsing
from shared.store.blobs import HEAD_OCTETS

MAILS_IN_TURN = 2_000
"""Mails that are tested with the view alone before other sessions have their turn: some milliseconds."""
HEADERS_A_QUERY = 100
"""Headers that are read together."""


async def run_search(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """SEARCH and UID SEARCH."""
    arguments = command.arguments
    assert isinstance(arguments, SearchArguments)
    selected = context.folder
    returns = arguments.returns
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
    if needs_header(arguments.order):
        async for index, header in _headers(context, state, found):
            facts.append(read_sort_facts(header, _arrival(state, index), state.octets[index]))
    else:
        facts = [SortFacts(_arrival(state, index), state.octets[index], 0.0) for index in found]
    ordered = [found[position] for position in sort_mails(arguments.order, facts)]
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
    async for index, header in _headers(context, state, found):
        number = state.uids[index] if command.uid else index + 1
        facts.append(read_thread_facts(header, number, _arrival(state, index)))
    join = thread_by_references if arguments.algorithm == "REFERENCES" else thread_by_subject
    context.transport.write(format_threads(join(facts)))
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
    texts = body_texts(key) if need_of(key) is Need.TEXT else frozenset[str]()
    parsing = Parsing()
    if unknown:
        async for index, header in _headers(context, state, unknown):
            matches = await parsing.run(len(header), test, index, SearchedMail(header))
            if matches is None:
                there = await _search_body(context, state, index, texts, parsing)
                matches = await parsing.run(len(header), test, index, SearchedMail(header, there))
            if matches:
                found.append(index)
    return sorted(found)


async def _headers(
    context: ImapContext, state: FolderState, indexes: Sequence[int]
) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the header of each mail; a mail whose octets are purged has none."""
    store = context.store
    for start in range(0, len(indexes), HEADERS_A_QUERY):
        group = indexes[start : start + HEADERS_A_QUERY]
        beginnings = await store.read_headers([state.blob_ids[index] for index in group])
        for index in group:
            blob_id, octets = state.blob_ids[index], state.octets[index]
            beginning = beginnings.get(blob_id, b"")
            end = headers.header_end(beginning)
            if end == len(beginning) < min(octets, HEAD_OCTETS):
                beginning = (await store.read_heads([blob_id], HEAD_OCTETS)).get(blob_id, b"")
                end = headers.header_end(beginning)
            yield index, beginning[:end]
        await asyncio.sleep(0)


async def _search_body(
    context: ImapContext, state: FolderState, index: int, texts: Collection[str], parsing: Parsing
) -> Collection[str]:
    """Return those of these texts that are in the body of a mail."""
    mail = ReadableMail(
        context.store, context.transport.budget, state.blob_ids[index], state.octets[index], beginning=None
    )
    try:
        searching = BodySearch(await mail.structure(), texts)
        async with aclosing(mail.pieces(0, mail.octets)) as pieces:
            async for piece in pieces:
                await parsing.run(len(piece), searching.feed, piece)
                if searching.done:
                    break
        await parsing.run(1, searching.finish)
    except Permanent:  # its octets are purged: it is expunged, and has no text any more
        return ()
    return searching.found
