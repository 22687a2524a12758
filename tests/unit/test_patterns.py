"""Regular expressions mean the same in every Python that the project runs on.

Python 3.11.2, which Debian 12 has, ends a possessive group inside of an attempt that failed: ``(?:ab?c)*+`` matches all
of "a" (gh-106052 and gh-100061 of CPython, mended in 3.11.5). ``(?>(?:ab?c)*)`` says the same and is right everywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

import services
import shared

REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)
CHARACTERS = (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN, codes.AT)


@pytest.mark.parametrize(
    ("pattern", "is_safe"),
    [
        (r"[a-z]*+", True),
        (r"(?:ab)*+", True),
        (r"(?:\n[ \t][^\n]*+)*+", True),
        (r'(?:[^"\\]++|\\.)*+', True),
        (r"(?>(?:ab?c)*)", True),
        (r"(?:ab?c)*+", False),
        (r"(?: [a-z]++)*+", False),
        (r"(?:x|(?:ab?c)?+)", False),
        (r"(?=(?:ab?c){1,2}+)", False),
        (r"(?:a(?!b))*+", False),
    ],
)
def test_the_groups_that_are_unsafe_are_known(pattern: str, is_safe: bool) -> None:
    assert (list(unsafe_groups(parser.parse(pattern))) == []) is is_safe


def test_no_pattern_depends_on_the_version_of_python() -> None:
    patterns = {found.pattern: found for found in product_patterns()}
    assert len(patterns) > 100
    unsafe = [text for text, found in patterns.items() if list(unsafe_groups(parser.parse(text, found.flags)))]
    assert unsafe == []


def product_patterns() -> Iterator[re.Pattern[Any]]:
    """Yield the compiled patterns that modules of the product hold as constants."""
    for package in (services, shared):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__") and "migrations" not in module.name:
                for value in vars(importlib.import_module(module.name)).values():
                    yield from _patterns_in(value)


def _patterns_in(value: object) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _patterns_in(item)
    elif isinstance(value, dict):
        yield from _patterns_in(list(value.values()))


def unsafe_groups(items: Any) -> Iterator[Any]:
    """Yield the bodies of possessive groups that can fail behind their beginning. :param items: of a parsed pattern."""
    for code, value in items:
        if code == codes.POSSESSIVE_REPEAT and _moves(value[2]):
            yield value[2]
        for part in _parts(code, value):
            yield from unsafe_groups(part)


def _parts(code: Any, value: Any) -> list[Any]:
    if code in REPEATS:
        return [value[2]]
    if code == codes.SUBPATTERN:
        return [value[3]]
    if code == codes.BRANCH:
        return list(value[1])
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return [value[1]]
    return [value] if code == codes.ATOMIC_GROUP else []


def _moves(body: Any) -> bool:
    """Return whether an attempt can fail after an item that is more than one character."""
    has_moved = False
    for index, (code, value) in enumerate(body):
        if code in CHARACTERS:
            if has_moved:
                return True
        elif code in REPEATS and value[0] == 0:
            has_moved = True
        elif index > 0 or any(_moves(part) for part in _parts(code, value)):
            return True
        else:
            has_moved = True
    return False
