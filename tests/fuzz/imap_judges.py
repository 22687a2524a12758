"""Judges of the IMAP server: the input is what a client sends, or a mail whose structure a client asks for."""

from __future__ import annotations

import re

from services.imap_out.grammar.command_input import (
    CommandInput,
    InputLimits,
    InputStep,
    ReadLiteral,
    ReceiveMail,
    RefuseCommand,
    RunCommand,
)
from services.imap_out.grammar.commands import FetchArguments, SearchArguments
from services.imap_out.number_sets import indexes_of_uids
from services.imap_out.responses import fetch, status
from services.imap_out.search.body_search import BodySearch
from services.imap_out.search.evaluation import body_texts, necessary_texts, need_of
from services.imap_out.search.sorting import read_sort_facts
from services.imap_out.search.threading import format_threads, read_thread_facts, thread_by_references
from services.imap_out.structure.stored import decode_structure, read_structure, read_whole
from shared.provider.imap_responses import Literal, Part, parse_values

_LIMITS = InputLimits(line_octets=4_096, literal_octets=1_000, literals=5, mail_octets=1_000, dropped_octets=10_000)
_UIDS = list(range(2, 200, 3))
_LITERAL = re.compile(rb"\{(\d+)\}\r\n")


def judge_commands(data: bytes) -> None:
    """Each command is run or refused with one line; its octets are never taken for the next one.

    The first octet says whether names are UTF-8. The stream ends as soon as octets are missing.
    """
    reader = CommandInput(_LIMITS, utf8=data[:1] == b"8")
    position = 1
    while (end := data.find(b"\n", position)) >= 0:
        step = reader.feed_line(data[position:end].removesuffix(b"\r"))
        position = end + 1
        match step:
            case ReadLiteral(octets, waits, dropped):
                assert octets <= _LIMITS.dropped_octets and not (waits and dropped)
                if position + octets > len(data):
                    return
                if not dropped:
                    assert octets <= _LIMITS.literal_octets
                    reader.feed_literal(data[position : position + octets])
                position += octets
            case ReceiveMail(command, octets, _, _):
                assert command.name == "APPEND" and 0 < octets <= _LIMITS.mail_octets
                position += octets
            case _:
                assert reader.is_empty
                _judge_end(step)
                if isinstance(step, RefuseCommand) and step.ends:
                    return


def _judge_end(step: InputStep) -> None:
    if isinstance(step, RefuseCommand):
        line = status.tagged(step.tag, step.error.kind, str(step.error), step.error.code)
        assert re.fullmatch(rb"[!-~]+ (BAD|NO) [ -~]+\r\n", line)
        assert str(step.error).isprintable()
    elif isinstance(step, RunCommand):
        assert re.fullmatch("[!-~]+", step.command.tag)
        mailbox = getattr(step.command.arguments, "mailbox", "")
        assert mailbox.isprintable() or not re.search("[\x00-\x1f\x7f]", mailbox)
        match step.command.arguments:
            case FetchArguments(numbers, items):
                assert indexes_of_uids(numbers, _UIDS) == sorted(set(indexes_of_uids(numbers, _UIDS)))
                assert all(re.fullmatch(rb"[ -~]+|(?s:.*\{\d+\}\r\n.*)", fetch.label(item)) for item in items)
            case SearchArguments(key):
                assert len(necessary_texts(key)) <= 1_000 and need_of(key) in (0, 1, 2)
                assert all(isinstance(text, str) for text in body_texts(key))


def judge_structure(data: bytes) -> None:
    """A structure does not depend on the pieces; its parts lie in each other; its texts are lists of IMAP."""
    structure = read_structure([data])
    step = 1 + len(data) % 61
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    assert read_structure(pieces) == structure == decode_structure(structure.encode()) == read_whole(data)
    for index, part in enumerate(structure.parts):
        assert 0 <= part.start <= part.body_start <= part.body_end <= len(data)
        around = structure.parts[part.parent] if index else part
        assert around.body_start <= part.start or not index
        assert part.body_end <= around.body_end
    for text, length in ((structure.envelope, 10), (structure.body, None), (structure.bodystructure, None)):
        if len(text) < 20_000:
            [values] = parse_values(_parts(text))
            assert isinstance(values, list) and (length is None or len(values) == length)
    whole, split = (BodySearch(structure, {"alex", "x", "\u00fc"}) for _ in range(2))
    whole.feed(data)
    for piece in pieces:
        split.feed(piece)
    whole.finish()
    split.finish()
    assert whole.found == split.found
    assert read_sort_facts(data, 0.0, 0).arrival == 0
    assert format_threads(thread_by_references([read_thread_facts(data, 1, 0.0)])) == b"* THREAD (1)\r\n"


def _parts(text: bytes) -> list[Part]:
    """Split a response at its literals."""
    parts: list[Part] = []
    position = 0
    while found := _next_literal(text, position):
        end = found.end() + int(found[1])
        parts += [text[position : found.start()], Literal(text[found.end() : end])]
        position = end
    return [*parts, text[position:]]


def _next_literal(text: bytes, position: int) -> re.Match[bytes] | None:
    """Find the next literal that is not within a quoted string."""
    quoted = False
    while position < len(text):
        octet = text[position : position + 1]
        if octet == b"\\" and quoted:
            position += 1
        elif octet == b'"':
            quoted = not quoted
        elif octet == b"{" and not quoted:
            return _LITERAL.match(text, position)
        position += 1
    return None
