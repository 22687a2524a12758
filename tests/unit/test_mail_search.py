"""services/admin/mail/mail_search.py: the terms of a search, and the day in a time zone."""

from __future__ import annotations

import datetime

import pytest

from services.admin.formatting import MAIL_RESULTS
from services.admin.mail import mail_search


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Printer", "'printer':*"),
        ("a bc def", "'a' & 'bc' & 'def':*"),
        ("anna@customer.example", "'anna@customer.example':*"),
        ("o'brien@x\\y.example", "'o''brien@x\\\\y.example':*"),
    ],
)
def test_each_word_is_the_beginning_of_a_term(text: str, query: str) -> None:
    assert mail_search.prefix_query(text) == query


def test_every_result_can_be_searched_for() -> None:
    assert tuple(mail_search._RESULTS) == MAIL_RESULTS


@pytest.mark.parametrize(
    ("zone", "begin"),
    [("", "2026-11-29T00:00"), ("Europe/Berlin", "2026-11-28T23:00"), ("Nowhere/At/All", "2026-11-29T00:00"),
     ("../etc", "2026-11-29T00:00")],
)  # fmt: skip
def test_a_day_begins_at_midnight_of_its_zone(zone: str, begin: str) -> None:
    first, last = mail_search.day_limits(datetime.date(2026, 11, 29), zone)
    assert first.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M") == begin
    assert last - first == datetime.timedelta(hours=24)


def test_the_last_day_of_all_is_a_day() -> None:
    first, last = mail_search.day_limits(datetime.date.max, "")
    assert first == last
