"""Suggestions for words that are not known: the similar known ones. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice

SHOWN = 8
"""Limits the known words that an error lists: words; more of them hide the error."""
_COMPARED = 2000
"""Limits the known words that are compared with a wrong one: words; a comparison takes some microseconds."""
_SIMILAR = 0.7
"""Likeness from which a known word is suggested: the share of common letters; 0.7 allows a wrong letter of four."""


def did_you_mean(given: str, known: Collection[str]) -> str:
    """Return "; did you mean ...?" with the most similar known word; "" if none is similar."""
    likeness, word = max(((_likeness(given, word), word) for word in islice(known, _COMPARED)), default=(0.0, ""))
    return f"; did you mean {word}?" if likeness >= _SIMILAR else ""


def _likeness(one: str, other: str) -> float:
    """Return how similar two words are, from 0 to 1. Of addresses the less similar part counts: all have one domain."""
    parts = list(zip(one.casefold().split("@"), other.casefold().split("@"), strict=False))
    return min(difflib.SequenceMatcher(None, *pair).ratio() for pair in parts)


def list_some(known: Iterable[str]) -> str:
    """Return known words with commas between them, the first SHOWN of many; "none" for none."""
    words = sorted(known)
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return (", ".join(words[:SHOWN]) or "none") + more


def say_unknown(given: str, known: Collection[str]) -> str:
    """Return what an error says after the name of the unknown word: a similar known word, else the known ones."""
    return did_you_mean(given, known) or f"; there are: {list_some(known)}"
