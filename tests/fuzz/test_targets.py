"""Every judge of ``targets.py`` on the seeds, and on inputs that hypothesis makes from their words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import WORDS, seeds
from tests.fuzz.targets import TARGETS

PIECES = st.lists(st.sampled_from(WORDS) | st.binary(max_size=4), max_size=40).map(b"".join)


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_passes_the_judge(target: str) -> None:
    for seed in seeds():
        TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=300, deadline=None)
@given(data=PIECES)
def test_any_input_passes_the_judge(target: str, data: bytes) -> None:
    TARGETS[target](data)


def test_a_judge_fails_on_a_faulty_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a router that finds no recipient
    monkeypatch.setattr("shared.routing.decision._recipients", lambda *_: ())
    # then
    with pytest.raises(AssertionError):
        TARGETS["route"](b"To: support@company.com\r\n\r\n")
