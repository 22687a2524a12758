"""How tests are written."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
LONGEST_NAME = 70
"""Characters of a test's name: a sentence that fits a line of the test runner's output."""


def test_no_test_has_a_name_of_more_than_seventy_characters() -> None:
    named = [
        node.name
        for file in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    assert len(named) > 1000
    assert [name for name in named if len(name) > LONGEST_NAME] == []
