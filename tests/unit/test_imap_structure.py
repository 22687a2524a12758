"""services/imap_out/structure/: the parts of mails, their sections, ENVELOPE and BODYSTRUCTURE."""

from __future__ import annotations

import base64
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.imap_out.grammar.fetch_items import Section
from services.imap_out.structure.addresses import GROUP_END, EnvelopeAddress, parse_addresses
from services.imap_out.structure.content_fields import parse_content_type, parse_disposition
from services.imap_out.structure.mime_parser import MAX_DEPTH, MAX_PARTS
from services.imap_out.structure.sections import SectionSpan, filter_header, find_part, leaf_span, section_span
from services.imap_out.structure.stored import MailStructure, decode_structure, read_structure, read_whole
from tests.imap_mails import MAILS

# RFC 3501 section 8: the mail behind the sample of FETCH
TERRY = (
    b"Date: Wed, 17 Jul 1996 02:23:25 -0700 (PDT)\r\nFrom: Terry Gray <gray@cac.washington.edu>\r\n"
    b"Subject: IMAP4rev1 WG mtg summary and minutes\r\nTo: imap@cac.washington.edu\r\n"
    b"cc: minutes@CNRI.Reston.VA.US, John Klensin <KLENSIN@MIT.EDU>\r\n"
    b"Message-Id: <B27397-0100000@cac.washington.edu>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: TEXT/PLAIN; CHARSET=US-ASCII\r\n\r\n"
)


def cut(octets: bytes, size: int) -> list[bytes]:
    return [octets[start : start + size] for start in range(0, len(octets), size)]


def section(name: str, part: tuple[int, ...] = (), text: str = "", *fields: bytes) -> bytes:
    """The octets of a section of one of MAILS."""
    mail = MAILS[name]
    structure = read_structure([mail])
    span = section_span(Section(part, text, fields), structure.parts[0].body_start, len(mail), structure)
    octets = mail[span.start : span.end]
    return octets if span.names is None else filter_header(octets, span.names, span.negated)


def test_the_envelope_of_rfc_3501() -> None:
    assert read_structure([TERRY]).envelope == (
        b'("Wed, 17 Jul 1996 02:23:25 -0700 (PDT)" "IMAP4rev1 WG mtg summary and minutes" '
        b'(("Terry Gray" NIL "gray" "cac.washington.edu")) (("Terry Gray" NIL "gray" "cac.washington.edu")) '
        b'(("Terry Gray" NIL "gray" "cac.washington.edu")) ((NIL NIL "imap" "cac.washington.edu")) '
        b'((NIL NIL "minutes" "CNRI.Reston.VA.US")("John Klensin" NIL "KLENSIN" "MIT.EDU")) NIL NIL '
        b'"<B27397-0100000@cac.washington.edu>")'
    )


def test_the_structure_of_rfc_3501() -> None:
    mail = TERRY + b"x" * 71 + b"\r\n"
    assert read_structure([mail]).body == b'("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7bit" 73 1)'


def test_a_multipart_has_its_parts_before_its_subtype() -> None:
    assert read_structure([MAILS["mixed"]]).bodystructure == (
        b'((("text" "plain" ("charset" "utf-8") NIL NIL "quoted-printable" 25 1 NIL NIL NIL NIL)'
        b'("text" "html" ("charset" "utf-8") NIL NIL "7bit" 27 1 NIL NIL NIL NIL)'
        b' "alternative" ("boundary" "in") NIL NIL NIL)'
        b'("application" "pdf" ("name" "a b.pdf") "<part@x>" "A file" "base64" 8 "Q2hlY2s=" '
        b'("attachment" ("filename" "a b.pdf" "size" "5")) NIL "http://x/y")'
        b' "mixed" ("boundary" "=_out") NIL NIL NIL)'
    )


def test_a_forwarded_mail_has_its_envelope_and_lines() -> None:
    inner = b'(("Jim" NIL "jim" "local.com"))'
    assert read_structure([MAILS["forwarded"]]).body == (
        b'(("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 10 0)'
        b'("message" "rfc822" NIL NIL NIL "7bit" 196 ("Wed, 25 Nov 2026 10:00:00 +0000" "=?utf-8?q?inner?=" '
        + b" ".join((inner, inner, inner))
        + b' ((NIL NIL "anna" "customer.example")(NIL NIL "bob" "customer.example")) NIL NIL NIL "<inner@x>") '
        b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 26 2) 8) "mixed")'
    )


@pytest.mark.parametrize("name", MAILS)
def test_the_structure_does_not_depend_on_the_pieces(name: str) -> None:
    whole = read_structure([MAILS[name]])
    for size in (1, 2, 7, 61):
        assert read_structure(cut(MAILS[name], size)) == whole
    assert decode_structure(whole.encode()) == whole
    assert read_whole(MAILS[name]) == whole


def test_a_structure_of_another_version_is_computed_again() -> None:
    assert decode_structure(b'[0,"","","",[]]') is None


@pytest.mark.parametrize(
    ("name", "part", "text", "octets"),
    [
        ("plain", (), "", MAILS["plain"]),
        ("plain", (), "TEXT", b"Hello\r\nWorld\r\n"),
        ("plain", (1,), "", b"Hello\r\nWorld\r\n"),
        ("plain", (1,), "MIME", MAILS["plain"].partition(b"Hello")[0]),
        ("plain", (2,), "", b""),
        ("plain", (1, 1), "", b""),
        ("plain", (1,), "TEXT", b""),
        ("no body", (1,), "", b""),
        ("alternative", (2,), "", b"<p>Hello <b>World</b></p>\r\n"),
        (
            "alternative",
            (2,),
            "MIME",
            b'Content-Type: text/html; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n\r\n',
        ),
        ("mixed", (1, 1), "", b"Gr=C3=BC=C3=9Fe,=20\r\nAnna"),
        ("mixed", (2,), "", b"SGVsbG8="),
        ("mixed", (3,), "", b""),
        ("forwarded", (2,), "TEXT", b"inner text\r\nof two lines\r\n"),
        ("forwarded", (2, 1), "", b"inner text\r\nof two lines\r\n"),
        ("forwarded", (2,), "MIME", b"Content-Type: message/rfc822\r\nContent-Disposition: inline\r\n\r\n"),
        ("forwarded with parts", (1, 2), "", b"<p>Hello <b>World</b></p>\r\n"),
        ("digest", (2,), "TEXT", b"two"),
        ("a message alone", (1, 1), "", b"inner text\r\n"),
        ("report", (2,), "", b"Reporting-MTA: dns; x\r\n\r\nAction: failed\r\n"),
    ],
)
def test_a_section_is_a_span_of_the_mail(name: str, part: tuple[int, ...], text: str, octets: bytes) -> None:
    assert section(name, part, text) == octets


def test_fields_are_filtered_from_the_header_of_a_mail_or_a_part() -> None:
    assert section("plain", (), "HEADER.FIELDS", b"SUBJECT", b"X") == b"Subject: x\r\n\r\n"
    assert section("forwarded", (2,), "HEADER.FIELDS", b"TO") == (
        b"To: anna@customer.example, bob@customer.example\r\n\r\n"
    )
    left = section("plain", (), "HEADER.FIELDS.NOT", b"FROM", b"TO", b"DATE", b"MESSAGE-ID")
    assert left == b"Subject: x\r\nMIME-Version: 1.0\r\n\r\n"
    assert filter_header(b"A: 1\r\n 2\r\nB: 3\r\n\r\n", frozenset((b"A",))) == b"A: 1\r\n 2\r\n\r\n"


@pytest.mark.parametrize(
    ("partial", "clipped"),
    [(None, (10, 20)), ((0, 5), (10, 15)), ((8, 5), (18, 20)), ((10, 5), (20, 20)), ((99, 1), (20, 20))],
)
def test_a_partial_section_is_clipped(partial: tuple[int, int] | None, clipped: tuple[int, int]) -> None:
    assert SectionSpan(10, 20).clipped(partial)[:2] == clipped


def test_binary_wants_a_part_without_parts() -> None:
    structure = read_structure([MAILS["mixed"]])
    leaf = leaf_span(structure, (2,))
    assert leaf is not None and (leaf.kind, leaf.encoding) == ("application/pdf", "base64")
    assert leaf_span(structure, (1,)) is None and leaf_span(structure, (7,)) is None
    assert find_part(structure.parts, ()) == 0


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        (b"Terry Gray <gray@cac.example>", [(b"Terry Gray", None, b"gray", b"cac.example")]),
        (b"gray@cac.example (Terry Gray)", [(b"Terry Gray", None, b"gray", b"cac.example")]),
        (b'"Smith, A." <a@b>, c@d', [(b"Smith, A.", None, b"a", b"b"), (None, None, b"c", b"d")]),
        (b"<@r1,@r2:a@b>", [(None, b"@r1,@r2", b"a", b"b")]),
        (b"G: a@b;", [(None, None, b"G", None), (None, None, b"a", b"b"), GROUP_END]),
        (b"G: ;, c@d", [(None, None, b"G", None), GROUP_END, (None, None, b"c", b"d")]),
        (b"root", [(None, None, b"root", b"MISSING_DOMAIN")]),
        (b"=?utf-8?q?a=2C?= <a@b>", [(b"=?utf-8?q?a=2C?=", None, b"a", b"b")]),
        ("Jörg <j@ö.example>".encode(), [("Jörg".encode(), None, b"j", "ö.example".encode())]),
        (b"a@b,,c@d,", [(None, None, b"a", b"b"), (None, None, b"c", b"d")]),
        (b"", []),
        (b"<", [(None, None, b"MISSING_MAILBOX", b"MISSING_DOMAIN")]),
    ],
)
def test_addresses_are_read_for_the_envelope(value: bytes, addresses: list[tuple[bytes | None, ...]]) -> None:
    assert parse_addresses(value) == [EnvelopeAddress(*address) for address in addresses]


@pytest.mark.parametrize(
    ("value", "kind", "parameters"),
    [
        (b"text/plain", b"text/plain", ()),
        (b' Text/HTML ; charset="a\\"b" ;x=y;', b"Text/HTML", ((b"charset", b'a"b'), (b"x", b"y"))),
        (b"a/b;\r\n\tname*1=b; name*0=a", b"a/b", ((b"name", b"ab"),)),
        (b"a/b; n*0*=utf-8''%e2; n*1=5%", b"a/b", ((b"n*", b"utf-8''%e25%25"),)),
        (b"a/b (c; d=e); f=(g)h", b"a/b", ((b"f", b"h"),)),
        (b'multipart/mixed; boundary="a;b"; c=d', b"multipart/mixed", ((b"boundary", b"a;b"), (b"c", b"d"))),
    ],
)
def test_a_content_type_has_parameters(value: bytes, kind: bytes, parameters: tuple[tuple[bytes, bytes], ...]) -> None:
    assert parse_content_type(value) == (kind, parameters)


@pytest.mark.parametrize("value", [b"", b"text", b"/plain", b"text/", b"(text/plain)", b";a=b"])
def test_what_is_no_content_type_is_none(value: bytes) -> None:
    assert parse_content_type(value) is None


def test_a_disposition_needs_no_parameters() -> None:
    assert parse_disposition(b"inline") == (b"inline", ())
    assert parse_disposition(b"") is None


def test_a_mail_whose_header_ends_at_the_boundary_is_within_its_part() -> None:
    mail = HEAD + b"--x\r\nContent-Type: message/rfc822\r\n\r\nFrom: a@b\r\n--x--\r\n"
    _, around, inner = read_structure([mail]).parts
    assert mail[around.body_start : around.body_end] == mail[inner.start : inner.body_start] == b"From: a@b\r\n"
    assert inner.body_end == around.body_end


HEAD = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n"


@pytest.mark.parametrize(
    "mail",
    [
        HEAD + b"--x\r\n" * 400_000,
        HEAD + b"--y\r\n" * 400_000,
        HEAD + b"\n--" * 600_000,
        HEAD + b"\r" * 2_000_000,
        b"a:b\r\n" * 400_000,
        b"".join(b"Content-Type: multipart/mixed; boundary=x%d\r\n\r\n--x%d\r\n" % (n, n) for n in range(40_000)),
        b"Content-Type: message/rfc822\r\n\r\n" * 60_000,
        b"Content-Type: multipart/mixed" + b"; a=b" * 400_000 + b"\r\n\r\n",
        b"To: " + b"a@b," * 500_000 + b"\r\n\r\n",
        b"To: " + b"((((" * 500_000 + b"\r\n\r\n",
        b"To: " + b'"' * 2_000_000 + b"\r\n\r\n",
    ],
)
def test_a_hostile_mail_costs_no_more_than_its_octets(mail: bytes) -> None:
    started = time.process_time()
    structure = read_structure(cut(mail, 65_536))
    assert time.process_time() - started < 2
    assert len(structure.parts) <= MAX_PARTS
    assert len(structure.bodystructure) + len(structure.envelope) < 2_000_000
    depth = [0] * len(structure.parts)
    for index, part in enumerate(structure.parts[1:], 1):
        depth[index] = depth[part.parent] + 1
    assert max(depth) <= MAX_DEPTH + 1


def test_a_mail_of_50_mb_is_not_held_in_memory() -> None:
    piece = base64.encodebytes(bytes(49_152)).replace(b"\n", b"\r\n")

    def pieces() -> MailStructure:
        start = HEAD + b"--x\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        return read_structure(part for part in (start, *(piece for _ in range(750)), b"--x--\r\n"))

    tracemalloc.start()
    try:
        structure = pieces()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert structure.parts[1].body_end - structure.parts[1].body_start == 750 * len(piece) - 2


@given(
    st.lists(
        st.sampled_from(
            [
                b"--x",
                b"--y",
                b"--",
                b"\r\n",
                b"\n",
                b"Content-Type: multipart/mixed; boundary=x",
                b"Content-Type: multipart/digest; boundary=y",
                b"Content-Type: message/rfc822",
                b"From: a <b@c>, d:e;",
                b"t",
                b" ",
            ]
        ),
        max_size=30,
    ),
    st.integers(1, 9),
)
def test_any_mail_has_a_structure(words: list[bytes], size: int) -> None:
    mail = b"".join(words)
    structure = read_structure([mail])
    assert read_structure(cut(mail, size)) == structure
    for part in structure.parts:
        assert 0 <= part.start <= part.body_start <= part.body_end <= len(mail)
        if part.parent >= 0:
            around = structure.parts[part.parent]
            assert around.body_start <= part.start and part.body_end <= around.body_end
