"""The operator's rules on header fields that mark junk."""

from __future__ import annotations

import time

import pytest

from services.router.junk_headers import is_junk
from shared.errors import SettingsError
from shared.settings import load

RULES = "X-Spam-Flag: YES; X-Spam-Status: Yes*; X-Forefront-Antispam-Report: *SFV:SPM*; X-Spam-Level: ****a*b"


def junk(*fields: str, rules: str = RULES) -> bool:
    head = "\r\n".join(["From: a@x.example", *fields, "", "X-Spam-Flag: YES", ""]).encode()
    return is_junk(head, load(junk_headers=rules).junk_rules)


@pytest.mark.parametrize(
    ("field", "is_marked"),
    [
        ("X-Spam-Flag: YES", True),
        ("x-spam-FLAG:yes  ", True),
        ("X-Spam-Flag: YES, surely", False),
        ("X-Spam-Flag: NO", False),
        ("X-Spam-Status: Yes, score=9.1 required=5.0\r\n\ttests=BAYES_99", True),
        ("X-Spam-Status: No, score=0.1, Yes", False),
        ("X-Forefront-Antispam-Report: CIP:192.0.2.1;\r\n SFV:SPM;SCL:5", True),
        ("X-Forefront-Antispam-Report: CIP:192.0.2.1;SFV:NSPM", False),
        ("X-Spam-Level: a", False),
        ("X-Spam-Level: xaxb", True),
        ("Subject: X-Spam-Flag: YES", False),
    ],
)
def test_a_field_marks_junk_by_its_whole_value(field: str, is_marked: bool) -> None:
    assert junk(field) == is_marked


def test_any_field_and_any_rule_of_a_name_count() -> None:
    assert junk("X-Spam-Flag: NO", "X-Spam-Flag: YES")
    assert junk("A: 2", rules="A: 1; A: 2") and junk("A: 1", rules="A: 1; a: 2;") and not junk("A: 3", rules="A: 1;A:2")


def test_the_body_and_no_rules_mark_nothing() -> None:
    assert not junk()
    assert not junk("X-Spam-Flag: YES", rules="")


@pytest.mark.parametrize("text", ["X-Spam-Flag", "X-Spam-Flag: ", "X-Spam-Flag: *", ": YES", "X Spam: YES"])
def test_a_rule_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="has to be header fields with their values such as X-Spam-Flag: YES"):
        load(junk_headers=text)


def test_a_hostile_header_costs_little() -> None:
    began = time.monotonic()
    for _ in range(10):
        assert not junk(*["A: " + "ab" * 10_000] * 50, rules="A: *a*b*a*b*a*b*c")
    assert time.monotonic() - began < 5
