"""The routing examples of tests/cases, on the pure functions."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from shared import routing
from tests.unit.test_routing import company

FOLDER = Path(__file__).parent.parent / "cases"


def read_cases(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


CASES = read_cases("to_headers.jsonl")
REPORTS = [case for case in read_cases("public-reports.jsonl") if case["kind"] == "routing"]


def test_there_are_cases() -> None:
    assert len(CASES) >= 65 and len(REPORTS) >= 12
    assert all(case["expect"] for case in (*CASES, *REPORTS))


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


@pytest.mark.parametrize("case", REPORTS, ids=[f"{case['id']}: {case['why']}" for case in REPORTS])
def test_a_mail_of_a_public_report_is_routed_as_expected(case: dict[str, Any]) -> None:
    # given
    external, sharers = company(case["external"], *case["users"])
    # when
    facts = routing.read_facts(base64.b64decode(case["mail_b64"]), external)
    decision = routing.decide(facts, external, sharers, {})
    # then
    names = {local.id: local.user_name for local in sharers}
    got = sorted(names[recipient.local_id] for recipient in decision.recipients)
    assert got in [sorted(people) for people in case["expect"]]
