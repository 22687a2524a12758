"""Normalises display names for routing, which compares whole names: names that look equal are equal. Pure."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from shared.mime import encoded_words

LONGEST = 1000
"""Longest name that is normalised: characters; Unicode's normal forms are slow on longer texts."""
CACHE_SIZE = 2000
"""Cached names: every mail is compared with the names of the people who share its account. Names from mails are not
cached, as a mail with thousands of them would displace those of the people."""
_ROUNDS = 50
_QUOTES = ('"', "'")


@lru_cache(CACHE_SIZE)
def normalise(name: str) -> str:
    """Return the name of a person in the form for comparison; see ``normalise_uncached``."""
    return normalise_uncached(name)


def normalise_uncached(name: str) -> str:
    """Return a name in the form for comparison.

    Steps: decode encoded-words (in quotes too), NFKC, casefold, remove format characters (category Cf: zero-width, bidi
    marks, BOM), collapse white space, strip one pair of outer quotes. Accepts any string, lone surrogates too.
    """
    if len(name) > LONGEST:
        return name
    folded = name
    for _ in range(_ROUNDS):  # repeat while the name changes: a step may enable an earlier one
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
    if len(text) > LONGEST:  # one character may become eighteen
        return text
    return " ".join("".join(letter for letter in text if unicodedata.category(letter) != "Cf").split())
