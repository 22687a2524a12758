"""services/admin/suggestions.py: similar words for one that is not known."""

from __future__ import annotations

import time

import pytest

from services.admin.suggestions import did_you_mean, list_some, say_unknown

PEOPLE = ("alex@local.com", "jim@local.com", "support@company.com")


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        ("alexx@local.com", "alex@local.com"),
        ("Alex@Local.com", "alex@local.com"),
        ("alex@lokal.com", "alex@local.com"),
        ("suport@company.com", "support@company.com"),
        ("alex", "alex@local.com"),
    ],
)
def test_a_similar_address_is_suggested(given: str, suggested: str) -> None:
    assert did_you_mean(given, PEOPLE) == f"; did you mean {suggested}?"


@pytest.mark.parametrize("given", ["sales@company.com", "kim@local.com", "x", ""])
def test_an_address_at_the_same_domain_alone_is_not_similar(given: str) -> None:
    assert did_you_mean(given, PEOPLE) == ""
    assert say_unknown(given, PEOPLE) == "; there are: alex@local.com, jim@local.com, support@company.com"


def test_few_of_many_known_words_are_listed() -> None:
    assert list_some(f"p{number:03}@local.com" for number in range(100)).endswith("p007@local.com and 92 more")
    assert list_some([]) == "none"


def test_ten_thousand_known_addresses_take_no_minute() -> None:
    started = time.process_time()
    for _ in range(20):
        did_you_mean("nobody@example.org", [f"person{number}@local.com" for number in range(10_000)])
    assert time.process_time() - started < 60
