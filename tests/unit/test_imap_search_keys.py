"""services/imap_out/grammar/search_keys.py: the keys of SEARCH, SORT and THREAD."""

from __future__ import annotations

import datetime as dt
import time

import pytest

from services.imap_out.grammar.command_parser import parse_command
from services.imap_out.grammar.commands import SearchArguments, SortArguments, ThreadArguments
from services.imap_out.grammar.errors import CommandError
from services.imap_out.grammar.keys import (
    ChangedSince,
    Either,
    Every,
    EveryMail,
    HasFlag,
    InHeader,
    InSet,
    InText,
    Not,
    OfAge,
    OfDay,
    OfSize,
    SearchKey,
    SortKey,
)
from services.imap_out.grammar.search_keys import MAX_DEPTH, MAX_KEYS
from services.imap_out.number_sets import LAST, SAVED, NumberSet

DELETED = HasFlag("\\deleted")
SINCE = OfDay("internal", "since", dt.date(1994, 2, 1))


def search(line: bytes, *literals: bytes) -> SearchKey:
    arguments = parse_command(b"a SEARCH " + line, literals).arguments
    assert isinstance(arguments, SearchArguments)
    return arguments.key


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b"ALL", EveryMail()),
        (b"RECENT", Not(EveryMail())),
        (b"old", EveryMail()),
        (b"2,4:*", InSet(NumberSet(((2, 2), (4, LAST))), uids=False)),
        (b"$", InSet(SAVED, uids=True)),
        (b"UID 1:*", InSet(NumberSet(((1, LAST),)), uids=True)),
        (b'FLAGGED SINCE 1-Feb-1994 NOT FROM "Smith"',
         Every((HasFlag("\\flagged"), SINCE, Not(InHeader("from", "smith"))))),
        (b"UNDELETED", Not(DELETED)),
        (b"KEYWORD NonJunk UNKEYWORD $Forwarded", Every((HasFlag("nonjunk"), Not(HasFlag("$forwarded"))))),
        (b"OR DELETED (1 2)",
         Either(DELETED, Every((InSet(NumberSet(((1, 1),)), False), InSet(NumberSet(((2, 2),)), False))))),
        (b"(DELETED )", DELETED),
        (b'BEFORE "1-Feb-1994"', OfDay("internal", "before", dt.date(1994, 2, 1))),
        (b"SENTON 01-FEB-1994", OfDay("sent", "on", dt.date(1994, 2, 1))),
        (b"LARGER 1000 SMALLER 5000000000", Every((OfSize("larger", 1000), OfSize("smaller", 5000000000)))),
        (b"YOUNGER 3600", OfAge("younger", 3600)),
        (b'HEADER Message-ID "<a@B>"', InHeader("message-id", "<a@b>")),
        (b'HEADER X-Spam ""', InHeader("x-spam", "")),
        (b'TEXT "Fat Man" BODY x', Every((InText("fat man", True), InText("x", False)))),
        (b"MODSEQ 620162338", ChangedSince(620162338)),
        (b'MODSEQ "/flags/\\\\draft" all 620162338', ChangedSince(620162338)),
        ("CHARSET UTF-8 SUBJECT ÄRGER".encode(), InHeader("subject", "ärger")),
        ("SUBJECT Straße".encode(), InHeader("subject", "strasse")),
    ],
)  # fmt: skip
def test_a_search_is_a_tree_of_keys(line: bytes, key: SearchKey) -> None:
    assert search(line) == key


def test_a_string_in_a_charset_may_be_a_literal() -> None:
    assert search(b"CHARSET ISO-8859-1 TEXT \0", b"\xc4rger") == InText("ärger", True)
    assert search(b"CHARSET utf-8 OR SUBJECT \0 FROM \0", b"a", b"b") == Either(
        InHeader("subject", "a"), InHeader("from", "b")
    )


@pytest.mark.parametrize(
    ("line", "returns"),
    [
        (b"a SEARCH RETURN (MIN COUNT) ALL", {"MIN", "COUNT"}),
        (b"a UID SEARCH RETURN () UNSEEN", {"ALL"}),
        (b"a SEARCH return (save) CHARSET UTF-8 ALL", {"SAVE"}),
        (b"a SEARCH ALL", None),
    ],
)
def test_return_options_are_read(line: bytes, returns: set[str] | None) -> None:
    arguments = parse_command(line).arguments
    assert isinstance(arguments, SearchArguments) and arguments.returns == returns


def test_sort_and_thread_have_their_criteria_before_the_charset() -> None:
    assert parse_command(b"A283 SORT (SUBJECT REVERSE DATE) UTF-8 ALL").arguments == SortArguments(
        (SortKey("SUBJECT"), SortKey("DATE", reverse=True)), EveryMail()
    )
    assert parse_command(b"A284 UID THREAD REFERENCES us-ascii DELETED").arguments == ThreadArguments(
        "REFERENCES", DELETED
    )


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (b"FOO", "BAD", "unknown key"),
        (b"FROM", "BAD", "the argument of FROM is missing"),
        (b"NOT", "BAD", "the key after NOT is missing"),
        (b"OR DELETED", "BAD", "the second key of OR"),
        (b"(DELETED", "BAD", "a ) of SEARCH"),
        (b"()", "BAD", "the key of SEARCH"),
        (b"SINCE 31-Feb-1994", "BAD", "SINCE: the date"),
        (b"SINCE 1.2.1994", "BAD", "SINCE: the date"),
        (b"OLDER 0", "BAD", "the seconds of OLDER"),
        (b"RETURN (FOO) ALL", "BAD", "SEARCH RETURN: known are"),
        (b"CHARSET x-klingon ALL", "NO", "the charset is unknown"),
        (b"NOT " * (MAX_DEPTH + 1) + b"ALL", "NO", "in each other"),
        (b"(" * (MAX_DEPTH + 1) + b"ALL" + b")" * (MAX_DEPTH + 1), "NO", "in each other"),
        (b"ALL " * (MAX_KEYS + 1), "NO", "more than 1000 keys"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused(line: bytes, kind: str, text: str) -> None:
    with pytest.raises(CommandError) as refused:
        search(line)
    assert refused.value.kind == kind and text in str(refused.value)


@pytest.mark.parametrize("piece", [b"(", b"NOT ", b"OR ", b"1,", b"ALL ", b'"', b"\\", b"{", b" "])
def test_the_time_is_proportional_to_the_length(piece: bytes) -> None:
    line = b"a SEARCH " + piece * (65_000 // len(piece))
    started = time.process_time()
    with pytest.raises(CommandError):
        parse_command(line)
    assert time.process_time() - started < 1
