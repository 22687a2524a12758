"""The judge of the fault driver."""

from __future__ import annotations

from collections import Counter

from tests.faults.books import Copies, digest, judge, token

A, B, TWIN = digest(b"a"), digest(b"b"), digest(b"twin")
EXPECTED: Copies = Counter({(A, "alex"): 1, (B, "jim"): 1, (TWIN, "alex"): 2})


def test_mail_in_the_right_mailboxes_is_clean() -> None:
    assert judge(EXPECTED, Counter(EXPECTED), {A, B, TWIN}).clean


def test_one_of_two_twins_is_a_loss() -> None:
    found = EXPECTED - Counter({(TWIN, "alex"): 1})
    assert judge(EXPECTED, found, {A, B, TWIN}).lost == Counter({(TWIN, "alex"): 1})


def test_a_changed_byte_is_an_alteration_and_a_loss() -> None:
    found = EXPECTED - Counter({(A, "alex"): 1}) + Counter({(digest(b"A"), "alex"): 1})
    findings = judge(EXPECTED, found, {A, B, TWIN})
    assert (findings.lost.total(), findings.altered.total(), findings.duplicate.total()) == (1, 1, 0)


def test_a_mail_in_another_mailbox_is_misdirected() -> None:
    assert judge(EXPECTED, EXPECTED + Counter({(A, "jim"): 1}), {A, B, TWIN}).misdirected == Counter({(A, "jim"): 1})


def test_a_second_copy_is_a_duplicate_unless_it_is_explained() -> None:
    found = EXPECTED + Counter({(A, "alex"): 2})
    findings = judge(EXPECTED, found, {A, B, TWIN}, Counter({(A, "alex"): 1}))
    assert findings.duplicate == findings.repeated == Counter({(A, "alex"): 1})
    assert not findings.clean


def test_the_driver_s_mails_are_identified_by_their_subject() -> None:
    assert token(b"To: x\r\nSubject: run1-in-7\r\n\r\n") == "run1-in-7"
    assert token(b"To: x\r\n\r\n") == ""
