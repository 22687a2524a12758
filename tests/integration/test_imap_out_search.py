"""SEARCH of services/imap_out finds the same, whether it reads the mails or the database looks into them."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.imap_out.grammar.command_parser import parse_command
from services.imap_out.grammar.commands import SearchArguments
from services.imap_out.search.body_search import BodySearch
from services.imap_out.search.evaluation import SearchView, body_texts, compile_search
from services.imap_out.search.mail_texts import SearchedMail
from services.imap_out.structure.stored import read_structure
from shared.db.database import Database
from shared.mime import headers
from tests.imap_clients import ImapServerProcess, imap_server
from tests.imap_mails import MAILS

_PLAIN = [
    b"From: Ann <ann@x.example>\r\nSubject: Offer number %d\r\nDate: %d Nov 2026 10:00:00 +0000\r\n\r\n"
    b"Hello %d\r\nfrom C:\\tmp\r\n100%% of_it Message-ID\r\n" % (number, number, number * 7)
    for number in range(1, 25)
]
_LETTERS = [
    *MAILS.values(),
    *_PLAIN,
    b"Subject: no body\r\nX-Long: two\r\n words\r\n",
    b"\nSubject: none, this is the body\n",
    b"Subject: bare\n\nline ends\n\n\r\n\r\nsubject: offer\r\n",
    b"Subject: octets\r\n\r\nNUL\0octal \\000\r\n",
]
_QUERIES = [
    *("SUBJECT offer", "SUBJECT hello", "BODY hello", "BODY offer", "TEXT offer", 'BODY "hello 14"', "TEXT ann@x"),
    *("OR SUBJECT offer BODY words", 'OR (SUBJECT "number 3") (BODY 35)', "NOT BODY hello", "NOT TEXT offer"),
    *("SUBJECT offer NOT BODY 21", 'BODY "C:\\\\tmp"', 'BODY "\\\\000"', 'BODY "100%"', "BODY of_it", "BODY offit"),
    *("FROM ann SENTON 4-Nov-2026", "SENTSINCE 20-Nov-2026 BODY hello", 'HEADER X-Long "two words"', "HEADER X-Long y"),
    *('HEADER Message-ID ""', "BODY message-id", "HEADER Subject hello", "TEXT nowhere", 'BODY "nul"', "NOT SUBJECT x"),
    *('CHARSET UTF-8 OR BODY "grüße" SUBJECT offer', "BODY line", "SUBJECT line", "OR BODY hello BODY hello"),
]


@pytest.fixture
async def server(database_url: str, database: Database, tmp_path: Path) -> AsyncIterator[ImapServerProcess]:
    """The service on a fresh database, with _LETTERS in INBOX of alex."""
    async with imap_server(database_url, database, tmp_path, _LETTERS) as started:
        yield started


def _expected(query: str) -> list[int]:
    arguments = parse_command(f"a SEARCH {query}".encode()).arguments
    assert isinstance(arguments, SearchArguments)
    count = len(_LETTERS)
    sizes = list(map(len, _LETTERS))
    view = SearchView(range(1, count + 1), sizes, [0.0] * count, [1] * count, lambda flag: lambda index: False)
    test = compile_search(arguments.key, view, dt.datetime.now(dt.UTC))
    numbers = []
    for index, letter in enumerate(_LETTERS):
        body = BodySearch(read_structure([letter]), body_texts(arguments.key))
        body.feed(letter)
        body.finish()
        if test(index, SearchedMail(letter[: headers.header_end(letter)], body.found)):
            numbers.append(index + 1)
    return numbers


async def test_a_search_finds_the_same_in_mails_that_were_read_before(server: ImapServerProcess) -> None:
    client = await server.login()
    expected = {query: b" ".join([b"* SEARCH", *(b"%d" % number for number in _expected(query))]) for query in _QUERIES}
    assert len(set(expected.values())) > len(_QUERIES) // 2
    for _ in range(2):  # each search may make more mails known as plain
        for query in _QUERIES:
            assert (query, await client.ok(b"SEARCH " + query.encode())) == (query, [expected[query]])
