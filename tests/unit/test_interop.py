"""tests/interop: every change of a mail on its way is found."""

from __future__ import annotations

from tests.interop.alpine import mails_of
from tests.interop.mails import KINDS, difference, difference_in_content, letter
from tests.interop.stand import as_relayed, compared
from tests.interop.table import Row, WorkRow, page

LETTERS = [letter(kind, f"token-{kind}", "alex@local.com", ("jim@local.com",)) for kind in KINDS]


def test_another_kind_of_line_ends_and_more_header_fields_are_no_change() -> None:
    for each in LETTERS:
        assert difference(each.raw, each.raw) == ""
        assert difference(each.raw, b"Received: here\n\tand there\n" + each.raw.replace(b"\r\n", b"\n")) == ""


def test_every_change_is_found() -> None:
    empty, dots, large = (each.raw for each in LETTERS)

    assert "body" in difference(empty, empty + b"\r\n")
    assert "body" in difference(dots, dots.replace(b"\r\n..\r\n", b"\r\n.\r\n"))
    assert "body" in difference(dots, dots[:-3])
    assert "body" in difference(large, large[:-100] + b"x" + large[-99:])
    assert "lacks" in difference(empty, empty.replace(b"MIME-Version: 1.0\r\n", b""))
    swapped = empty.replace(
        b"From: alex@local.com\r\nTo: jim@local.com\r\n", b"To: jim@local.com\r\nFrom: alex@local.com\r\n"
    )
    assert "lacks" in difference(empty, swapped)


def test_mails_have_to_be_there_once_each() -> None:
    mails = [each.raw for each in LETTERS]

    assert compared(LETTERS, mails) == ""
    assert "0 times" in compared(LETTERS, mails[1:])
    assert "2 times" in compared(LETTERS, [*mails, mails[0]])
    assert "4 mails" in compared(LETTERS, [*mails, b"Subject: another\r\n\r\n"])
    assert "body" in compared(LETTERS, [mails[0] + b"x", *mails[1:]])


def test_the_content_decides_where_the_client_writes_the_mail() -> None:
    for each in LETTERS:
        assert difference_in_content(each, each.raw.replace(b"=_interop", b"another")) == ""
    _, dots, large = LETTERS
    assert "text" in difference_in_content(dots, dots.raw.replace(b"\r\n.leading", b"\r\n..leading"))
    at = len(large.raw) // 2
    other = b"A" if large.raw[at : at + 1] != b"A" else b"B"
    assert "attachment" in difference_in_content(large, large.raw[:at] + other + large.raw[at + 1 :])
    assert "attachment" in difference_in_content(large, dots.raw.replace(dots.text.encode(), large.text.encode()))


def test_nothing_but_the_addresses_of_local_people_is_replaced() -> None:
    raw = b"From: alex@local.com\r\nTo: jim@local.com, anna@x.example\r\n\r\nalex@local.com\r\n"

    relayed = as_relayed(raw, {"alex@local.com": '"Alex" <support@company.com>'})

    assert relayed == raw.replace(b"From: alex@local.com", b'From: "Alex" <support@company.com>')


def test_a_row_says_yes_no_or_cannot() -> None:
    row = Row("mutt", "2.2.12", ["", None, "late | never\n"], ["", "", None], composes=True)

    assert row.cells() == ["mutt", "2.2.12", "yes", "–", "no: late / never", "yes*", "yes*", "–"]
    assert row.problems == ["late | never\n"]


def test_a_row_of_a_days_work_names_what_went_wrong() -> None:
    row = WorkRow("Roundcube", "1.6", ["", "two in Sent"])

    assert row.cells() == ["Roundcube", "1.6", "yes", "no: two in Sent"]
    assert row.problems == ["two in Sent"]


def test_mails_of_an_mbox_keep_their_last_line_end() -> None:
    box = b"From here\nSubject: internal\n\ndata\n\nFrom a\nSubject: a\n\nFromage\n\nFrom b\nSubject: b\n\n\n"

    assert mails_of(box) == [b"Subject: a\n\nFromage\n", b"Subject: b\n\n"]


def test_rows_of_programs_that_were_not_tested_are_kept() -> None:
    first = page([], [], [WorkRow("A", "1", ["late"]), WorkRow("B", "1", [""])], [], "")

    second = page([], [], [WorkRow("A", "2", [""]), WorkRow("C", "1", [""])], [], first)

    assert second == first.replace("| A | 1 | no: late |", "| A | 2 | yes |").replace(
        "| B | 1 | yes |\n", "| B | 1 | yes |\n| C | 1 | yes |\n"
    )
