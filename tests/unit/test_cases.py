"""The routing examples of tests/cases/to_headers.jsonl, on the pure functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared import routing
from tests.unit.test_routing import company

CASES: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "cases" / "to_headers.jsonl").read_text(encoding="utf-8").splitlines()
]


def test_there_are_cases() -> None:
    assert len(CASES) >= 65
    assert all(case["expect"] for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=[f"{case['id']}: {case['why']}" for case in CASES])
def test_the_example_is_routed_as_expected(case: dict[str, Any]) -> None:
    # given
    external, sharers = company(case["external"], *case["users"])
    header = "".join([*(f"To: {value}\r\n" for value in case["to"]), *(f"Cc: {value}\r\n" for value in case["cc"])])
    # when
    decision = routing.decide(routing.read_facts(header.encode() + b"\r\nbody\r\n", external), external, sharers, {})
    # then
    names = {local.id: local.user_name for local in sharers}
    got = sorted(names[recipient.local_id] for recipient in decision.recipients)
    assert got in [sorted(case["expect"]), *(sorted(other) for other in case.get("accept_also", []))]
