"""services/imap_out/search/: the comparison of mails with the keys of SEARCH."""

from __future__ import annotations

import base64
import datetime as dt
import time
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.imap_out.folding import fold_text
from services.imap_out.grammar.command_parser import parse_command
from services.imap_out.grammar.commands import SearchArguments
from services.imap_out.grammar.keys import InHeader, InText, SearchKey
from services.imap_out.search.body_search import BodySearch
from services.imap_out.search.evaluation import (
    Need,
    SearchView,
    body_texts,
    compile_search,
    has_modseq,
    necessary_texts,
    need_of,
)
from services.imap_out.search.mail_texts import SearchedMail
from services.imap_out.structure.stored import read_structure
from tests.imap_mails import MAILS

NOW = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
FLAGS = [{"\\seen"}, {"\\seen", "\\deleted"}, set(), {"nonjunk", "\\flagged"}]
ARRIVALS = [
    dt.datetime(2026, 11, day, hour, tzinfo=dt.UTC).timestamp() for day, hour in ((1, 0), (1, 23), (2, 0), (30, 11))
]
VIEW = SearchView(
    [3, 5, 8, 9], [100, 200, 300, 400], ARRIVALS, [1, 7, 7, 20], lambda flag: lambda index: flag in FLAGS[index], {5, 6}
)


def key(query: str) -> SearchKey:
    arguments = parse_command(f"a SEARCH {query}".encode()).arguments
    assert isinstance(arguments, SearchArguments)
    return arguments.key


def known(query: str) -> list[int]:
    test = compile_search(key(query), VIEW, NOW)
    found = [test(index, None) for index in range(len(VIEW.uids))]
    assert None not in found
    return [index + 1 for index, matches in enumerate(found) if matches]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("ALL", [1, 2, 3, 4]),
        ("RECENT", []),
        ("NEW", []),
        ("OLD", [1, 2, 3, 4]),
        ("UNSEEN", [3, 4]),
        ("SEEN NOT DELETED", [1]),
        ("OR SEEN FLAGGED", [1, 2, 4]),
        ("NOT (SEEN DELETED)", [1, 3, 4]),
        ("KEYWORD nonjunk", [4]),
        ("UNKEYWORD NonJunk", [1, 2, 3]),
        ("2:9", [2, 3, 4]),
        ("UID 5:*", [2, 3, 4]),
        ("UID 20:*", [4]),
        ("$", [2]),
        ("LARGER 200", [3, 4]),
        ("SMALLER 200", [1]),
        ("ON 1-Nov-2026", [1, 2]),
        ("BEFORE 2-Nov-2026", [1, 2]),
        ("SINCE 2-Nov-2026", [3, 4]),
        ("YOUNGER 3600", [4]),
        ("OLDER 86400", [1, 2, 3]),
        ("MODSEQ 7", [2, 3, 4]),
    ],
)
def test_the_view_alone_decides(query: str, numbers: list[int]) -> None:
    assert known(query) == numbers
    assert need_of(key(query)) == Need.VIEW


def test_an_empty_view_has_no_mails() -> None:
    view = SearchView([], [], [], [], lambda flag: lambda index: False)
    for query in ("1:* NOT DELETED", "UID 1:*", "5"):
        assert compile_search(key(query), view, NOW) is not None


@pytest.mark.parametrize(
    ("query", "index", "matches"),
    [
        ("SEEN SUBJECT x", 0, None),
        ("SEEN SUBJECT x", 2, False),  # flags decide: the mail is not read
        ("OR SEEN SUBJECT x", 0, True),
        ("OR SEEN SUBJECT x", 2, None),
        ("NOT SUBJECT x", 0, None),
        ("NOT (SEEN SUBJECT x)", 2, True),
    ],
)
def test_a_mail_is_read_only_if_it_decides(query: str, index: int, matches: bool | None) -> None:
    assert compile_search(key(query), VIEW, NOW)(index, None) is matches


def found(query: str, mail: bytes, pieces: int = 64) -> bool | None:
    """Whether a whole mail matches, read as a session reads it."""
    asked = key(query)
    test = compile_search(asked, VIEW, NOW)
    header, _, _ = mail.partition(b"\r\n\r\n")
    matches = test(0, SearchedMail(header))
    if matches is None:
        search = BodySearch(read_structure([mail]), body_texts(asked))
        for start in range(0, len(mail), pieces):
            search.feed(mail[start : start + pieces])
        search.finish()
        matches = test(0, SearchedMail(header, search.found))
    return matches


@pytest.mark.parametrize(
    ("query", "name", "matches"),
    [
        ('FROM "anna@CUSTOMER"', "plain", True),
        ("FROM jim", "plain", False),
        ("SUBJECT köln", "8-bit", True),
        ("SUBJECT KÖLN", "8-bit", True),
        ("SUBJECT Üü", "encoded words", True),
        ('HEADER Message-ID ""', "plain", True),
        ('HEADER X-None ""', "plain", False),
        ("SENTON 26-Nov-2026", "plain", True),
        ("SENTBEFORE 26-Nov-2026", "plain", False),
        ("SENTSINCE 1-Nov-2026", "no fields", False),
        ("BODY hello", "plain", True),
        ("BODY anna", "plain", False),
        ("TEXT anna", "plain", True),
        ("BODY GRÜSSE", "alternative", True),
        ('BODY "hello world"', "alternative", True),  # <p>Hello <b>World</b></p>
        ("BODY <b>", "alternative", False),
        ("BODY inner@x", "forwarded", True),  # the header of the mail within the mail
        ("BODY SGVsbG8", "mixed", False),  # an attachment
        ("NOT BODY hello", "plain", False),
        ("OR BODY nothing TEXT world", "plain", True),
        ("BODY preamble", "alternative", False),
        ('BODY ""', "no body", True),
        ("BODY Reporting-MTA", "report", True),
    ],
)
def test_header_and_text_are_searched(query: str, name: str, matches: bool) -> None:
    for pieces in (1, 7, 10_000):
        assert found(query, MAILS[name], pieces) is matches


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1252", "utf-16-le", "koi8-r", "iso-2022-jp"])
def test_texts_in_other_charsets_are_found(charset: str) -> None:
    word = {"koi8-r": "Привет", "iso-2022-jp": "こんにちは"}.get(charset, "Grüße")
    body = base64.encodebytes((word + " x\r\n").encode(charset) * 200)
    mail = f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode() + body
    assert found(f"BODY {word.upper()}", mail, 100)


def test_the_texts_that_an_index_can_look_for() -> None:
    assert necessary_texts(key("FROM anna (TEXT hello SEEN) OR BODY a1b BODY c2d NOT BODY efg SUBJECT ab")) == [
        InHeader("from", "anna"),
        InText("hello", True),
    ]
    assert body_texts(key("OR TEXT a NOT BODY b")) == {"a", "b"}
    assert need_of(key("OR SEEN NOT BODY x")) == Need.TEXT and need_of(key("SENTON 1-Jan-2026")) == Need.HEADER
    assert has_modseq(key("OR SEEN NOT MODSEQ 5")) and not has_modseq(key("ALL"))


@given(st.text("abß ﬁÄ\u0308", max_size=20), st.text("abß ﬁÄ\u0308", max_size=20), st.text("ab", max_size=5))
def test_folding_is_done_once_and_keeps_parts(one: str, other: str, ascii_text: str) -> None:
    assert fold_text(fold_text(one)) == fold_text(one)
    assert ascii_text in fold_text(one + " " + ascii_text + " " + other)


def test_a_large_mail_is_searched_without_being_held() -> None:
    head = b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    piece = base64.encodebytes(b"<p>nothing &amp; more</p>\r\n" * 2_000).replace(b"\n", b"\r\n")

    def pieces() -> Iterable[bytes]:
        yield head
        for _ in range(60):
            yield piece
        yield base64.encodebytes(b"<p>the nee<b>dle</b></p>")

    structure = read_structure(pieces())
    tracemalloc.start()
    try:
        search = BodySearch(structure, {"needle", "haystack"})
        for octets in pieces():
            search.feed(octets)
        search.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert search.found == {"needle"} and peak < 2_000_000


@pytest.mark.parametrize("unit", [b"<", b"<a", b"<!--", b">", b"&amp;", b"=", b"=41", b"\x1b$B", b"\xc3", b" ", b"a"])
def test_a_hostile_text_costs_no_more_than_its_octets(unit: bytes) -> None:
    head = b"Content-Type: text/html; charset=iso-2022-jp\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    mail = head + unit * (1_000_000 // len(unit))
    search = BodySearch(read_structure([mail]), {"needle"})
    started = time.process_time()
    for start in range(0, len(mail), 65_536):
        search.feed(mail[start : start + 65_536])
    search.finish()
    assert time.process_time() - started < 10


def test_100_000_mails_are_compared_quickly() -> None:
    count = 100_000
    view = SearchView(
        range(1, count + 1), [100] * count, [0.0] * count, [1] * count, lambda flag: lambda index: index % 2 == 0
    )
    started = time.process_time()
    test = compile_search(key("UNSEEN UID 1:50000 NOT DELETED LARGER 10"), view, NOW)
    assert sum(bool(test(index, None)) for index in range(count)) == 25_000
    assert time.process_time() - started < 10
