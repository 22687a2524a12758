"""Header fields in raw bytes (shared/mime/headers.py, shared/mime/encoded_words.py)."""

from __future__ import annotations

import email.header
import email.utils
import re
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.mime import headers
from shared.mime.addresses import ascii_address, fold_address, spellings
from shared.mime.headers import field_text, fields, format_mailbox, header_end, mailboxes, message_ids, splice, values

MIB = 1024 * 1024


def pairs(value: bytes | str) -> list[tuple[str | None, str]]:
    raw = value.encode() if isinstance(value, str) else value
    return [(mailbox.name, mailbox.address) for mailbox in mailboxes(raw)]


# ---------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("message", "end"),
    [
        (b"A: 1\r\n\r\nbody", 8),
        (b"A: 1\n\nbody", 6),
        (b"A: 1\r\n\nbody", 7),
        (b"A: 1\n\r\nbody", 7),
        (b"A: 1\r\n", 6),
        (b"", 0),
        (b"\r\nbody", 2),
        (b"\nbody", 1),
        (b"A: 1\r\n \r\nB: 2\r\n\r\nbody", 17),
    ],
)
def test_the_header_ends_after_its_first_blank_line(message: bytes, end: int) -> None:
    assert header_end(message) == end


def test_a_field_has_a_span_with_its_folds_and_a_raw_value() -> None:
    # given
    header = b"Subject: one\r\n two\r\nTo:x@y\r\n\r\n"
    # when
    subject, to = fields(header)
    # then
    assert (subject.name, subject.key, subject.value) == ("Subject", "subject", b" one\r\n two")
    assert header[subject.start : subject.end] == b"Subject: one\r\n two\r\n"
    assert header[subject.value_start : subject.value_start + len(subject.value)] == subject.value
    assert (to.value, header[to.start : to.end]) == (b"x@y", b"To:x@y\r\n")


def test_blanks_before_the_colon_are_not_part_of_the_name() -> None:
    assert [(field.name, field.value) for field in fields(b"From : a@b\r\nTo\t: c@d\r\n")] == [
        ("From", b" a@b"),
        ("To", b" c@d"),
    ]


def test_lines_that_are_not_fields_are_skipped_with_their_folds() -> None:
    # given
    header = b"From alex Mon Jan 1\r\nA: 1\r\nno colon here\r\n To: hidden@x\r\nB: 2\r\nb\xc3\xa9: 3\r\n: 4\r\nC: 5"
    # then
    assert [(field.name, field.value) for field in fields(header)] == [("A", b" 1"), ("B", b" 2"), ("C", b" 5")]


def test_fields_stop_at_the_blank_line() -> None:
    assert [field.name for field in fields(b"A: 1\r\n\r\nB: 2\r\n")] == ["A"]


def test_values_are_found_in_any_case_and_in_order() -> None:
    assert values(b"to: 1\r\nX: 2\r\nTO : 3\r\n", "To") == [b" 1", b" 3"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b" Hello\r\n there ", "Hello there"),
        (b"=?utf-8?q?Caf=C3=A9?=\r\n =?utf-8?q?_au_lait?=", "Café au lait"),
        (b"Re: =?iso-8859-1?Q?Jos=E9?= again", "Re: José again"),
        ("raw Žluťoučký".encode(), "raw Žluťoučký"),
        (b"raw \x93latin\x94", "raw “latin”"),
        (b"=?utf-8?q?evil=0D=0ABcc:_x?=", "evil Bcc: x"),
        (b"=?nonsense?q?x?=", "x"),
        (b"=?nonsense?q?=E9?=", "=?nonsense?q?=E9?="),
    ],
)
def test_unstructured_text_is_unfolded_and_decoded(value: bytes, text: str) -> None:
    assert field_text(value) == text


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "line", [b"a:\r\n", b"X-Long: y\r\n z\r\n", b"no colon\r\n", b'To: "Alex" <a@b>,\r\n <c@d>\r\n']
)
def test_a_header_of_a_megabyte_is_split_in_linear_time(line: bytes) -> None:
    # given
    header = line * (MIB // len(line)) + b"\r\n"
    # when
    started = time.process_time()
    found = fields(header[: header_end(header)])
    # then
    assert time.process_time() - started < 10  # about 0.4 s; quadratic time would take minutes
    assert len(found) == (0 if b":" not in line else MIB // len(line))


# ---------------------------------------------------------------------------------------------- splicing


def test_splicing_replaces_octets_and_nothing_else() -> None:
    assert splice(b"0123456789", [(8, 10, b"Z"), (2, 4, b"abc"), (5, 5, b"+")]) == b"01abc4+567Z"


@pytest.mark.parametrize("edits", [[(2, 5, b""), (4, 6, b"")], [(3, 2, b"")], [(0, 11, b"")], [(-1, 2, b"")]])
def test_edits_that_overlap_or_lie_outside_are_refused(edits: list[tuple[int, int, bytes]]) -> None:
    with pytest.raises(ValueError, match="overlaps another one or is outside"):
        splice(b"0123456789", edits)


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=8), st.binary(max_size=12))
def test_splicing_leaves_all_other_octets_identical(cuts: list[tuple[bytes, bytes]], last: bytes) -> None:
    # given octets that stay, each followed by octets that are replaced
    header = b"".join(kept + old for kept, old in cuts) + last
    edits, position = [], 0
    for number, (kept, old) in enumerate(cuts):
        start = position + len(kept)
        position = start + len(old)
        edits.append((start, position, b"<%d>" % number))
    # when
    spliced = splice(header, edits)
    # then
    assert spliced == b"".join(kept + b"<%d>" % number for number, (kept, _) in enumerate(cuts)) + last


@given(
    st.lists(
        st.sampled_from(
            [
                b'"Alex" <alex@local.com>',
                b"jim@local.com",
                b"<kim@local.com>",
                b"tom@local.com (Tom)",
                b"=?utf-8?q?T?= <t@x.y>",
                b"Tom\r\n <tom@local.com>",
                b'"a, b" <c@d.e>',
                b"a@b (c, (d) <e>)",
                b"<@r.s,@t.u:v@w.x>",
            ]
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([b",", b", ", b" ,\r\n ", b";", b",,"]),
    st.integers(0, 5),
)
def test_one_mailbox_can_be_replaced_in_a_list(written: list[bytes], comma: bytes, which: int) -> None:
    # given
    value = b" " + comma.join(written) + b"\r\n "
    which %= len(written)
    # when
    found = mailboxes(value)
    spliced = splice(value, [(found[which].start, found[which].end, b"<new@x.example>")])
    # then
    expected = [*written[:which], b"<new@x.example>", *written[which + 1 :]]
    assert spliced == b" " + comma.join(expected) + b"\r\n "


# ---------------------------------------------------------------------------------------------- mailboxes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # the ordinary forms
        ('"Alex" <support@company.com>', [("Alex", "support@company.com")]),
        ("Alex Smith <a@b.c>, d@e.f", [("Alex Smith", "a@b.c"), (None, "d@e.f")]),
        ("a@b.c\r\n ,\r\n d@e.f", [(None, "a@b.c"), (None, "d@e.f")]),
        ("Friends: a@b.c, Jim <d@e.f>;, g@h.i", [(None, "a@b.c"), ("Jim", "d@e.f"), (None, "g@h.i")]),
        ("undisclosed-recipients:;", []),
        ('J. R. "Bob" Dobbs <a@b.c>', [("J. R. Bob Dobbs", "a@b.c")]),
        # quotes, comments, escapes
        (r'"Al\"ex \\ (x)" <a@b.c>', [('Al"ex \\ (x)', "a@b.c")]),
        ("Alex (a (nested) comment) Smith <a@b.c>", [("Alex Smith", "a@b.c")]),
        ("a@b.c (Alex (the) Great)", [("Alex (the) Great", "a@b.c")]),
        ("<a@b.c> (Alex)", [("Alex", "a@b.c")]),
        ('"" <a@b.c> (Alex)', [("Alex", "a@b.c")]),
        ("Alex <a@b.c> (Jim)", [("Alex", "a@b.c")]),
        ("(comma, inside) a@b.c (another, <x@y.z>)", [("another, <x@y.z>", "a@b.c")]),
        ('"a@b.c, d@e.f" <g@h.i>', [("a@b.c, d@e.f", "g@h.i")]),
        # local parts and domains
        ('"john doe"@b.c', [(None, '"john doe"@b.c')]),
        ('Jo <"john doe"@b.c>', [("Jo", '"john doe"@b.c')]),
        ('<"john>doe"@b.c>', [(None, '"john>doe"@b.c')]),
        ('"support"@company.com', [(None, "support@company.com")]),
        ("Alex <support @ company . com>", [("Alex", "support@company.com")]),
        ("support @ company.com", [(None, "support@company.com")]),
        ("Alex <support(c)@company.com>", [("Alex", "support@company.com")]),
        ("Alex <a@[192.0.2.1]>, b@[IPv6:2001:db8::1]", [("Alex", "a@[192.0.2.1]"), (None, "b@[IPv6:2001:db8::1]")]),
        ("Алексей <почта@пример.рф>", [("Алексей", "почта@пример.рф")]),
        # obsolete and broken forms
        ("Alex <@x.y,@z:support@company.com>", [("Alex", "support@company.com")]),
        ("Alex <@x.y:support@company.com>, j@k.l", [("Alex", "support@company.com"), (None, "j@k.l")]),
        ("Alex <mailto:a@b.c>", [("Alex", "a@b.c")]),
        ("a@b.c; Jim <d@e.f>", [(None, "a@b.c"), ("Jim", "d@e.f")]),
        (",,a@b.c,,", [(None, "a@b.c")]),
        ('"Alex" a@b.c', [("Alex", "a@b.c")]),
        ("Alex Smith a@b.c", [("Alex Smith", "a@b.c")]),
        ('"Alex" <a@b.c', [("Alex", "a@b.c")]),
        ('"Alex" <a@b.c, "Jim" <d@e.f>', [("Alex", "a@b.c"), ("Jim", "d@e.f")]),
        ('"Alex" <a@b.c>>, d@e.f', [("Alex", "a@b.c"), (None, "d@e.f")]),
        ('"Alex" <<a@b.c>>', [("Alex", "a@b.c")]),
        ('"Alex" <a@b.c> "Jim" <d@e.f>', [("Alex", "a@b.c"), ("Jim", "d@e.f")]),
        ('"Alex <a@b.c>', [("Alex", "a@b.c")]),
        ("Alex (x <a@b.c>", [("Alex (x", "a@b.c")]),
        ("Alex@Home <a@b.c>", [("Alex@Home", "a@b.c")]),
        ("a@b.c <a@b.c>", [("a@b.c", "a@b.c")]),
        ("'Alex' <'a@b.c'>", [("'Alex'", "a@b.c")]),
        ('Alex <"a@b.c">', [("Alex", "a@b.c")]),
        ("[Ticket 7] Alex <a@b.c>", [("[Ticket 7] Alex", "a@b.c")]),
        # no address at all
        ("", []),
        ("   ", []),
        ("Alex", []),
        ("<>", []),
        ("Alex <>", []),
        ("@", []),
        ("a@", []),
        ("@b", []),
        ("<a@>", []),
        ('@@@<<>>;;::""', []),
        ("<a\x00b@c.d>", []),
        ("<" + "a" * 2000 + "@b.c>", []),
    ],
)
def test_mailboxes_are_read(value: str, expected: list[tuple[str | None, str]]) -> None:
    assert pairs(value) == expected


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("=?utf-8?B?0JDQu9C10LrRgdC10Lk=?= <a@b.c>", "Алексей"),
        ("=?utf-8*ru?B?0JDQu9C10LrRgdC10Lk=?= <a@b.c>", "Алексей"),
        ("=?gb2312?B?wO7A1w==?= <a@b.c>", "李雷"),
        ("=?gb2312?B?6Iw=?= <a@b.c>", "鑼"),  # beyond gb2312, sent under its name
        ("=?ISO-2022-JP?B?GyRCOzNFRBsoQg==?= <a@b.c>", "山田"),
        ("=?windows-1252?Q?=93Alex=94?= <a@b.c>", "“Alex”"),
        ("=?windows-874?B?ysGq0sI=?= <a@b.c>", "สมชาย"),  # Outlook's name for the Thai encoding
        ("=?windows-31j?B?7uCLtA==?= <a@b.c>", "髙橋"),
        ("=?x-mac-roman?Q?Jos=8E?= <a@b.c>", "José"),
        ("=?iso-8859-1?Q?=93Alex=94?= <a@b.c>", "“Alex”"),
        ("=?us-ascii?Q?Jos=C3=A9?= <a@b.c>", "José"),
        ("=?utf-8?q?Alex_?=\r\n =?utf-8?q?Smith?= <a@b.c>", "Alex Smith"),
        ("=?utf-8?q?Alex?= =?utf-8?q?Smith?= <a@b.c>", "AlexSmith"),
        ("=?utf-8?b?w4?= =?utf-8?b?k=?= <a@b.c>", "\ufffd"),  # half a character, and invalid base64
        ("=?utf-8?Q?Jos=C3?= =?utf-8?Q?=A9?= <a@b.c>", "José"),  # a character cut in two
        ("=?utf-8?b?Sm9zw6k?= <a@b.c>", "José"),  # padding left out
        ('"=?utf-8?Q?Alex?=" <a@b.c>', "Alex"),
        ('"=?utf-8?Q?Alex_?= =?utf-8?Q?Smith?=" <a@b.c>', "Alex Smith"),
        ("a@b.c (=?utf-8?Q?Alex?=)", "Alex"),
        ("=?utf-8?Q?Alex?=<a@b.c>", "Alex"),
        ("=?utf-8?Q?Alex?= Smith <a@b.c>", "Alex Smith"),
        ("=?utf-8?Q?Alex Smith?= <a@b.c>", "Alex Smith"),  # a blank, as some write it
        ("=?utf-8?Q?Smith,_Alex?= <a@b.c>", "Smith, Alex"),  # a bare comma in an encoded-word
        ("=?utf-8?Q?Smith=2C_Alex?= <a@b.c>", "Smith, Alex"),
        ("=?utf-8?Q?Alex_<evil@x.example>,?= <a@b.c>", "Alex <evil@x.example>,"),
        ("=?utf-8?Q?Alex_=3Cevil=40x.example=3E=2C?= <a@b.c>", "Alex <evil@x.example>,"),
        ("=?utf-8?B?QQ0KQmNjOiBldmlsQHguZXhhbXBsZQ==?= <a@b.c>", "A Bcc: evil@x.example"),
        ("=?utf-8?B?W1s=?= <a@b.c>", "[["),  # an IndexError in the standard library
        ("=?utf-8?X?Alex?= <a@b.c>", "=?utf-8?X?Alex?="),
        ("=?x-no-such?Q?Alex?= <a@b.c>", "Alex"),  # an unknown charset, but the octets are ASCII
        ("=?x-no-such?Q?Jos=E9?= <a@b.c>", "=?x-no-such?Q?Jos=E9?="),
        ("=?x-no-such?B?GyRC?= <a@b.c>", "=?x-no-such?B?GyRC?="),  # ISO-2022 is no ASCII text
        ("=?zlib?Q?Jos=E9?= <a@b.c>", "=?zlib?Q?Jos=E9?="),
        ("=?utf-8?Q?=ZZ=4?= <a@b.c>", "=ZZ=4"),
        ("=?utf-7?Q?+2D0-?= <a@b.c>", "\ufffd"),  # half of a surrogate pair
    ],
)
def test_names_are_decoded_after_parsing(value: str, name: str) -> None:
    # when
    [(found, address)] = pairs(value)
    # then
    assert address == "a@b.c"
    assert found is not None
    assert found.replace("\ufffd\ufffd", "\ufffd") == name


def test_raw_latin_1_is_read_as_such() -> None:
    assert pairs(b"Jos\xe9 <a@b.c>") == [("José", "a@b.c")]


@given(st.binary(max_size=300) | st.text("abAB@.,;:<>()[]\"\\ =?utf-8QBx\r\n\t+'é\x00", max_size=120).map(str.encode))
def test_nothing_in_a_header_raises(value: bytes) -> None:
    # when
    found = mailboxes(value)
    # then: spans are in order, apart, and inside
    position = 0
    for mailbox in found:
        assert position <= mailbox.start < mailbox.end <= len(value)
        position = mailbox.end
        assert "@" in mailbox.address
        mailbox.address.encode()
        (mailbox.name or "").encode()
        assert mailbox.name != ""
        assert not set(mailbox.address + (mailbox.name or "")) & set("\r\n\0")
        fold_address(mailbox.address)
    message_ids(value)
    field_text(value).encode()
    for field in fields(value):
        assert value[field.value_start : field.value_start + len(field.value)] == field.value


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit",
    [
        b"(",
        b"((a)",
        b'"',
        b'"\\',
        b"<",
        b"<>",
        b"<a@b>",
        b"<a@b",
        b",",
        b":",
        b"=?a?q?",
        b"=?a?q?x?=",
        b"[",
        b"@",
        b"a@b,",
        b"<@a,",
        b'"a"',
        b'"a@b"<',
        b"\r\n ",
        "\u0301\u0327".encode(),
        b'"Alex" <support@company.com>, ',
        b"=?",
    ],
)
def test_no_value_takes_long(unit: bytes) -> None:
    # given
    value = unit * (MIB // 4 // len(unit))
    # when
    started = time.process_time()
    mailboxes(value)
    message_ids(value)
    field_text(value)
    # then
    assert time.process_time() - started < 10


def test_three_thousand_mailboxes_are_all_read() -> None:
    assert len(mailboxes(b", ".join(b'"Name %d" <n%d@x.example>' % (n, n) for n in range(3000)))) == 3000


# ---------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Support@Company.COM", "support@company.com"),
        ("support@company.com.", "support@company.com"),
        ("a@xn--e1afmkfd.xn--p1ai", "a@пример.рф"),
        ("jose\u0301@x.example", "josé@x.example"),
        # letters that RFC 3490 has no A-label for, and RFC 5891 has
        ("a@xn--strae-oqa.example", "a@Straße.example"),
        ("a@xn--qxaegecap6byf.gr", "a@ελληνικός.gr"),
    ],
)
def test_the_same_address_in_two_spellings_folds_alike(one: str, other: str) -> None:
    assert fold_address(one) == fold_address(other)
    assert spellings(one) & spellings(other)


@pytest.mark.parametrize(
    "address",
    [
        "support@xn--company-.com",
        "support@xn--Kompany-.com",
        "support@xn--Bcher-kva.com",
        "support@xn--\u212aompany.com",
    ],
)
def test_an_invalid_a_label_is_not_folded_to_another_domain(address: str) -> None:
    assert fold_address(address) not in {"support@company.com", "support@kompany.com"}


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("support@bücher.example", "support@xn--bcher-kva.example"),
        ("support@Bu\u0308cher.example", "support@xn--bcher-kva.example"),
        ("support@straße.example", "support@xn--strae-oqa.example"),
        ("support@xn--bcher-kva.example", "support@xn--bcher-kva.example"),
        ("Support@Company.com", "Support@Company.com"),
        ("jörg@bücher.example", "jörg@bücher.example"),  # no server accepts it without SMTPUTF8
        ("nothing", "nothing"),
    ],
)
def test_an_address_is_written_in_ascii_where_that_is_possible(address: str, written: str) -> None:
    assert ascii_address(address) == written


@pytest.mark.parametrize("address", ["a@xn--" + "9" * 50, "a@xn--\u00e9", "no at", "@", "a@xn--" + "a" * 5000])
def test_folding_an_invalid_domain_does_not_raise(address: str) -> None:
    assert isinstance(fold_address(address), str)


# ---------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("name", "address", "written"),
    [
        ("Alex", "support@company.com", b'"Alex" <support@company.com>'),
        (None, "support@company.com", b"<support@company.com>"),
        (" ", "support@company.com", b"<support@company.com>"),
        ('Al"ex \\', "a@b.c", b'"Al\\"ex \\\\" <a@b.c>'),
        ("José Smith", "a@b.c", b"=?utf-8?q?Jos=C3=A9_Smith?= <a@b.c>"),
        ("Алексей", "a@b.c", b"=?utf-8?b?0JDQu9C10LrRgdC10Lk=?= <a@b.c>"),
        ("=?utf-8?q?x?=", "a@b.c", b"=?utf-8?b?PT91dGYtOD9xP3g/PQ==?= <a@b.c>"),
        ("Alex\r\nBcc: evil@x.example\0", "a@b.c\r\nX: y", b'"AlexBcc: evil@x.example" <a@b.cX:y>'),
        ("Алекс", "почта@пример.рф", "=?utf-8?b?0JDQu9C10LrRgQ==?=\r\n <почта@пример.рф>".encode()),
        ("Jo", "john doe@b.c", b'"Jo" <"john doe"@b.c>'),
        ("Jo", '"john doe"@b.c', b'"Jo" <"john doe"@b.c>'),
    ],
)
def test_a_mailbox_is_written(name: str | None, address: str, written: bytes) -> None:
    assert format_mailbox(name, address) == written


NAMES = st.text(st.characters(codec="utf-8") | st.sampled_from("abc \"\\,<>@=?()'é漢🎉"), max_size=150)
LOCALS = st.text("abcxyz.+-_=é漢", min_size=1, max_size=30) | st.sampled_from(['"john doe"', '"a\\"b"', '"x>y, z"'])


def visible(name: str) -> str:
    """Return the name without control characters and with its blanks collapsed, as a mailbox can carry it."""
    kept = "".join(letter for letter in name if letter == "\t" or unicodedata.category(letter) != "Cc")
    return " ".join(part for part in kept.replace("\t", " ").split(" ") if part).strip()


@given(NAMES, LOCALS, st.sampled_from(["company.com", "пример.рф", "[192.0.2.1]", "x" * 150 + ".example"]))
def test_a_written_mailbox_is_read_back_unchanged(name: str, local: str, domain: str) -> None:
    # when
    written = format_mailbox(name, f"{local}@{domain}")
    # then
    [mailbox] = mailboxes(written)
    assert mailbox.name == (visible(name) or None)
    assert mailbox.address == f"{local}@{domain}"
    assert written[mailbox.start : mailbox.end] == written


@given(st.text(max_size=200), st.text(max_size=60))
def test_no_name_and_no_address_breaks_out_of_its_field(name: str, address: str) -> None:
    # when
    written = format_mailbox(name, address)
    # then
    header = b"From: " + written + b"\r\nTo: x@y.z\r\n\r\n"
    assert [field.name for field in fields(header)] == ["From", "To"]
    assert b"\0" not in written
    assert written.count(b"\r\n ") == written.count(b"\r") == written.count(b"\n")


@given(NAMES)
def test_written_lines_are_short_and_encoded_words_too(name: str) -> None:
    # when
    lines = (b"From: " + format_mailbox(name, "support@company.com")).split(b"\r\n")
    # then
    assert all(len(line) <= 77 and line.strip() for line in lines)
    assert all(len(word) <= 75 for line in lines for word in line.split(b" ") if word.startswith(b"=?"))


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=60))
def test_the_standard_library_reads_written_mailboxes(name: str) -> None:
    # when
    written = format_mailbox(name, "support@company.com").decode()
    # then
    [(phrase, address)] = email.utils.getaddresses([written.replace("\r\n", "")])
    assert address == "support@company.com"
    assert str(email.header.make_header(email.header.decode_header(phrase))) == name


# ---------------------------------------------------------------------------------------------- message ids


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (b" <a@b.c>", ["a@b.c"]),
        (b"<a@b.c> <d@e.f>\r\n\t<g@h.i>", ["a@b.c", "d@e.f", "g@h.i"]),
        (b"<a@b.c>,<d@e.f>", ["a@b.c", "d@e.f"]),
        (b"<a@\r\n b.c>", ["a@b.c"]),
        (b"Your message of Monday <a@b.c> (was <x@y.z>)", ["a@b.c"]),
        (b"(comment (nested <n@o.p>)) <a@b.c>", ["a@b.c"]),
        (b"<a(1)@b.c>", ["a(1)@b.c"]),
        (b"<<a@b.c>>", ["a@b.c"]),
        (b"<a@b.c", ["a@b.c"]),
        (b"a@b.c", ["a@b.c"]),
        (b"a@b.c, d@e.f", ["a@b.c", "d@e.f"]),
        (b"<12345>", ["12345"]),
        (b"<a\x00@b.c>", ["a@b.c"]),
        (b"<[>", ["["]),  # an IndexError in the standard library
        (b"((( <a@b.c>", ["a@b.c"]),
        (b"", []),
        (b"<>", []),
        (b"garbage", []),
        (b"<" + b"x" * 2000 + b"@y>", []),
    ],
)
def test_message_ids_are_read(value: bytes, ids: list[str]) -> None:
    assert message_ids(value) == ids


# ---------------------------------------------------------------------------------------------- the short ways

PIECES = [
    "ann@x.org",
    "<ann@x.org>",
    "Ann ",
    '"Ann B." ',
    "O'Neil ",
    ", ",
    ",",
    '"',
    "\\",
    "<",
    ">",
    " ",
    "\r\n ",
    "\t",
]
PIECES += ["(x)", ":", ";", "=?utf-8?Q?A?=", "=", "'", "[1]", ".", "@", "é", "\x0b", "mailto:", '""', '" "']


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_a_plain_address_field_is_read_as_any_other(value: str) -> None:
    plain = headers._plain_mailboxes(value)
    if plain is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(headers, "_plain_mailboxes", lambda text: None)
            assert plain == mailboxes(value.encode("latin-1"))


@pytest.mark.parametrize("value", ["a@b.c", ' "Alex" <a@b.c>', "Alex B <a@b.c>,\r\n x@y.z", "<a@b.c>, "])
def test_plain_address_fields_are_parsed_by_the_fast_path(value: str) -> None:
    assert headers._plain_mailboxes(value.rstrip(", ")) is not None


LINES = [
    b"To",
    b": ",
    b":",
    b" ",
    b"\t",
    b"\r\n",
    b"\n",
    b"\r",
    b"To: a@b\r\n",
    b"CC : x\n",
    b"From \r\n",
    b"\xe9",
    b"\x0b",
    b"\xef\xbb\xbf",
]


@given(st.lists(st.sampled_from(LINES), max_size=14).map(b"".join))
@example(b"\xef\xbb\xbf\r\nTo: a@b\r\n")  # a blank line behind the mark
def test_fields_read_all_at_once_are_those_read_one_by_one(message: bytes) -> None:
    one_by_one: dict[str, list[bytes]] = {}
    for field in fields(message[: header_end(message)]):
        one_by_one.setdefault(field.key, []).append(field.value)
    assert headers.by_name(message) == one_by_one
    assert values(message, "To") == one_by_one.get("to", [])


@given(st.lists(st.sampled_from([b"\r", b"\n", b"a"]), max_size=12).map(b"".join))
def test_the_header_ends_at_the_first_blank_line_of_either_kind(message: bytes) -> None:
    blank = re.search(rb"\A\r?\n|\n\r?\n", message)
    assert header_end(message) == (blank.end() if blank else len(message))
