"""shared/provider/imap_responses.py: responses of IMAP servers, malformed ones too."""

from __future__ import annotations

import time

import pytest

from shared.provider.imap_capabilities import choose_mechanisms, parse_capabilities
from shared.provider.imap_responses import (
    MAX_VALUES,
    ListedFolder,
    Literal,
    MalformedResponse,
    Part,
    Response,
    Value,
    announces_data,
    fetch_attributes,
    listed_folder,
    parse_response,
    parse_values,
)


@pytest.mark.parametrize(
    ("line", "response"),
    [
        (b"+ go", Response("+", text=b"go")),
        (b"+", Response("+")),
        (b"a1 OK done", Response("a1", "OK", text=b"done")),
        (b"a1 ok", Response("a1", "OK")),
        (b"a1 NO [INUSE] busy", Response("a1", "NO", code="INUSE", text=b"busy")),
        (b"* BYE", Response("*", "BYE")),
        (b"* OK [UIDVALIDITY 7] x", Response("*", "OK", code="UIDVALIDITY", arguments=b"7", text=b"x")),
        (b"* OK [capability A B]", Response("*", "OK", code="CAPABILITY", arguments=b"A B")),
        (b"* OK [no end", Response("*", "OK", text=b"[no end")),
        (b"* 3 EXISTS", Response("*", "EXISTS", 3, parts=(b"",))),
        (b"* 3 exists", Response("*", "EXISTS", 3, parts=(b"",))),
        (b"* SEARCH 1 2", Response("*", "SEARCH", text=b"1 2", parts=(b"1 2",))),
        (b"* X-UNKNOWN (a", Response("*", "X-UNKNOWN", text=b"(a", parts=(b"(a",))),
    ],
)
def test_a_response_is_read(line: bytes, response: Response) -> None:
    assert parse_response([line]) == response


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"*",
        b"* ",
        b"* 3",
        b"*3 EXISTS",
        b"+OK ready"[1:],
        b"a1",
        b"a1 WHAT",
        b"SSH-2.0-x",
        b"HTTP/1.1 200 OK",
        b"\0",
    ],
)
def test_another_line_is_no_response(line: bytes) -> None:
    with pytest.raises(MalformedResponse):
        parse_response([line])


@pytest.mark.parametrize(
    ("line", "data"),
    [
        (b"* 1 FETCH (BODY[] {5}", True),
        (b"* LIST () NIL {5}", True),
        (b"* OK see {5}", False),
        (b"* BYE {5}", False),
        (b"a1 OK {5}", False),
        (b"+ {5}", False),
    ],
)
def test_a_literal_follows_data_and_no_text_for_people(line: bytes, data: bool) -> None:
    assert announces_data(line) == data


@pytest.mark.parametrize(
    ("parts", "values"),
    [
        ([b""], []),
        ([b'a NIL nil "x" "NIL" 5'], ["a", None, None, b"x", b"NIL", "5"]),
        ([b"(a (b)()) c"], [["a", ["b"], []], "c"]),
        ([rb'"a\"b\\c"'], [b'a"b\\c']),
        ([b"(UID 5 BODY[] ", Literal(b"x)("), b" )"], [["UID", "5", "BODY[]", b"x)("]]),
        ([b"BODY[HEADER.FIELDS (A B)]<0> x"], ["BODY[HEADER.FIELDS (A B)]<0>", "x"]),
        ([rb"(\Seen \* $Junk)"], [[r"\Seen", r"\*", "$Junk"]]),
        ([b"(a)b(c)"], [["a"], "b", ["c"]]),
        ([b"\xfc"], ["\xfc"]),
    ],
)
def test_values_are_read(parts: list[Part], values: list[Value]) -> None:
    assert parse_values(parts) == values


@pytest.mark.parametrize(
    "parts",
    [
        [b"("],
        [b")"],
        [b'"a'],
        [b"BODY[ a"],
        [b"a]"],
        [b"(" * 30 + b")" * 30],
        [b"a " * (MAX_VALUES + 1)],
        [b"(", Literal(b""), b"))"],
    ],
)
def test_what_does_not_match_is_malformed(parts: list[Part]) -> None:
    with pytest.raises(MalformedResponse):
        parse_values(parts)


@pytest.mark.parametrize("piece", [b"[", b'"', b'"\\', b"(", b"a[", b"a ", b"a(", b"[]", b"\\", b'""'])
def test_no_line_takes_long_to_parse(piece: bytes) -> None:
    started = time.process_time()
    for parts in ([piece * (64 * 1024 // len(piece))], [b"(" + piece * (64 * 1024 // len(piece)) + b")"]):
        try:
            parse_values(parts)
        except MalformedResponse:
            continue
    assert time.process_time() - started < 1.0  # a twentieth of that as a rule


def test_the_items_of_a_fetch_have_any_order_and_case() -> None:
    items = fetch_attributes(parse_response([b"* 1 FETCH (body[] ", Literal(b"x"), b" Uid 5 FLAGS (\\Seen))"]))
    assert items == {"BODY[]": b"x", "UID": "5", "FLAGS": [r"\Seen"]}


def test_a_second_value_of_an_item_does_not_count() -> None:
    assert fetch_attributes(parse_response([b"* 1 FETCH (UID 5 UID 6)"])) == {"UID": "5"}


@pytest.mark.parametrize("line", [b"* 1 FETCH", b"* 1 FETCH (UID)", b"* 1 FETCH ((a) 5)", b"* 1 FETCH UID 5"])
def test_a_fetch_without_names_and_values_is_malformed(line: bytes) -> None:
    with pytest.raises(MalformedResponse):
        fetch_attributes(parse_response([line]))


@pytest.mark.parametrize(
    ("parts", "folder"),
    [
        (
            [rb'* LIST (\HasNoChildren \Sent) "/" "Sent Items"'],
            ListedFolder(frozenset({r"\hasnochildren", r"\sent"}), "/", b"Sent Items"),
        ),
        ([b'* LIST () "." INBOX.a'], ListedFolder(frozenset(), ".", b"INBOX.a")),
        ([b"* LIST () NIL ", Literal(b"a\r\nb"), b""], ListedFolder(frozenset(), "", b"a\r\nb")),
        ([b'* LIST () "/" NIL'], ListedFolder(frozenset(), "/", b"NIL")),
        ([b'* LIST () "/" x (CHILDINFO ("SUBSCRIBED"))'], ListedFolder(frozenset(), "/", b"x")),
        ([b'* LIST () "/"'], None),
        ([b'* LIST () "/" "'], None),
        ([b'* LIST () "/" ""'], None),
    ],
)
def test_a_listed_folder_is_read(parts: list[Part], folder: ListedFolder | None) -> None:
    assert listed_folder(parse_response(parts)) == folder


@pytest.mark.parametrize(
    ("line", "temporary"),
    [
        (b"a NO [UNAVAILABLE] Temporary authentication failure.", True),
        (b"a NO [INUSE] Mailbox in use", True),
        (b"a NO [LIMIT] LOGIN Rate limit hit.", True),
        (b"a NO [OVERQUOTA] Account exceeded command or bandwidth limits.", True),
        (b"a NO [THROTTLED] Account exceeded command or bandwidth limits.", True),
        (b"a NO [ALERT] Too many simultaneous connections. (Failure)", True),
        (b"a BAD User is authenticated but not connected.", True),
        (b"a BAD Request is throttled. Suggested Backoff Time: 178755 milliseconds", True),
        (b"a NO Server Unavailable. 15", True),
        (b"a NO LOGIN failed.", False),
        (b"a NO AUTHENTICATE failed.", False),
        (b"a NO [AUTHENTICATIONFAILED] Try again later", False),
        (b"a NO [AUTHORIZATIONFAILED] x", False),
        (b"a NO [ALERT] Application-specific password required", False),
        (b"a NO [ALERT] Please log in via your web browser", False),
    ],
)
def test_a_refusal_is_judged_by_its_code_or_else_its_words(line: bytes, temporary: bool) -> None:
    assert parse_response([line]).is_temporary == temporary


@pytest.mark.parametrize(
    ("announced", "token", "encrypted", "mechanisms"),
    [
        ("IMAP4rev1 AUTH=PLAIN AUTH=CRAM-MD5", False, True, ["PLAIN", "LOGIN", "CRAM-MD5"]),
        ("IMAP4rev1 auth=plain auth=cram-md5", False, False, ["CRAM-MD5", "PLAIN", "LOGIN"]),
        ("IMAP4rev1", False, True, ["LOGIN"]),
        ("", False, True, ["LOGIN"]),
        ("IMAP4rev1 LOGINDISABLED", False, False, []),
        ("IMAP4rev1 LOGINDISABLED AUTH=PLAIN", False, True, ["PLAIN"]),
        ("AUTH=XOAUTH2 AUTH=OAUTHBEARER", True, True, ["OAUTHBEARER", "XOAUTH2"]),
        ("AUTH=PLAIN AUTH=XOAUTH2", True, True, ["XOAUTH2"]),
        ("AUTH=PLAIN", True, True, ["XOAUTH2"]),
        ("", True, True, ["XOAUTH2"]),
    ],
)
def test_the_best_mechanism_comes_first(announced: str, token: bool, encrypted: bool, mechanisms: list[str]) -> None:
    assert choose_mechanisms(parse_capabilities(announced.encode()), token, encrypted) == mechanisms


def test_capabilities_are_described_with_what_is_missing() -> None:
    assert parse_capabilities(b"IDLE UIDPLUS X").shown() == "IDLE UIDPLUS"
    assert parse_capabilities(b"IMAP4rev1").shown() == (
        "IMAP4; no IDLE: new mail is noticed at the next poll; no UIDPLUS: nothing can be deleted there"
    )
    assert "announces no capabilities" in parse_capabilities(b"").shown()
