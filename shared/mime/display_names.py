"""People's names as routing compares them: whole, and equal if they look equal."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from shared.mime import encoded_words

LONGEST = 1000
"""Longer names, in characters, are compared as written: nobody has one, and Unicode's normal forms are slow on them."""
REMEMBERED = 2000
"""Names whose form is remembered: those of the people who share an account are compared with every mail's."""
_ROUNDS = 50
_QUOTES = ('"', "'")


@lru_cache(REMEMBERED)
def normalise(name: str) -> str:
    """The form in which two names are equal if they are the same name.

    Encoded-words are read (in quotes too), then NFKC, casefold, no format characters (category Cf: zero-width, bidi
    marks, BOM), white space collapsed, one pair of outer quotes stripped. Any string will do, lone surrogates too.
    """
    if len(name) > LONGEST:
        return name
    folded = name
    for _ in range(_ROUNDS):  # once more as long as it changes: a step may make work for one before it
        before, folded = folded, _fold(folded)
        if folded == before or len(folded) > LONGEST:
            break
    if len(folded) > 1 and folded[0] in _QUOTES and folded[-1] == folded[0]:
        folded = folded[1:-1].strip()
    return folded


def _fold(name: str) -> str:
    if name.isascii() and "=?" not in name:
        return " ".join(name.lower().split())
    text = unicodedata.normalize("NFKC", encoded_words.decode(name)).casefold()
    return " ".join("".join(letter for letter in text if unicodedata.category(letter) != "Cf").split())
