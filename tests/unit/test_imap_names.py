"""shared/imap/: folders' names, and sets of UIDs; shared/provider/imap_keys.py: keys of the ledger."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.imap.names import decode_name, encode_utf7, quoted
from shared.imap.sets import SET_OCTETS, read_numbers, read_set, write_sets
from shared.provider.imap_keys import folder_key

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("INBOX", b"INBOX"),
        ("Entwürfe", b"Entw&APw-rfe"),
        ("R&D", b"R&-D"),
        ("~peter/mail/台北/日本語", b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501 section 5.1.3
        ("&&", b"&-&-"),
        ("a\tb", b"a&AAk-b"),
        ("😀", b"&2D3eAA-"),
    ],
)
def test_a_name_is_written_in_modified_utf7_and_read_again(name: str, raw: bytes) -> None:
    assert encode_utf7(name) == raw
    assert decode_name(raw) == name


@given(NAMES)
def test_every_name_survives_the_wire(name: str) -> None:
    raw = encode_utf7(name)
    assert decode_name(raw) == name and raw.isascii()
    assert decode_name(name.encode(), utf8=True) == name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"R&D", "R&D"),  # not encoded
        (b"a&AOk", "a&AOk"),  # does not end
        (b"&2D0-", "&2D0-"),  # half of a pair
        (b"&AGE-", "&AGE-"),  # the letter a, which needs no shift: another name than a
        ("Entwürfe".encode(), "Entwürfe"),  # 8-bit
        (b"Entw\xfcrfe", "Entw\xfcrfe"),  # another 8-bit
        (b"*%{}", "*%{}"),
    ],
)
def test_a_name_in_no_known_form_stays_distinct(raw: bytes, name: str) -> None:
    assert decode_name(raw) == name


@pytest.mark.parametrize(
    ("octets", "string"),
    [
        (b'a"b\\c', b'"a\\"b\\\\c"'),
        (b"", b'""'),
        (b"*%(){ ]", b'"*%(){ ]"'),
        (b"a\r\nb", None),
        (b"\xfc", None),
        (b"\0", None),
    ],
)
def test_a_string_is_quoted_or_needs_a_literal(octets: bytes, string: bytes | None) -> None:
    assert quoted(octets) == string


@given(NAMES, NAMES, st.integers(1, 2**32), st.integers(1, 2**32))
def test_two_folders_never_have_the_same_key(first: str, second: str, one: int, other: int) -> None:
    keys = folder_key(first, one), folder_key(second, other)
    same = (first, one) == (second, other) or (first.upper() == second.upper() == "INBOX" and one == other)
    assert (keys[0] == keys[1]) == same
    assert all(key.isascii() and key.isprintable() and " " not in key and len(key) < 190 for key in keys)


def test_a_key_stays_short_and_distinct_for_a_long_name() -> None:
    keys = {folder_key(letter * 500 + "/ü" * 500, 18 * "9") for letter in "ab"}  # type: ignore[arg-type]
    assert len(keys) == 2 and all(len(key) < 190 for key in keys)
    assert folder_key("sha256:" + "a" * 64, 1) == "sha256%3A" + "a" * 64 + ":1:"
    assert folder_key("inbox", 7) == "INBOX:7:"


@given(st.sets(st.integers(1, 2**32 - 1), max_size=300))
def test_sets_hold_these_uids_and_no_others(uids: set[int]) -> None:
    sets = list(write_sets(uids))
    found = [uid for text, _ in sets for uid in read_set(text, 10**6) or ()]
    assert found == sorted(uids) == [uid for _, members in sets for uid in members]
    assert all(len(text) <= SET_OCTETS for text, _ in sets)


def test_neighbours_are_one_range() -> None:
    assert [text for text, _ in write_sets([5, 3, 4, 9, 7, 3])] == [b"3:5,7,9"]


@pytest.mark.parametrize(
    ("text", "uids"),
    [
        (b"", []),
        (b"1:3,7", [1, 2, 3, 7]),
        (b"3:1", [1, 2, 3]),
        (b"1:*", None),
        (b"0", None),
        (b"4294967296", None),
        (b"1:4294967295", None),  # more than allowed
        (b"1,,2", None),
        (b"x", None),
    ],
)
def test_a_set_is_read_within_its_limit(text: bytes, uids: list[int] | None) -> None:
    found = read_set(text, 1000)
    assert (None if found is None else list(found)) == uids


@pytest.mark.parametrize(
    ("text", "uids"),
    [(b" 2  5 ", [2, 5]), (b"", []), (b"1 x", None), (b"0", None), (b"99999999999", None), (b"1 " * 1001, None)],
)
def test_numbers_are_read_within_their_limit(text: bytes, uids: list[int] | None) -> None:
    found = read_numbers(text, 1000)
    assert (None if found is None else list(found)) == uids
