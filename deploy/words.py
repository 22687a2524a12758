"""Refuses a short list of words in code and texts: ``python -m deploy.words``.

For each word the list names a plainer or technical one. All other rules of prose are for the reviewer
(CONTRIBUTING.md). The exit status is 1 if a file has such a word.
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
"""Refused words, each with its replacement."""
ENDINGS = ("*.py", "*.md", "*.sql", "*.html")
EXCEPTED = frozenset({"CHANGELOG.md", "deploy/words.py", "tests/unit/test_words.py"})
"""Files that may quote them."""
_SKIPPED = frozenset({"data", "node_modules"})
_BETWEEN = r"(?:[\s#*>-]+)"
"""Matches between the words of a phrase: white space, and the marks that begin a line of a comment."""
_PATTERN = re.compile("|".join(rf"\b{word.replace(' ', _BETWEEN)}\b" for word in REFUSED), re.IGNORECASE)


def refused(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line number, from 1, and the word of each place in a text with a refused word."""
    for match in _PATTERN.finditer(text):
        word = re.sub(_BETWEEN, " ", match[0]).lower()
        yield text.count("\n", 0, match.start()) + 1, word


def files(root: Path) -> Iterator[Path]:
    """Yield the files of a checkout to check, sorted, without hidden folders and data folders."""
    for path in sorted(file for ending in ENDINGS for file in root.rglob(ending)):
        place = path.relative_to(root)
        if place.as_posix() in EXCEPTED or any(part.startswith(".") or part in _SKIPPED for part in place.parts[:-1]):
            continue
        yield path


def main(root: Path = ROOT) -> int:
    """Print each place and return the exit status."""
    status = 0
    for path in files(root):
        for line, word in refused(path.read_text(encoding="utf-8")):
            print(f"{path.relative_to(root)}:{line}: {word!r}: write {REFUSED[word]}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
