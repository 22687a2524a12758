"""services/imap_out/search/: base subjects, SORT and THREAD (RFC 5256)."""

from __future__ import annotations

import random
import time

import pytest

from services.imap_out.grammar.keys import SortKey
from services.imap_out.search.base_subject import base_subject
from services.imap_out.search.sorting import SortFacts, needs_header, read_sort_facts, sort_mails
from services.imap_out.search.threading import (
    ThreadFacts,
    format_threads,
    read_thread_facts,
    thread_by_references,
    thread_by_subject,
)


@pytest.mark.parametrize(
    ("subject", "base", "is_reply"),
    [
        ("hello", "hello", False),
        ("Re: Hello", "hello", True),
        ("RE: re:Fwd: FW : x", "x", True),
        ("Re[2]: x", "x", True),
        ("[list] Re: [list] x", "x", True),
        ("[list] x", "x", False),
        ("[only]", "[only]", False),
        ("[a] [b]", "[b]", False),
        ("x (fwd)", "x", True),
        ("x (fwd) (FWD) ", "x", True),
        ("[Fwd: Re: x]", "x", True),
        ("[fwd: [list] x]", "x", True),
        ("Research", "research", False),
        ("Re: ", "", True),
        ("  a\t b  ", "a b", False),
        ("=?utf-8?q?Re=3A_=C3=84rger?=", "ärger", True),
        ("AW: x", "aw: x", False),
        ("", "", False),
    ],
)
def test_the_base_subject_has_no_marks(subject: str, base: str, is_reply: bool) -> None:
    assert base_subject(subject.encode()) == (base, is_reply)


@pytest.mark.parametrize("unit", ["[a]", "re:", "re [a]", "[", "(fwd)", "[fwd:", " "])
def test_a_hostile_subject_costs_little(unit: str) -> None:
    started = time.process_time()
    base_subject((unit * 20_000).encode())
    assert time.process_time() - started < 1


def test_sort_facts_are_those_of_the_header() -> None:
    header = (
        b"From: Zoe <Zoe@x.example>, a@b\r\nTo: undisclosed: ;\r\nSubject: Re: [l] B\r\n"
        b"Date: Thu, 26 Nov 2026 10:00:00 +0100\r\n\r\n"
    )
    assert read_sort_facts(header, 5.0, 7) == SortFacts(5.0, 7, 1795683600.0, "b", "zoe", "undisclosed", "")
    assert read_sort_facts(b"Date: nonsense\r\n\r\n", 5.0, 7).sent == 5.0
    assert not needs_header([SortKey("SIZE"), SortKey("ARRIVAL")]) and needs_header([SortKey("DATE")])


@pytest.mark.parametrize(
    ("order", "indexes"),
    [
        ([SortKey("SIZE")], [1, 0, 2, 3]),
        ([SortKey("SIZE", reverse=True)], [2, 3, 0, 1]),  # equal ones stay in the order of the mailbox
        ([SortKey("SUBJECT"), SortKey("DATE", reverse=True)], [2, 0, 3, 1]),
        ([SortKey("FROM"), SortKey("ARRIVAL")], [3, 1, 0, 2]),
    ],
)
def test_mails_are_sorted_by_each_criterion(order: list[SortKey], indexes: list[int]) -> None:
    mails = [
        SortFacts(10, 200, 1, "a", "z"),
        SortFacts(9, 100, 2, "b", "y"),
        SortFacts(12, 300, 3, "a", "z"),
        SortFacts(7, 300, 0, "a", "y"),
    ]
    assert sort_mails(order, mails) == indexes


def mail(number: int, message_id: str = "", *references: str, subject: str = "", reply: bool = False) -> ThreadFacts:
    return ThreadFacts(number, number, message_id, references, subject or f"s{number}", reply)


def threads(*mails: ThreadFacts) -> str:
    return format_threads(thread_by_references(mails)).decode()[9:-2]


@pytest.mark.parametrize(
    ("mails", "answer"),
    [
        ([], ""),
        ([mail(1, "a"), mail(2, "b")], "(1)(2)"),
        ([mail(1, "a"), mail(2, "b", "a"), mail(3, "c", "a", "b")], "(1 2 3)"),
        ([mail(3, "c", "a", "b"), mail(1, "a"), mail(2, "b", "a")], "(1 2 3)"),
        ([mail(1, "a"), mail(2, "b", "a"), mail(3, "c", "a")], "(1 (2)(3))"),
        ([mail(2, "b", "gone"), mail(3, "c", "gone")], "((2)(3))"),
        ([mail(2, "b", "gone")], "(2)"),
        ([mail(1, "a"), mail(2, "b", "a", "gone"), mail(3, "c", "a", "gone")], "(1 (2)(3))"),
        ([mail(1, "a"), mail(2, "a")], "(1)(2)"),  # the same id twice
        ([mail(1, "a", "b"), mail(2, "b", "a")], "(2 1)"),  # a loop
        ([mail(1, "a", "a")], "(1)"),
        ([mail(1, "a", subject="s"), mail(2, "b", subject="s", reply=True)], "(1 2)"),
        ([mail(1, "a", subject="s", reply=True), mail(2, "b", subject="s")], "(2 1)"),
        ([mail(1, "a", subject="s"), mail(2, "b", subject="s")], "((1)(2))"),
        ([mail(1, "a", "x", subject="s"), mail(2, "b", "x"), mail(3, "c", subject="s")], "((1)(2)(3))"),
    ],
)
def test_mails_are_threaded_by_references_and_subject(mails: list[ThreadFacts], answer: str) -> None:
    assert threads(*mails) == answer


def test_the_answer_of_rfc_5256_section_4() -> None:
    mails = [
        *(mail(2, "2"), mail(3, "3"), mail(6, "6", "3"), mail(4, "4", "6"), mail(23, "23", "4")),
        *(mail(44, "44", "6"), mail(7, "7", "44"), mail(96, "96", "7")),
    ]
    assert threads(*mails) == "(2)(3 6 (4 23)(44 7 96))"


def test_threads_by_subject_have_their_first_mail_on_top() -> None:
    mails = [mail(1, subject="a"), mail(2, subject="b"), mail(3, subject="a"), mail(4, subject="a")]
    assert format_threads(thread_by_subject(mails)) == b"* THREAD (1 (3)(4))(2)\r\n"


def test_thread_facts_are_those_of_the_header() -> None:
    header = b"Message-ID: <m@x>\r\nReferences: <a@x>\r\n <b@x>\r\nIn-Reply-To: <c@x>\r\nSubject: Re: s\r\n\r\n"
    assert read_thread_facts(header, 7, 5.0) == ThreadFacts(7, 5.0, "m@x", ("a@x", "b@x"), "s", True)
    assert read_thread_facts(b"In-Reply-To: <c@x> <d@x>\r\n\r\n", 7, 5.0).references == ("c@x",)


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled", "star", "moved"])
def test_20_000_mails_are_threaded_without_recursion(order: str) -> None:
    count = 20_000
    mails = [mail(number, str(number), *map(str, range(max(number - 3, 1), number))) for number in range(1, count)]
    if order == "descending":
        mails.reverse()
    elif order == "shuffled":
        random.Random(order).shuffle(mails)
    elif order == "star":
        mails = [mail(number, str(number), "1") for number in range(1, count)]
    elif order == "moved":
        half = count // 2
        mails = [mail(number, f"x{number}", "a", str(number + half)) for number in range(1, half)]
        mails += [mail(number + half, str(number + half), "b") for number in range(1, half)]
    started = time.process_time()
    text = format_threads(thread_by_references(mails))
    assert time.process_time() - started < 10
    assert text.count(b"(") == text.count(b")") > 0
