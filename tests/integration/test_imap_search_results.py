"""services/imap_out/search/ beside a real Dovecot: the same mails, the same answers to SEARCH, SORT and THREAD."""

from __future__ import annotations

import datetime as dt
import imaplib
import itertools

import pytest

from deploy.machine.dovecot_postfix import DemoProvider
from services.imap_out.grammar.command_parser import parse_command
from services.imap_out.grammar.commands import SearchArguments, SortArguments, ThreadArguments
from services.imap_out.grammar.keys import SearchKey
from services.imap_out.search.body_search import BodySearch
from services.imap_out.search.evaluation import SearchView, body_texts, compile_search
from services.imap_out.search.mail_texts import SearchedMail
from services.imap_out.search.sorting import read_sort_facts, sort_mails
from services.imap_out.search.threading import format_threads, read_thread_facts, thread_by_references
from services.imap_out.structure.stored import read_structure
from tests.imap_mails import MAILS

_names = itertools.count()
_ARRIVAL = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


def _letter(number: int, subject: str, *fields: str) -> bytes:
    lines = [f"From: p{number % 3}@x.example", f"To: q{number % 2}@x.example", f"Subject: {subject}"]
    lines += [f"Date: {27 - number % 7} Nov 2026 1{number % 10}:00:00 +0000", f"Message-ID: <m{number}@x>", *fields]
    return "\r\n".join([*lines, "", f"text {number}", ""]).encode()


LETTERS = [
    *MAILS.values(),
    _letter(1, "Offer"),
    _letter(2, "Re: Offer", "References: <m1@x>"),
    _letter(3, "RE: offer", "In-Reply-To: <m2@x>"),
    _letter(4, "[list] Fwd: Offer (fwd)"),
    _letter(5, "other", "References: <gone@x>"),
    _letter(6, "Re: other", "References: <gone@x>"),
    _letter(7, "a loop", "References: <m8@x>"),
    _letter(8, "a loop, too", "References: <m7@x>"),
    _letter(9, "=?utf-8?q?=C3=84rger?=", "Cc: z@x.example"),
    _letter(10, "Re: =?iso-8859-1?q?=E4rger?=", "Cc: a@x.example"),
    _letter(11, "deep", "References: <m1@x> <m2@x> <m3@x>"),
    _letter(12, "deeper", "References: <m1@x> <m2@x> <m3@x> <m11@x>"),
]
FLAGS = [("\\Seen",), (), ("\\Flagged", "$Forwarded"), ("\\Deleted", "\\Seen")]


@pytest.fixture(scope="module")
def dovecot(provider: DemoProvider) -> imaplib.IMAP4:
    """A session with a mailbox that has LETTERS, an hour apart, with FLAGS in turn."""
    address = f"search{next(_names)}@imap.test"
    provider.add_mailbox(address, "secret")
    client = imaplib.IMAP4("127.0.0.1", provider.imap_port)
    client.login(address, "secret")
    for number, letter in enumerate(LETTERS):
        moment = (_ARRIVAL + dt.timedelta(hours=number)).timestamp()
        client.append("INBOX", f"({' '.join(FLAGS[number % 4])})", imaplib.Time2Internaldate(moment), letter)
    client.select("INBOX")
    return client


def _view() -> SearchView:
    flags = [{flag.lower() for flag in FLAGS[number % 4]} for number in range(len(LETTERS))]
    return SearchView(
        range(1, len(LETTERS) + 1),
        list(map(len, LETTERS)),
        [(_ARRIVAL + dt.timedelta(hours=number)).timestamp() for number in range(len(LETTERS))],
        [1] * len(LETTERS),
        lambda flag: lambda index: flag in flags[index],
    )


def _found(key: SearchKey) -> list[int]:
    """Search as a session does: each mail is read as far as the test asks."""
    test = compile_search(key, _view(), dt.datetime.now(dt.UTC))
    numbers = []
    for index, letter in enumerate(LETTERS):
        header = letter.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        matches = test(index, None)
        if matches is None:
            matches = test(index, SearchedMail(header))
        if matches is None:
            body = BodySearch(read_structure([letter]), body_texts(key))
            body.feed(letter)
            body.finish()
            matches = test(index, SearchedMail(header, body.found))
        assert matches is not None
        if matches:
            numbers.append(index + 1)
    return numbers


@pytest.mark.parametrize(
    "query",
    [
        *("ALL", "SEEN", "UNSEEN NOT FLAGGED", "OR DELETED KEYWORD $forwarded", "UNKEYWORD $Forwarded", "2,5:7", "3:*"),
        *("UID 40:*", "NOT 1:20", "LARGER 300 SMALLER 500", "(SEEN) (NOT (DELETED))", "OR (SEEN 1:9) (UNSEEN 20:*)"),
        *("SINCE 2-Nov-2026", "BEFORE 2-Nov-2026", "ON 2-Nov-2026", "SENTSINCE 26-Nov-2026", "SENTON 24-Nov-2026"),
        *(
            'SENTBEFORE 25-Nov-2026 HEADER Date ""',
            "FROM anna",
            "FROM ANNA@customer",
            "TO support",
            "CC route",
            "SUBJECT offer",
        ),
        *(
            'HEADER Message-ID "<m1"',
            'HEADER References ""',
            "HEADER X-None x",
            "TEXT hello",
            "BODY hello",
            "BODY world",
        ),
        *(
            'BODY "inner text"',
            "TEXT inner@x",
            "NOT TEXT x",
            "OR SUBJECT offer BODY text",
            "BODY Reporting-MTA",
        ),
        *('CHARSET UTF-8 SUBJECT "ärger"', 'CHARSET UTF-8 BODY "grüße"', "1:500 NOT DELETED"),
    ],
)
def test_a_search_finds_what_dovecot_finds(dovecot: imaplib.IMAP4, query: str) -> None:
    arguments = parse_command(f"a SEARCH {query}".encode()).arguments
    assert isinstance(arguments, SearchArguments)
    dovecot._encoding = "utf-8"  # type: ignore[attr-defined]
    _, [answer] = dovecot.search(None, query)
    assert _found(arguments.key) == list(map(int, answer.split()))


@pytest.mark.parametrize(
    "order",
    [
        "ARRIVAL",
        "REVERSE ARRIVAL",
        "DATE",
        "REVERSE DATE",
        "SIZE",
        "SUBJECT",
        "SUBJECT REVERSE DATE",
        "FROM",
        "TO DATE",
        "CC",
    ],
)
def test_mails_are_sorted_as_by_dovecot(dovecot: imaplib.IMAP4, order: str) -> None:
    arguments = parse_command(f"a SORT ({order}) UTF-8 {len(MAILS) + 1}:*".encode()).arguments
    assert isinstance(arguments, SortArguments)
    numbers = _found(arguments.key)
    facts = [read_sort_facts(LETTERS[number - 1], float(number), len(LETTERS[number - 1])) for number in numbers]
    _, [answer] = dovecot.sort(f"({order})", "UTF-8", f"{len(MAILS) + 1}:*")
    assert [numbers[index] for index in sort_mails(arguments.order, facts)] == list(map(int, answer.split()))


def test_mails_are_threaded_as_by_dovecot(dovecot: imaplib.IMAP4) -> None:
    first = len(MAILS) + 1
    arguments = parse_command(f"a THREAD REFERENCES UTF-8 {first}:*".encode()).arguments
    assert isinstance(arguments, ThreadArguments)
    facts = [read_thread_facts(LETTERS[number - 1], number, float(number)) for number in _found(arguments.key)]
    _, [answer] = dovecot.thread("REFERENCES", "UTF-8", f"{first}:*")
    assert format_threads(thread_by_references(facts)) == b"* THREAD " + answer + b"\r\n"
