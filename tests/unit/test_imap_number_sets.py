"""services/imap_out/number_sets.py and dates.py: sets on a view, and dates."""

from __future__ import annotations

import datetime as dt
import time
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.imap_out.dates import format_internal_date, parse_day, parse_internal_date
from services.imap_out.number_sets import (
    LAST,
    SAVED,
    format_numbers,
    index_of_uid,
    indexes_of_numbers,
    indexes_of_uids,
    missing_uids,
    parse_set,
)

UIDS = [3, 4, 7, 20]


def numbers(text: bytes, count: int, clipped: bool = False) -> list[int] | None:
    parsed = parse_set(text)
    assert parsed is not None
    return indexes_of_numbers(parsed, count, clipped)


def uids(text: bytes, view: list[int]) -> list[int]:
    parsed = parse_set(text)
    assert parsed is not None
    return [view[index] for index in indexes_of_uids(parsed, view)]


@pytest.mark.parametrize(
    "text",
    [b"", b"0", b"1,", b",1", b"a", b"1:", b":1", b"1:2:3", b"01", b"4294967296", b"$,1", b"+1"],
)
def test_a_malformed_set_is_none(text: bytes) -> None:
    assert parse_set(text) is None


def test_the_forms_of_a_set_are_parsed() -> None:
    parsed = parse_set(b"2,4:7,9,12:*")
    assert parsed is not None and parsed.ranges == ((2, 2), (4, 7), (9, 9), (12, LAST))
    assert not parsed.is_numbers_only
    assert parse_set(b"$") is SAVED


@pytest.mark.parametrize(
    ("text", "count", "indexes"),
    [
        (b"1:*", 3, [0, 1, 2]),
        (b"*", 3, [2]),
        (b"*:2", 3, [1, 2]),
        (b"3,1,2:3", 3, [0, 1, 2]),
        (b"4", 3, None),
        (b"2:4", 3, None),
        (b"*:7", 3, None),
        (b"*", 0, None),
        (b"1:*", 0, None),
    ],
)
def test_message_numbers_beyond_the_view_are_refused(text: bytes, count: int, indexes: list[int] | None) -> None:
    assert numbers(text, count) == indexes


def test_search_ignores_message_numbers_beyond_the_view() -> None:
    assert numbers(b"2:9", 3, clipped=True) == [1, 2]
    assert numbers(b"7:9", 3, clipped=True) == []
    assert numbers(b"1:*", 0, clipped=True) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"1:*", UIDS),
        (b"*", [20]),
        (b"30:*", [20]),  # the last one is always in it (RFC 3501 section 6.4.8)
        (b"21:4294967295", []),
        (b"4:7,4", [4, 7]),
        (b"1,2", []),
    ],
)
def test_uids_that_no_mail_has_are_ignored(text: bytes, found: list[int]) -> None:
    assert uids(text, UIDS) == found
    assert uids(text, []) == []


@pytest.mark.parametrize(
    ("text", "uidnext", "gaps"),
    [
        (b"1:*", 21, [(1, 2), (5, 6), (8, 19)]),
        (b"1:100", 25, [(1, 2), (5, 6), (8, 19), (21, 24)]),
        (b"5,8:9", 25, [(5, 5), (8, 9)]),
        (b"3:4", 25, []),
        (b"50:60", 25, []),
    ],
)
def test_missing_uids_are_those_that_vanished(text: bytes, uidnext: int, gaps: list[tuple[int, int]]) -> None:
    parsed = parse_set(text)
    assert parsed is not None and missing_uids(parsed, UIDS, uidnext) == gaps


@given(st.sets(st.integers(1, 300)))
def test_every_set_of_numbers_survives_the_wire(some: set[int]) -> None:
    text = format_numbers(sorted(some))
    parsed = parse_set(text)
    view = list(range(1, 301))
    assert [view[index] for index in indexes_of_uids(parsed, view)] == sorted(some) if parsed else not some


@given(st.sets(st.integers(1, 60)), st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=8))
def test_found_and_missing_uids_are_the_whole_set(view: set[int], ranges: list[tuple[int, int]]) -> None:
    ordered = sorted(view)
    parsed = parse_set(b",".join(b"%d:%d" % pair for pair in ranges))
    assert parsed is not None
    named = {uid for low, high in ranges for uid in range(min(low, high), max(low, high) + 1)}
    found = {ordered[index] for index in indexes_of_uids(parsed, ordered)}
    assert found == named & view
    gaps = {uid for low, high in missing_uids(parsed, ordered, 61) for uid in range(low, high + 1)}
    assert gaps == {uid for uid in named - view if uid < 61}


def test_sets_on_100_000_mails_are_cheap() -> None:
    view = array("I", range(1, 300_001, 3))
    text = b",".join(b"%d:%d" % (uid, uid + 1) for uid in range(1, 60_000, 6))
    started = time.process_time()
    parsed = parse_set(text)
    assert parsed is not None and len(indexes_of_uids(parsed, view)) == 10_000
    assert format_numbers(range(1, 100_001)) == b"1:100000"
    assert index_of_uid(299_998, view) == 99_999 and index_of_uid(299_999, view) is None
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (b" 7-Feb-1994 21:52:25 -0800", "1994-02-07T21:52:25-08:00"),
        (b"17-jul-1996 02:44:25 +0530", "1996-07-17T02:44:25+05:30"),
        (b"31-Dec-2026 23:59:60 +0000", "2026-12-31T23:59:59+00:00"),
    ],
)
def test_a_date_with_time_is_parsed_and_formatted(text: bytes, moment: str) -> None:
    parsed = parse_internal_date(text)
    assert parsed == dt.datetime.fromisoformat(moment)
    assert parsed is not None and parse_internal_date(format_internal_date(parsed).strip(b'"')) == parsed


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"7-Feb-1994 21:52:25 -0800",
        b"32-Feb-1994 00:00:00 +0000",
        b"01-Foo-1994 00:00:00 +0000",
        b"01-Feb-1994 24:00:00 +0000",
        b"01-Feb-1994 00:00:00 +9900",
    ],
)
def test_what_is_no_date_is_none(text: bytes) -> None:
    assert parse_internal_date(text) is None and parse_day(text) is None


def test_a_moment_is_formatted_with_two_places_for_the_day() -> None:
    moment = dt.datetime(1996, 7, 7, 2, 44, 25, tzinfo=dt.timezone(dt.timedelta(hours=-7)))
    assert format_internal_date(moment) == b'" 7-Jul-1996 02:44:25 -0700"'
