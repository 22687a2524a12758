"""shared/mime/reply_tags.py: only our keys make tags, each for one author of one account."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mime.addresses import address_matcher, plus_tag
from shared.mime.reply_tags import author_of, is_tag, make_tag, new_key, new_probe_tag, tagged_address

KEY, OTHER = b"k" * 32, b"o" * 32
IDS = st.integers(1, 2**63 - 1)
LETTERS = string.ascii_lowercase + string.digits


@given(IDS, IDS)
def test_a_tag_names_its_author(external_id: int, author_id: int) -> None:
    tag = make_tag(KEY, external_id, author_id)
    assert re.fullmatch(r"[a-z0-9]{13,25}", tag) and is_tag(tag)
    assert author_of(tag, external_id, [OTHER, KEY]) == author_id  # a replaced key still verifies


@given(IDS, IDS, IDS, st.binary(min_size=32, max_size=32))
def test_another_account_or_key_verifies_no_tag(external_id: int, author_id: int, other_id: int, key: bytes) -> None:
    tag = make_tag(KEY, external_id, author_id)
    assert author_of(tag, external_id, []) is None
    assert author_of(tag, other_id, [KEY]) == (author_id if other_id == external_id else None)
    assert author_of(tag, external_id, [key]) == (author_id if key == KEY else None)


@given(IDS, IDS, st.integers(0, 24), st.sampled_from(LETTERS))
def test_a_changed_letter_makes_a_tag_invalid(external_id: int, author_id: int, at: int, letter: str) -> None:
    tag = make_tag(KEY, external_id, author_id)
    changed = tag[:at] + letter + tag[at + 1 :]
    assert author_of(changed, external_id, [KEY]) == (author_id if changed == tag else None)


@given(st.text(max_size=30) | st.text(LETTERS, min_size=10, max_size=30))
def test_what_others_write_names_nobody(written: str) -> None:
    assert author_of(written, 1, [KEY]) is None


@pytest.mark.parametrize("written", ["", "0" + make_tag(KEY, 1, 7), make_tag(KEY, 1, 7).upper(), "news", "7" * 40])
def test_one_spelling_alone_is_a_tag(written: str) -> None:
    assert not is_tag(written) and author_of(written, 1, [KEY]) is None


def test_keys_and_probe_tags_are_random() -> None:
    assert len({new_key() for _ in range(20)}) == len({new_probe_tag() for _ in range(20)}) == 20
    assert len(new_key()) == 32 and is_tag(new_probe_tag())


@pytest.mark.parametrize(
    ("address", "tagged"),
    [
        ("support@company.com", "support+7abc@company.com"),
        ("a+b@company.com", "a+b+7abc@company.com"),
        ("x" * 59 + "@company.com", "x" * 59 + "+7abc@company.com"),
        ("x" * 60 + "@company.com", None),  # 64 octets are the most
        ("ü" * 30 + "@company.com", None),
    ],
)
def test_an_address_gets_a_tag_as_long_as_it_fits(address: str, tagged: str | None) -> None:
    assert tagged_address(address, "7abc") == tagged


@pytest.mark.parametrize(
    ("address", "tag"),
    [
        ("support+Tag@company.com", "tag"),
        ("SUPPORT+tag@Company.com.", "tag"),
        ("help+tag@company.com", "tag"),
        ("support@company.com", None),
        ("support+@company.com", ""),
        ("support+one+two@company.com", "two"),  # support+one@ is an alias, as written below
        ("support+one@company.com", None),
        ("support+other+two@company.com", "other+two"),
    ],
)
def test_the_tag_is_what_follows_the_longest_own_address(address: str, tag: str | None) -> None:
    own = ("support@company.com", "help@company.com", "support+one@company.com")
    assert address_matcher(own)(address)
    assert plus_tag(address, own) == tag
