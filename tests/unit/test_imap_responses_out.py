"""services/imap_out/responses/ and structure/transfer_decoding.py: what goes to the client."""

from __future__ import annotations

import base64
import binascii
import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.imap_out.grammar.command_parser import parse_command
from services.imap_out.grammar.commands import FetchArguments
from services.imap_out.grammar.reader import ArgumentReader
from services.imap_out.responses import data, fetch, status, strings
from services.imap_out.structure.transfer_decoding import TransferDecoder, is_known


@pytest.mark.parametrize(
    ("octets", "utf8", "wire"),
    [
        (b"", False, b'""'),
        (b'a "b" \\', False, b'"a \\"b\\" \\\\"'),
        (b"a\r\nb", False, b"{4}\r\na\r\nb"),
        ("ä".encode(), False, b"{2}\r\n\xc3\xa4"),
        ("ä".encode(), True, b'"\xc3\xa4"'),
        (b"\xff", True, b"{1}\r\n\xff"),
        ("ä\n".encode(), True, b"{3}\r\n\xc3\xa4\n"),
        (b"\0", False, b"{1}\r\n\x80"),
        (b"x" * 1025, False, b"{1025}\r\n" + b"x" * 1025),
    ],
)
def test_a_string_is_quoted_or_a_literal(octets: bytes, utf8: bool, wire: bytes) -> None:
    assert strings.string(octets, utf8) == wire


@pytest.mark.parametrize(
    ("name", "utf8", "wire"),
    [
        ("INBOX", False, b"INBOX"),
        ("a b", False, b'"a b"'),
        ("Entwürfe", False, b"Entw&APw-rfe"),
        ("Entwürfe", True, '"Entwürfe"'.encode()),
        ("R&D", False, b"R&-D"),
        ("R&D", True, b"R&D"),
        ("nil", False, b'"nil"'),
        ("a[1]", False, b'"a[1]"'),
        ("50%", False, b'"50%"'),
        ("", False, b'""'),
    ],
)
def test_a_mailbox_has_the_form_of_the_session(name: str, utf8: bool, wire: bytes) -> None:
    assert strings.mailbox(name, utf8) == wire


# A name has no control characters.
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\u2028\u2029"), max_size=40
)


@given(NAMES, st.booleans())
def test_every_name_that_is_sent_can_be_sent_back(name: str, utf8: bool) -> None:
    wire = strings.mailbox(name, utf8)
    if not wire.startswith(b"{"):
        assert ArgumentReader(wire, utf8=utf8).mailbox() == ("INBOX" if name.upper() == "INBOX" else name)


def test_status_responses_have_codes_and_one_line() -> None:
    assert status.tagged("a1", "OK", "done") == b"a1 OK done\r\n"
    assert status.tagged("a1", "NO", "no\r\nMailbüx", status.TRY_CREATE) == b"a1 NO [TRYCREATE] no?Mailb?x\r\n"
    assert status.untagged("BYE", "bye", "UNAVAILABLE") == b"* BYE [UNAVAILABLE] bye\r\n"
    assert status.continuation() == b"+ \r\n"
    assert status.append_uid(38505, 3955) == b"APPENDUID 38505 3955"
    assert status.copy_uid(38505, [304, 319, 320], [3956, 3957, 3958]) == b"COPYUID 38505 304,319:320 3956:3958"
    assert status.modified([7, 9]) == b"MODIFIED 7,9"
    assert status.highest_modseq(715194045007) == b"HIGHESTMODSEQ 715194045007"
    assert status.vanished([(41, 41), (43, 116)], earlier=True) == b"* VANISHED (EARLIER) 41,43:116\r\n"
    assert status.vanished([]) == b""


def test_data_of_server_and_mailboxes() -> None:
    assert data.capabilities(["IMAP4rev1", "IDLE"]) == b"* CAPABILITY IMAP4rev1 IDLE\r\n"
    assert data.enabled([]) == b"* ENABLED\r\n"
    assert data.server_id({}) == b"* ID NIL\r\n"
    assert data.server_id({"name": "mailgroup", "os": None}) == b'* ID ("name" "mailgroup" "os" NIL)\r\n'
    assert data.namespaces() == b'* NAMESPACE (("" "/")) NIL NIL\r\n'
    assert data.flags(["\\Seen", "$Junk"]) == b"* FLAGS (\\Seen $Junk)\r\n"
    assert data.exists(23) + data.recent() + data.expunge(44) == b"* 23 EXISTS\r\n* 0 RECENT\r\n* 44 EXPUNGE\r\n"
    assert data.mailbox_list(["\\Noselect"], "") == b'* LIST (\\Noselect) "/" ""\r\n'
    assert data.mailbox_list([], "b", old_name="a") == b'* LIST () "/" b ("OLDNAME" (a))\r\n'
    counts = {"MESSAGES": 231, "UIDNEXT": 44292}
    assert data.mailbox_status("a b", counts) == b'* STATUS "a b" (MESSAGES 231 UIDNEXT 44292)\r\n'
    assert data.quota("", {"STORAGE": (10, 512)}) == b'* QUOTA "" (STORAGE 10 512)\r\n'
    assert data.quota_root("INBOX", [""]) == b'* QUOTAROOT INBOX ""\r\n'


def test_results_of_searches() -> None:
    assert b"".join(data.search([2, 84, 882])) == b"* SEARCH 2 84 882\r\n"
    assert b"".join(data.search([])) == b"* SEARCH\r\n"
    assert b"".join(data.search([2, 5], 917162500)) == b"* SEARCH 2 5 (MODSEQ 917162500)\r\n"
    assert b"".join(data.search([5, 2], command="SORT")) == b"* SORT 5 2\r\n"
    assert b"".join(data.search(range(1, 100_001))).count(b" ") == 100_001
    found = [2, 10, 11, 12]
    some, every = ["MIN", "COUNT"], ["ALL", "MAX"]
    assert data.extended_search("A", found, some, uid=False) == b'* ESEARCH (TAG "A") MIN 2 COUNT 4\r\n'
    uids = data.extended_search("A", found, every, uid=True, modseq=7)
    assert uids == b'* ESEARCH (TAG "A") UID MAX 12 ALL 2,10:12 MODSEQ 7\r\n'
    assert data.extended_search("A", [], ["MIN", "ALL", "COUNT"], uid=True) == b'* ESEARCH (TAG "A") UID COUNT 0\r\n'
    assert data.extended_search("A", found, ["SAVE"], uid=False) == b'* ESEARCH (TAG "A")\r\n'


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ("BODY.PEEK[]", b"BODY[]"),
        ("body[header.fields (Date FROM)]", b"BODY[HEADER.FIELDS (DATE FROM)]"),
        ('BODY[1.HEADER.FIELDS.NOT ("a b")]<4.5>', b'BODY[1.HEADER.FIELDS.NOT ("A B")]<4>'),
        ("BINARY.PEEK[1.2]<0.10>", b"BINARY[1.2]<0>"),
        ("BINARY.SIZE[1]", b"BINARY.SIZE[1]"),
        ("BODY[4.1.MIME]", b"BODY[4.1.MIME]"),
        ("RFC822.TEXT", b"RFC822.TEXT"),
    ],
)  # fmt: skip
def test_an_item_is_named_as_it_was_asked_for(asked: str, label: bytes) -> None:
    arguments = parse_command(f"a FETCH 1 {asked}".encode()).arguments
    assert isinstance(arguments, FetchArguments)
    assert fetch.label(arguments.items[0]) == label


def test_a_fetch_response_has_items_and_texts() -> None:
    arguments = parse_command(b"a FETCH 1 (BINARY[1] BODY[TEXT])").arguments
    assert isinstance(arguments, FetchArguments)
    binary, text = arguments.items
    items = [fetch.uid(7), fetch.flags(["\\Seen"]), fetch.modseq(9)]
    assert fetch.response(3, items) == b"* 3 FETCH (UID 7 FLAGS (\\Seen) MODSEQ (9))\r\n"
    assert fetch.text(text, b"a\0b") == (b"BODY[TEXT] {3}\r\n", b"a\x80b")
    assert fetch.text(binary, b"a\0b") == (b"BINARY[1] ~{3}\r\n", b"a\0b")
    assert fetch.announced(text, 9) == b"BODY[TEXT] {9}\r\n"
    assert fetch.start(3) + b"UID 7" + fetch.END == fetch.response(3, [fetch.uid(7)])


def decoded(octets: bytes, encoding: str, size: int) -> bytes:
    decoder = TransferDecoder(encoding)
    pieces = [decoder.feed(octets[start : start + size]) for start in range(0, len(octets), size)]
    return b"".join([*pieces, decoder.finish()])


@given(st.binary(max_size=300), st.integers(1, 90))
def test_every_encoding_is_decoded_in_pieces(octets: bytes, size: int) -> None:
    assert decoded(base64.encodebytes(octets).replace(b"\n", b"\r\n"), "base64", size) == octets
    assert decoded(binascii.b2a_qp(octets, istext=False), "quoted-printable", size) == octets
    assert decoded(octets, "8bit", size) == octets


@pytest.mark.parametrize(
    ("octets", "encoding", "result"),
    [
        (b"SGVs\r\nbG8=", "base64", b"Hello"),
        (b"SGVsbG8", "base64", b"Hello"),  # without padding
        (b"SGk=SGk=", "base64", b"HiHi"),  # two encodings in a row
        (b"S!G-k", "base64", b"Hi"),
        (b"a=\r\nb=3D =\r\n", "quoted-printable", b"ab= "),
        (b"a  \r\nb", "quoted-printable", b"a\r\nb"),
        (b"=C3=BC=zz=", "quoted-printable", b"\xc3\xbc=zz"),
    ],
)
def test_malformed_encodings_are_decoded_as_far_as_possible(octets: bytes, encoding: str, result: bytes) -> None:
    for size in (1, 3, 100):
        assert decoded(octets, encoding, size) == result


def test_a_line_of_quoted_printable_is_not_held_forever() -> None:
    text = quopri.encodestring(b"x").replace(b"x", b"=41" * 300_000)
    assert decoded(text, "quoted-printable", 65_536) == b"A" * 300_000
    assert is_known("base64") and is_known("7bit") and not is_known("x-uuencode")
