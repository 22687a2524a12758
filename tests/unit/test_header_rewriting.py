"""services/sender/header_rewriting.py: the header of an outgoing mail."""

from __future__ import annotations

import datetime
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.sender import header_rewriting
from services.sender.header_fields import FIELDS
from services.sender.header_folding import fold_long_lines
from services.sender.header_rewriting import (
    KEPT_MAILBOXES,
    Author,
    mailbox_addresses,
    parse_header,
    rewrite_header,
)
from shared.mime import headers
from tests.faults import hostile_mails

DATE = datetime.datetime(2026, 11, 3, 9, 30, tzinfo=datetime.UTC)
AUTHOR = Author("Alex", "support@company.com", frozenset({"support@company.com", "help@company.com"}))
DIRECTORY = {
    "alex@local.com": ("Alex", "support@company.com"),
    "a.further@local.com": ("Alex", "support@company.com"),
    "jim@local.com": ("Jim", "support@company.com"),
    "kim@local.com": ("Kim", "sales@company.com"),
    "jörg@local.com": ("Jörg Müller", "sales@company.com"),
}
COMPLETE = b"Date: Tue, 3 Nov 2026 09:30:00 +0000\r\nMessage-ID: <m@local>\r\n"


def leaves(header: bytes, message_id: str = "m@local") -> bytes:
    return rewrite_header(parse_header(header), DIRECTORY, AUTHOR, message_id, DATE)


@pytest.mark.parametrize(
    ("written", "left"),
    [
        # the sender (manual 4.3)
        (b"From: alex@local.com", b'From: "Alex" <support@company.com>'),
        (b"From: Alexander the Great <Alex@LOCAL.com>", b'From: "Alex" <support@company.com>'),
        (b"From:a.further@local.com (me)", b'From:"Alex" <support@company.com>'),
        (b"From : alex@local.com", b'From : "Alex" <support@company.com>'),
        # an address that is written in another way is the same one
        (b"From: alex@local.com.", b'From: "Alex" <support@company.com>'),
        (b"From: help@company.com.", b'From: "Alex" <help@company.com>'),
        # an author who writes as the external account is named too: otherwise replies do not reach the author
        (b"From: support@company.com", b'From: "Alex" <support@company.com>'),
        (b"From: Team <support@company.com>", b'From: "Alex" <support@company.com>'),
        (b"From: help@company.com", b'From: "Alex" <help@company.com>'),
        # an address that the author had at submission and does not have any more
        (b"From: Alex <a.former@local.com>", b'From: "Alex" <support@company.com>'),
    ],
)
def test_the_author_leaves_as_user_name_and_external_address(written: bytes, left: bytes) -> None:
    assert leaves(COMPLETE + written + b"\r\n\r\n") == COMPLETE + left + b"\r\n\r\n"


FROM = b'From: "Alex" <support@company.com>\r\n'


@pytest.mark.parametrize(
    ("written", "left"),
    [
        # colleagues stay reachable by an answer to all
        (b"To: ann@customer.org, Jim <jim@local.com>\r\n", b'To: ann@customer.org, "Jim" <support@company.com>\r\n'),
        (b"Cc: kim@local.com\r\n", b'Cc: "Kim" <sales@company.com>\r\n'),
        (
            b"To: Team: jim@local.com, kim@local.com;\r\n",
            b'To: Team: "Jim" <support@company.com>, "Kim" <sales@company.com>;\r\n',
        ),
        (b"To: a\r\nTo: jim@local.com\r\n", b'To: a\r\nTo: "Jim" <support@company.com>\r\n'),
        (b"To: support@company.com\r\n", b"To: support@company.com\r\n"),
        (b"To: undisclosed-recipients:;\r\n", b"To: undisclosed-recipients:;\r\n"),
        (b"Cc: jim@local.com.evil.org, xjim@local.com\r\n", b"Cc: jim@local.com.evil.org, xjim@local.com\r\n"),
        # the address for replies
        (b"Reply-To: alex@local.com\r\n", b'Reply-To: "Alex" <support@company.com>\r\n'),
        (b"Reply-To: boss@elsewhere.org\r\n", b"Reply-To: boss@elsewhere.org\r\n"),
        (b"Reply-To: support@company.com\r\n", b"Reply-To: support@company.com\r\n"),
        (
            b"Disposition-Notification-To: <alex@local.com>\r\n",
            b'Disposition-Notification-To: "Alex" <support@company.com>\r\n',
        ),
        (b"Return-Receipt-To: alex@local.com\r\n", b'Return-Receipt-To: "Alex" <support@company.com>\r\n'),
        # Sender
        (b"Sender: alex@local.com\r\n", b""),
        (b"Sender: support@company.com\r\n", b""),
        (b"X-Sender: <alex@local.com>\r\n", b""),
        (b"Sender: jim@local.com\r\n", b'Sender: "Jim" <support@company.com>\r\n'),
        (b"Sender: kim@local.com\r\n", b'Sender: "Kim" <sales@company.com>\r\n'),
        # removed
        (b"Bcc: kim@local.com,\r\n secret@customer.org\r\n", b""),
        (b"bcc : kim@local.com\r\n", b""),
        (b"Return-Path: <alex@local.com>\r\n", b""),
        (b"Resent-Bcc: kim@local.com\r\nDelivered-To: kim@local.com\r\nX-Envelope-To: a@b.org\r\n", b""),
        (b"Envelope-To: a@b.org\r\nApparently-To: a@b.org\r\nX-Original-To: a@b.org\r\n", b""),
        # the fields of a redirect and of other programs
        (b"Resent-From: Alex <alex@local.com>\r\n", b'Resent-From: "Alex" <support@company.com>\r\n'),
        (b"Resent-Cc: jim@local.com\r\n", b'Resent-Cc: "Jim" <support@company.com>\r\n'),
        (b"Mail-Followup-To: alex@local.com\r\n", b'Mail-Followup-To: "Alex" <support@company.com>\r\n'),
        (b"X-Sender-Id: alex@local.com\r\n", b"X-Sender-Id: support@company.com\r\n"),
        (b"X-Authenticated-Sender: mx: 'kim@LOCAL.com'\r\n", b"X-Authenticated-Sender: mx: 'sales@company.com'\r\n"),
        (b"X-Our-Other-Recipients: Kim <kim@local.com>\r\n", b"X-Our-Other-Recipients: Kim <sales@company.com>\r\n"),
        (
            b"Comments: Authenticated sender is <alex@local.com>\r\n",
            b"Comments: Authenticated sender is <support@company.com>\r\n",
        ),
        (
            b"List-Unsubscribe: <https://x.org/?alex%40local.com>,\r\n <mailto:kim@local.com?cc=jim%40local.com>\r\n",
            b"List-Unsubscribe: <https://x.org/?support%40company.com>,\r\n"
            b" <mailto:sales@company.com?cc=support%40company.com>\r\n",
        ),
        (b"Original-Recipient: rfc822;alex@local.com\r\n", b"Original-Recipient: rfc822;support@company.com\r\n"),
        (
            b"Authentication-Results: mx; auth=pass smtp.auth=alex@local.com smtp.mailfrom=a@b.org\r\n",
            b"Authentication-Results: mx; auth=pass smtp.auth=support@company.com smtp.mailfrom=a@b.org\r\n",
        ),
        # Received finds loops, and stays
        (
            b"Received: from pc (pc [10.0.0.2]) by mx with ESMTPSA id 1\r\n\tfor <alex@local.com>; Tue, 3 Nov 2026\r\n",
            b"Received: from pc (pc [10.0.0.2]) by mx with ESMTPSA id 1; Tue, 3 Nov 2026\r\n",
        ),
        (b"Received: by mx for ann@customer.org; Tue\r\n", b"Received: by mx for ann@customer.org; Tue\r\n"),
        (
            b"Received: by mx (Authenticated sender: kim@local.com) for kim@local.com; Tue\r\n",
            b"Received: by mx (Authenticated sender: sales@company.com); Tue\r\n",
        ),
        # a key for an address that nobody outside can use
        (b"Autocrypt: addr=alex@local.com; prefer-encrypt=mutual;\r\n keydata=mDMEX==\r\n", b""),
        (
            b"Autocrypt: addr=support@company.com; keydata=mDMEX==\r\n",
            b"Autocrypt: addr=support@company.com; keydata=mDMEX==\r\n",
        ),
        # untouched
        (b"In-Reply-To: <alex@local.com>\r\n", b"In-Reply-To: <alex@local.com>\r\n"),
        (b"X-Note: alex@local.com\r\n\tand Bcc: folded\r\n", b"X-Note: alex@local.com\r\n\tand Bcc: folded\r\n"),
        (b"Subject: alex@local.com \xe4\r\n", b"Subject: alex@local.com \xe4\r\n"),
    ],
)
def test_each_field_leaves_as_it_should(written: bytes, left: bytes) -> None:
    assert leaves(COMPLETE + FROM + written + b"\r\n") == COMPLETE + FROM + left + b"\r\n"


@pytest.mark.parametrize("key", sorted(FIELDS))
@pytest.mark.parametrize("written", [b"alex@local.com", b"Kim <KIM@Local.com>", b"(x) <jim@local.com> (y)"])
def test_no_field_of_the_table_leaves_with_a_local_address(key: str, written: bytes) -> None:
    left = leaves(COMPLETE + FROM + key.title().encode() + b": " + written + b"\r\nX-Last: 1\r\n\r\n")
    assert b"@local.com" not in left.lower()
    assert left.endswith(b"\r\nX-Last: 1\r\n\r\n")


def test_the_time_for_a_text_without_an_address_is_proportional() -> None:
    for text in (b"a" * 500_000, b"a@" * 250_000, b"%40" * 170_000, b"'" * 500_000, b"a@b" + b"." * 500_000):
        started_at = time.process_time()
        leaves(COMPLETE + FROM + b"X-Sender-Id: " + text + b"\r\n\r\n")
        assert time.process_time() - started_at < 2


def test_a_name_beyond_ascii_leaves_as_an_encoded_word() -> None:
    left = leaves(COMPLETE + FROM + "To: jörg@local.com\r\n\r\n".encode())
    assert left.isascii()
    [value] = headers.values(left, "to")
    assert [(m.name, m.address) for m in headers.mailboxes(value)] == [("Jörg Müller", "sales@company.com")]


def test_a_domain_beyond_ascii_leaves_in_a_labels() -> None:
    author = Author("Alex", "support@bücher.example", frozenset({"support@bücher.example", "help@bücher.example"}))
    for written, left in (
        ("From: alex@local.com", b'From: "Alex" <support@xn--bcher-kva.example>'),
        ("From: help@bücher.example", b'From: "Alex" <help@xn--bcher-kva.example>'),
        ("X-Y: 1", b'From: "Alex" <support@xn--bcher-kva.example>\r\nX-Y: 1'),
    ):
        header = COMPLETE + written.encode() + b"\r\n\r\n"
        rewritten = rewrite_header(
            parse_header(header), {"alex@local.com": ("Alex", "support@bücher.example")}, author, "m@local", DATE
        )
        assert set(rewritten.split(b"\r\n")) == set((COMPLETE + left + b"\r\n\r\n").split(b"\r\n"))


def test_what_a_mail_must_have_is_added_at_the_top() -> None:
    assert leaves(b"Subject: hello\r\n\r\n") == (
        b"Date: Tue, 03 Nov 2026 09:30:00 +0000\r\n" + FROM + b"Message-ID: <m@local>\r\nSubject: hello\r\n\r\n"
    )


def test_a_mail_without_any_header_gets_one() -> None:
    left = leaves(b"\r\n")
    assert [field.key for field in headers.fields(left)] == ["date", "from", "message-id"]
    assert left.endswith(b"\r\n\r\n")


def test_a_from_without_an_address_is_replaced() -> None:
    assert leaves(COMPLETE + b"From: Alex\r\n\r\n") == FROM + COMPLETE + b"\r\n"


def test_a_message_id_of_its_own_is_kept_and_another_one_replaced() -> None:
    kept = COMPLETE + FROM + b"\r\n"
    assert leaves(kept) == kept
    assert leaves(kept.replace(b"<m@local>", b"nothing")) == (
        b"Message-ID: <m@local>\r\n" + COMPLETE.replace(b"Message-ID: <m@local>\r\n", b"") + FROM + b"\r\n"
    )


def test_many_colleagues_in_one_field_make_no_line_too_long() -> None:
    left = leaves(COMPLETE + FROM + b"To: " + b", ".join([b"jim@local.com"] * 60) + b"\r\n\r\n")
    assert max(map(len, left.split(b"\r\n"))) <= 998
    [value] = headers.values(left, "to")
    assert [m.address for m in headers.mailboxes(value)] == ["support@company.com"] * 60


def test_only_addresses_of_rewritten_fields_are_looked_up() -> None:
    assert mailbox_addresses(parse_header(b"From: A@x\r\nTo: b@x, C <c@X>\r\nX-Other: d@x\r\nBcc: e@x\r\n")) == {
        "a@x",
        "b@x",
        "c@x",
    }


LONG = {
    "own addresses": hostile_mails.submission(1, "x@y.example", 400_000),
    "short addresses": FROM + b"To: " + b"a@b," * 100_000 + b"\r\n\r\n",
    "different addresses": FROM + b"To: " + b",".join(b"%x@b" % number for number in range(50_000)) + b"\r\n\r\n",
    "many fields": FROM + (b"To: " + b"jim@local.com," * 150 + b"\r\n") * 200 + b"\r\n",
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_header_is_kept_without_its_mailboxes(kind: str) -> None:
    # when
    tracemalloc.start()
    parsed = parse_header(LONG[kind])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # then
    assert kept < 300_000 and peak < 1_500_000
    assert sum(len(field.mailboxes or ()) for field in parsed.fields) <= KEPT_MAILBOXES


def test_every_local_mailbox_of_a_long_header_is_replaced() -> None:
    for kind, count in (("own addresses", 25_000), ("many fields", 30_000)):
        left = leaves(LONG[kind])
        assert b"@local.com" not in left.partition(b"Subject:")[2]
        found = [mailbox for value in headers.values(left, "to") for mailbox in headers.iterate_mailboxes(value)]
        assert sum(mailbox.address == "support@company.com" for mailbox in found) >= count
        assert max(map(len, left.split(b"\r\n"))) <= 998


def test_the_mailboxes_of_from_are_not_rewritten_for_each_sender_field(monkeypatch: pytest.MonkeyPatch) -> None:
    # given long fields of both
    header = b"From: " + b"alex@local.com," * 150 + b"x\r\n" + b"X-Sender: jim@local.com\r\n" * 2000 + b"\r\n"
    rewritten = 0
    rewrite = header_rewriting._rewrite_mailbox

    def count(mailbox: headers.Mailbox, *arguments: Any) -> headers.Mailbox:
        nonlocal rewritten
        rewritten += 1
        return rewrite(mailbox, *arguments)

    monkeypatch.setattr(header_rewriting, "_rewrite_mailbox", count)
    # when
    leaves(header)
    # then each is rewritten at most twice: to be compared, and to leave
    assert rewritten <= 2 * (150 + 2000)


WORDS = b" ".join([b"word"] * 500)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"Subject", b" " + WORDS),
        (b"X-Note", b"\t" + WORDS.replace(b" ", b"\t")),
        (b"X-Note", b" short\r\n " + WORDS + b"\r\n short"),
        (b"X-Note", b" " + b"x" * 990 + b" " + b"y" * 990),
        (b"To", b" " + b",".join([b"ann@customer.org"] * 200)),
        (b"To", b' "Doe, Ann" <ann@customer.org>,' * 100),
        (b"Cc", b" " + b",".join([b"jim@local.com"] * 200)),
        (b"References", b" " + b"<some.id@customer.org>" * 100),
        (b"List-Post", b" <mailto:ann@customer.org> " + WORDS),
    ],
)
def test_a_long_line_leaves_folded(key: bytes, value: bytes) -> None:
    left = leaves(COMPLETE + FROM + key + b":" + value + b"\r\nX-Last: 1\r\n\r\n")
    # then no line is too long or blank, and nothing but white space has changed
    lines = left.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert max(map(len, lines)) <= 998 and all(line.strip() for line in lines)
    [folded] = headers.values(left, key.decode())
    assert b"jim" in value or b"".join(folded.split()) == b"".join(value.split())
    assert headers.values(left, "x-last") == [b" 1"]
    expected = [mailbox.name for mailbox in headers.mailboxes(value)]
    assert key != b"To" or [mailbox.name for mailbox in headers.mailboxes(folded)] == expected
    # and it leaves the same way once more
    assert fold_long_lines(left) == left


@pytest.mark.parametrize("value", [b" " + b"x" * 2000, b"x" * 2000, b" " * 2000, b' "' + b"a b" * 900 + b"\r\n"])
def test_a_long_line_without_a_place_to_fold_stays(value: bytes) -> None:
    header = COMPLETE + FROM + b"X-Note:" + value + b"\r\n\r\n"
    assert b"".join(leaves(header).split()) == b"".join(header.split())
    if b" b" not in value:
        assert leaves(header) == header


@given(st.lists(st.sampled_from([b"a" * 400, b" ", b"\t", b'"', b",", b"<a@b>", b"\r\n ", b"\\", b";"]), max_size=60))
def test_folding_changes_nothing_but_white_space(pieces: list[bytes]) -> None:
    header = b"To: " + b"".join(pieces) + b"\r\nX-Last: 1\r\n\r\n"
    folded = fold_long_lines(header)
    assert b"".join(folded.split()) == b"".join(header.split())
    assert len(headers.fields(folded)) == len(headers.fields(header))


texts = st.lists(
    st.sampled_from(
        [
            b"From",
            b"To",
            b"Cc",
            b"Subject",
            b"X-Y",
            b":",
            b" ",
            b"\t",
            b"\r\n",
            b"\n",
            b"alex@local.com",
            b"jim@local.com",
            b"<",
            b">",
            b",",
            b'"',
            b"(",
            b")",
            b";",
            b"a@b",
            b"=?utf-8?q?a?=",
            b"\xe4",
            b"Message-ID: <m@local>",
            b"\r\n ",
        ]
    ),
    max_size=60,
).map(b"".join)


@given(texts)
def test_in_any_header_only_mailboxes_change(text: bytes) -> None:
    # given a header that is complete, then anything
    header = COMPLETE + FROM + text
    # when
    left = leaves(header)
    # then every other field is there, byte for byte, in its order
    changing = {"from", "sender", "x-sender", "to", "cc", "reply-to", "bcc", "return-path"}

    def others(section: bytes) -> list[bytes]:
        return [section[f.start : f.end] for f in headers.fields(section) if f.key not in changing]

    assert others(left) == others(header)
    # and the rewritten fields contain no readable local mailbox
    assert not mailbox_addresses(parse_header(left)) & set(DIRECTORY)


@given(texts)
def test_a_header_without_local_mailboxes_leaves_byte_for_byte(text: bytes) -> None:
    first = COMPLETE + FROM + b"X-First: 1\r\n"
    header = first + text.replace(b"@local.com", b"@elsewhere")
    found = {field.key for field in headers.fields(header)[len(headers.fields(first)) :]}
    assume(not found & {"from", "message-id"})
    assert leaves(header) == header
