"""services/smtp_in/data_reader.py: the content after DATA."""

from __future__ import annotations

import hashlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.smtp_in.data_reader import HEADER_OCTETS, HIDDEN, LINE_OCTETS, MAX_FIELDS, DataReader
from services.smtp_in.header_opening import OPENING_OCTETS
from shared.mime.headers import fields

PLENTY = 10_000_000
WIRE = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"From: x", b"\0", b"\r\n.\r\n", b"\r\n\r\n", b"\xff", b" "]
    ),
    max_size=30,
).map(b"".join)


def read(wire: bytes, sizes: list[int] | None = None, octets: int = PLENTY) -> tuple[DataReader, bytes]:
    """Feed a mail in chunks of these sizes, repeated. Returns the mail and the octets behind its end."""
    mail, position, turn = DataReader(octets), 0, 0
    while position < len(wire) and not mail.ended:
        size = sizes[turn % len(sizes)] if sizes else len(wire)
        rest = mail.feed(wire[position : position + size])
        position += size
        turn += 1
    return mail, (rest if mail.ended else b"") + wire[position:]


@settings(max_examples=500)
@given(wire=WIRE, sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_any_chunking_gives_the_same_mail(wire: bytes, sizes: list[int]) -> None:
    wire += b"\r\n.\r\nQUIT\r\n"
    whole, rest = read(wire)

    chunked, chunked_rest = read(wire, sizes)

    assert chunked.ended and chunked_rest == rest
    assert chunked.refusal == whole.refusal
    if whole.refusal is None:
        assert chunked.content() == whole.content()
        assert (chunked.header_octets, chunked.ascii) == (whole.header_octets, whole.ascii)


@settings(max_examples=500)
@given(wire=WIRE, sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_a_mail_is_stored_as_the_rules_say(wire: bytes, sizes: list[int]) -> None:
    wire += b"\r\n.\r\n"
    expected = (b"\r\n" + wire).partition(b"\r\n.\r\n")[0] + b"\r\n"  # the end is the first CRLF.CRLF
    expected = expected.replace(b"\r\n.", b"\r\n")[2:]
    expected = re.sub(rb"(?<!\r)\n", b"\r\n", expected)
    expected = re.sub(rb"\A(?: *\r\n)+(?=From: x)", b"", expected)
    header = b"" if expected.startswith(b"\r\n") else expected.partition(b"\r\n\r\n")[0]
    wrong_header = b"\0" in header or re.search(rb"\r(?!\n|$)", header) is not None or (header.endswith(b"\r"))

    mail, _ = read(wire, sizes)

    if wrong_header:
        assert str(mail.refusal).startswith("550 5.6.0")
    else:
        assert mail.refusal is None
        assert bytes(mail.content().body) == re.sub(rb"\r\n?|\n", b"\r\n", expected)


@given(
    lines=st.lists(st.text(alphabet=".abc \xe9", max_size=5), max_size=20),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_unstuffing_undoes_stuffing(lines: list[str], sizes: list[int]) -> None:
    text = "".join(line + "\r\n" for line in lines).encode()
    stuffed = b"".join(b"." * line.startswith(b".") + line for line in text.splitlines(keepends=True))

    mail, rest = read(stuffed + b".\r\n", sizes)

    content = mail.content()
    assert bytes(content.body) == text and rest == b""
    assert content.octets == len(text) and content.sha256 == hashlib.sha256(text).digest()


@pytest.mark.parametrize(
    "fake_end", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n\n.\r\r\n"]
)
def test_only_crlf_dot_crlf_ends_a_mail(fake_end: bytes) -> None:
    wire = b"Subject: x\r\n\r\nbody" + fake_end + b"MAIL FROM:<evil@example.com>\r\n.\r\nNOOP\r\n"

    mail, rest = read(wire)

    assert rest == b"NOOP\r\n"
    stored = bytes(mail.content().body)
    assert b"MAIL FROM:<evil@example.com>\r\n" in stored
    assert re.search(rb"(?<!\r)\n|\r(?!\n)", stored) is None


def test_a_mail_may_be_empty() -> None:
    mail, rest = read(b".\r\nNOOP\r\n", [1])

    assert mail.ended and bytes(mail.content().body) == b"" and rest[-6:] == b"NOOP\r\n"


def test_lone_line_feeds_end_lines_in_the_header_too() -> None:
    mail, _ = read(b"From: a\nTo: b\n\nbody\n\r\n.\r\n", [3])

    assert mail.header == b"From: a\r\nTo: b\r\n\r\n"
    assert bytes(mail.content().body) == b"From: a\r\nTo: b\r\n\r\nbody\r\n\r\n"


@pytest.mark.parametrize("header", [b"From: a\rBcc: b\r\n", b"Subject: \0\r\n", b"A: b\r\r\n"])
def test_a_carriage_return_or_nul_in_the_header_is_refused(header: bytes) -> None:
    mail, _ = read(header + b"\r\nbody\r\n.\r\n", [4])

    assert str(mail.refusal).startswith("550 5.6.0")


def test_a_carriage_return_in_the_body_becomes_a_line_end_and_a_nul_stays() -> None:
    mail, _ = read(b"A: b\r\n\r\none\rtwo\0\r\n.\r\n", [2])

    assert mail.refusal is None
    assert bytes(mail.content().body) == b"A: b\r\n\r\none\r\ntwo\0\r\n"


def test_a_carriage_return_that_was_held_back_becomes_a_line_end() -> None:
    mail = DataReader(PLENTY)
    for chunk in (b"\r\na\rb", b"c\r\n.\r\n"):  # no field has decided yet what the first line is
        mail.feed(chunk)
    assert mail.ended and bytes(mail.content().body) == b"\r\na\r\nbc\r\n"


def test_the_size_counts_without_stuffing_and_is_exact() -> None:
    text = b"A: b\r\n\r\n..\r\n"  # 12 octets of a mail that has 11

    assert read(text + b".\r\n", octets=11)[0].refusal is None
    too_large = read(text + b".\r\n", octets=10)[0]

    assert str(too_large.refusal).startswith("552 5.3.4")
    assert too_large.octets_in_memory == 0


def test_a_refused_mail_keeps_no_octets_and_is_read_to_its_end() -> None:
    mail = DataReader(1000)
    for _ in range(1000):
        assert mail.feed(b"x" * 998 + b"\r\n") == b""
        assert mail.octets_in_memory <= 1000

    assert mail.feed(b".\r\nNOOP\r\n") == b"NOOP\r\n"
    assert mail.ended and mail.octets == 1_000_000


def test_a_line_of_more_than_16_mebibytes_is_refused() -> None:
    def with_line(octets: int) -> DataReader:
        mail = DataReader(2 * LINE_OCTETS)
        mail.feed(b"A: b\r\n\r\n")
        for _ in range(octets // 60_000):
            mail.feed(b"x" * 60_000)
        mail.feed(b"x" * (octets % 60_000) + b"\r\nshort\r\n.\r\n")
        return mail

    assert with_line(LINE_OCTETS - 1).refusal is None
    assert str(with_line(LINE_OCTETS + 1).refusal).startswith("554 5.6.0")


def test_a_header_of_more_than_a_mebibyte_is_refused() -> None:
    field = b"X-A: " + b"b" * 993 + b"\r\n"

    def with_header(fields: int) -> DataReader:
        return read(field * fields + b"\r\nbody\r\n.\r\n", [60_000])[0]

    assert with_header(HEADER_OCTETS // 1000).refusal is None
    assert str(with_header(HEADER_OCTETS // 1000 + 1).refusal).startswith("552 5.3.4")


def test_a_header_of_more_than_ten_thousand_fields_is_refused() -> None:
    def with_fields(count: int) -> DataReader:
        return read(b"A: b\r\n c\r\n" * count + b"\r\nbody\r\n.\r\n", [60_000])[0]

    assert with_fields(MAX_FIELDS).refusal is None
    assert str(with_fields(MAX_FIELDS + 1).refusal).startswith("552 5.3.4")


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_hidden_recipients_are_not_stored(size: int) -> None:
    sent = (
        b"From: a@b.c\r\nBcc: hidden@x.example,\r\n more@x.example\r\nSubject: x\r\nbcc : z@x.example\r\n"
        b"Resent-Bcc: y@x.example\r\n\r\nBcc: in the body it is text\r\n.\r\n"
    )
    mail = DataReader(10_000)
    for start in range(0, len(sent), size):
        mail.feed(sent[start : start + size])
    kept = b"From: a@b.c\r\nSubject: x\r\n\r\nBcc: in the body it is text\r\n"
    assert mail.ended and bytes(mail.content().body) == kept
    assert mail.content().sha256 == hashlib.sha256(kept).digest()
    assert mail.header == b"From: a@b.c\r\nSubject: x\r\n\r\n"


MBOX = b"From alex@local.com Mon Nov 30 10:00:00 2026"
BOM = b"\xef\xbb\xbf"
LINE_AFTER = b"From: alex@local.com"


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    "before",
    [
        [MBOX],
        [b">" + MBOX],
        [b">>" + MBOX],
        [b"From - Mon Nov 30 10:00:00 2026"],
        [b"From alex@local.com:25 10:00:00"],
        [MBOX, b">" + MBOX, MBOX],
        [BOM + MBOX],
        [MBOX, BOM],
        [b""],
        [b"", b" \t", b""],
        [BOM, b""],
        [MBOX, b"", MBOX],
    ],
)
@pytest.mark.parametrize("first", [b"", BOM, BOM + BOM])
def test_what_stands_before_the_first_field_is_dropped(
    before: list[bytes], first: bytes, size: int, end: bytes
) -> None:
    fields_ = [LINE_AFTER, b"To: c@customer.example", b"Bcc: d@customer.example", b"", b"From here on it is text", MBOX]
    mail, _ = read(end.join([*before, first + fields_[0], *fields_[1:]]) + b"\r\n.\r\n", [size])
    stored = b"From: alex@local.com\r\nTo: c@customer.example\r\n\r\nFrom here on it is text\r\n" + MBOX + b"\r\n"
    assert mail.refusal is None and bytes(mail.content().body) == stored
    assert mail.values == {"from": [b" alex@local.com"]} and mail.ascii
    assert mail.content().sha256 == hashlib.sha256(stored).digest()


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n\r\n",
        b"\r\nHello\r\n",
        b"\r\nNote: a text without a header\r\n",
        b"From here on it is text\r\nand nothing else\r\n",
        MBOX + b"\r\n",
        MBOX + b"\r\n\r\nHello: text\r\n",
        BOM + b"Hello\r\n",
        b"From : alex@local.com\r\n\r\n",
        b" \r\nHello\r\n",
        b"\r\n" * 5000 + b"From: alex@local.com\r\n",
        MBOX + b" " * OPENING_OCTETS + b"\r\nA: b\r\n",
    ],
)
def test_a_text_without_a_header_is_stored_whole(kept: bytes) -> None:
    stored = {bytes(read(kept + b".\r\n", [size])[0].content().body) for size in (1, 100, 60_000)}
    assert stored == {kept}


FIELDS = st.lists(
    st.sampled_from(
        [b"From", b"bcc", b"Resent-Bcc", b"X-From", b"Sender", b":", b": ", b" ", b"\t", b" :", b"\r\n", b"\r\n ", b"a"]
    ),
    max_size=30,
).map(b"".join)


@settings(max_examples=500)
@given(header=FIELDS)
def test_the_fields_that_count_are_those_of_every_other_service(header: bytes) -> None:
    header = header.partition(b"\r\n\r\n")[0] + b"\r\n"
    header = b"A: b\r\n" + header.lstrip(b"\r\n") + b"\r\n"
    expected: dict[str, list[bytes]] = {}
    for field in fields(header):
        if field.key in ("from", "sender"):
            expected.setdefault(field.key, []).append(field.value)

    mail, _ = read(header + b".\r\n")

    assert mail.values == expected
    assert not any(field.key in HIDDEN for field in fields(mail.header))
    assert [field for field in mail.header.split(b"\r\n") if not field] == [b"", b""]


def seconds(wire: bytes) -> float:
    """Processor time to read a mail that arrives in pieces of 64 KiB, at best of three."""
    times = []
    for _ in range(3):
        started = time.process_time()
        assert read(wire, [65_536], 2 * HEADER_OCTETS)[0].ended
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize(
    "part",
    [
        b"X: y\r\n" + b" z\r\n" * 90,
        b"X: " + b"y" * 400 + b"\r\n",
        b"Sender: a@b, c@d\r\n" + b" ,e@f\r\n" * 60,
        b"Bcc: a@b\r\n" + b" c@d\r\n" * 60,
    ],
    ids=["folded", "long", "sender", "bcc"],
)
def test_a_header_does_not_take_the_square_of_its_length(part: bytes) -> None:
    tenth = HEADER_OCTETS // 10 // len(part)
    end = b"\r\n.\r\n"
    # ten times the octets take ten times as long; as the square they would take a hundred times
    assert seconds(part * (10 * tenth - 4) + end) < 40 * seconds(part * tenth + end) + 0.01


def test_a_body_of_line_ends_takes_no_longer_than_another() -> None:
    text = b"A: b\r\n\r\n" + b"x" * 1_500_000 + b"\r\n.\r\n"
    ends = b"A: b\r\n\r\n" + b"\r" * 700_000 + b"\r\n.\r\n"  # stored with twice the octets
    assert seconds(ends) < 30 * seconds(text) + 0.1
