"""The judge of the fault driver."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.books import Copies, Submitted, digest, judge, token
from tests.faults.seen import Listings, is_relayed_form

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


MAIL = (
    b"From: alex@local.com\r\nTo: anna@customer.example\r\nSubject: t\r\nDate: d\r\n"
    b"Message-ID: <t@local.com>\r\n\r\nHello\r\n"
)
RELAYED = b"Received: from us\r\n" + MAIL.replace(b"From: alex@local.com", b'From: "Alex" <support@company.com>')


@pytest.mark.parametrize(
    ("relayed", "same"),
    [
        (RELAYED, True),
        (RELAYED.replace(b"Hello", b"hello"), False),
        (RELAYED.replace(b"To: anna@", b"To: bert@"), False),
        (RELAYED.replace(b"Subject: t\r\n", b""), False),
        (RELAYED.replace(b"<support@company.com>", b"<sales@company.com>"), False),
        (MAIL, False),
    ],
)
def test_a_relayed_mail_differs_only_in_what_the_gateway_may_change(relayed: bytes, same: bool) -> None:
    assert is_relayed_form(Submitted("t", "alex@local.com", MAIL, ("anna@customer.example",)), relayed) is same


def test_a_mail_that_is_deleted_for_good_must_not_come_back() -> None:
    listings = Listings()
    listings.delete("tom", [b"1", b"2"], answered=False)
    listings.delete("tom", [b"1"], answered=True)
    listings.compare("tom", {b"1", b"2"}, [b"1", b"2", b"3"])
    assert listings.came_back == Counter({("1", "tom"): 1})
    assert not listings.vanished


def test_a_mail_that_was_read_vanishes_only_if_it_was_deleted() -> None:
    listings = Listings()
    listings.delete("tom", [b"1"], answered=False)
    listings.compare("tom", {b"1", b"2"}, [b"3"])
    assert listings.vanished == Counter({("2", "tom"): 1})
    assert not listings.came_back
