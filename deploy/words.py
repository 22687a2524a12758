"""Refuses the few words that a list can judge, in code and texts: ``python -m deploy.words``.

Each has a plainer or a technical word in its place; the list says which. The rest of the rules of prose is for the
reviewer (CONTRIBUTING.md). Exit status 1 if a file has one of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFUSED = {
    "anew": "again",
    "whoever": "the user, the process, … that",
    "in hand": "in progress, claimed, held in memory",
    "at hand": "cached, loaded, available",
    "goes round": "loops",
    "let go of": "release",
    "stranger": "unknown sender, unauthenticated client, foreign …",
}
"""Words, and what to write instead."""
ENDINGS = ("*.py", "*.md", "*.sql", "*.html")
EXCEPTED = frozenset({"CHANGELOG.md", "deploy/words.py", "tests/unit/test_words.py"})
"""Files that may quote them."""
_SKIPPED = frozenset({"data", "node_modules"})
_BETWEEN = r"(?:[\s#*>-]+)"
"""Between the words of a phrase: white space, and what begins a line of a comment."""
_PATTERN = re.compile("|".join(rf"\b{word.replace(' ', _BETWEEN)}\b" for word in REFUSED), re.IGNORECASE)


def refused(text: str) -> Iterator[tuple[int, str]]:
    """The line, from 1, and the refused word of each place in a text."""
    for found in _PATTERN.finditer(text):
        word = re.sub(_BETWEEN, " ", found[0]).lower()
        yield text.count("\n", 0, found.start()) + 1, word


def files(root: Path) -> Iterator[Path]:
    """The files of a checkout that are judged, in order; hidden folders and data folders are none."""
    for path in sorted(file for ending in ENDINGS for file in root.rglob(ending)):
        place = path.relative_to(root)
        if place.as_posix() in EXCEPTED or any(part.startswith(".") or part in _SKIPPED for part in place.parts[:-1]):
            continue
        yield path


def main(root: Path = ROOT) -> int:
    """Print each place; the exit status."""
    status = 0
    for path in files(root):
        for line, word in refused(path.read_text(encoding="utf-8")):
            print(f"{path.relative_to(root)}:{line}: {word!r}: write {REFUSED[word]}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
