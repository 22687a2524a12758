"""services/imap_out/fetch_answers.py: whole answers to FETCH, kept in bounded memory."""

from __future__ import annotations

from array import array

import pytest

from services.imap_out.fetch_answers import ANSWER_OCTETS, LEAST_MAILS, FetchAnswers
from services.imap_out.view import FolderState, build_state
from shared.store.folder_views import View
from shared.store.folders import Folder

MAILS = 2 * LEAST_MAILS
ALL = range(MAILS)
FLAGS = ["UID", "FLAGS"]


def state(folder_id: int = 1) -> FolderState:
    folder = Folder(folder_id, 1, "INBOX", "inbox", 1, 10, 9, 0, True)
    numbers, zeros = array("q", range(1, MAILS + 1)), array("q", [0] * MAILS)
    return build_state(View(folder, numbers, numbers, numbers, zeros, numbers, zeros, {}))


def record(answers: FetchAnswers, of: FolderState, *pieces: bytes, complete: bool = True) -> None:
    with answers.record(of, FLAGS, ALL) as answer:
        for piece in pieces:
            answer.add(piece)
        answer.complete = complete


def test_an_answer_is_found_for_the_same_mails_of_the_same_state() -> None:
    answers, one = FetchAnswers(), state()
    record(answers, one, b"a", b"b")
    assert answers.find(one, FLAGS, list(ALL)) == [b"a", b"b"]
    assert answers.find(one, ["FLAGS"], ALL) is None
    assert answers.find(one, FLAGS, ALL[1:]) is None
    assert answers.find(one, FLAGS, ALL[::2]) is None
    assert answers.find(state(), FLAGS, ALL) is None, "the same folder after a change"


def test_the_answer_of_a_later_state_replaces_that_before() -> None:
    answers, one, later = FetchAnswers(), state(), state()
    record(answers, one, b"one")
    record(answers, later, b"later")
    assert answers.find(one, FLAGS, ALL) is None and answers.find(later, FLAGS, ALL) == [b"later"]
    assert answers.octets == len(b"later")


def test_the_memory_is_limited() -> None:
    answers = FetchAnswers(kept_octets=10)
    states = [state(number) for number in range(3)]
    for one in states:
        record(answers, one, b"xxxx")
    assert [answers.find(one, FLAGS, ALL) for one in states] == [None, [b"xxxx"], [b"xxxx"]]
    assert answers.find(states[1], FLAGS, ALL) and answers.octets == 8
    record(answers, states[0], b"xxxx")
    assert [answers.find(one, FLAGS, ALL) for one in states] == [[b"xxxx"], [b"xxxx"], None]
    # two that are being sent share the memory, too
    with answers.record(states[1], FLAGS, ALL) as first, answers.record(states[2], FLAGS, ALL) as second:
        first.add(b"x" * 8)
        second.add(b"x" * 8)
        first.complete = second.complete = True
    assert answers.find(states[1], FLAGS, ALL) == [b"x" * 8] and answers.octets == 8


def test_long_short_and_incomplete_answers_are_not_kept() -> None:
    answers, one = FetchAnswers(), state()
    record(answers, one, b"x" * ANSWER_OCTETS, b"x")
    record(answers, one, b"x", complete=False)
    with pytest.raises(ConnectionError), answers.record(one, FLAGS, ALL) as answer:
        answer.add(b"x")
        raise ConnectionError
    with answers.record(one, FLAGS, ALL[: LEAST_MAILS - 1]) as answer:
        answer.add(b"x")
        answer.complete = True
    assert answers.find(one, FLAGS, ALL) is None and answers.octets == 0
