"""Normalises display names for routing, which compares whole names: names that look equal are equal. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache

from shared.mime import encoded_words

LONGEST = 1000
"""Longest name that is normalised: characters; Unicode's normal forms are slow on longer texts."""
CACHE_SIZE = 2000
"""Cached names: every mail is compared with the names of the people who share its account. Names from mails are not
cached, as a mail with thousands of them would displace those of the people."""
_ROUNDS = 50
_QUOTES = ('"', "'")
# Apostrophes and quotation marks that typographic keyboards and word processors write (Unicode's Quotation_Mark), and
# what people write for an apostrophe: primes, accents, letters that look like one.
_APOSTROPHES = (
    "`\u00b4\u02b9\u02bb\u02bc\u02bd\u055a\u05f3\u2018\u2019\u201a\u201b\u2032\u2035\u2039\u203a"
    "\u275b\u275c\ua78b\ua78c"
)
_QUOTATION_MARKS = (
    "\u00ab\u00bb\u02ba\u05f4\u201c\u201d\u201e\u201f\u2033\u2036\u275d\u275e\u2e42\u300c\u300d\u300e\u300f"
    "\u301d\u301e\u301f"
)
_TO_ASCII = str.maketrans(dict.fromkeys(_APOSTROPHES, "'") | dict.fromkeys(_QUOTATION_MARKS, '"'))


@lru_cache(CACHE_SIZE)
def normalise(name: str) -> str:
    """Return the name of a person in the form for comparison; see ``normalise_uncached``."""
    return normalise_uncached(name)


def normalise_uncached(name: str) -> str:
    """Return a name in the form for comparison.

    Steps: decode encoded-words (in quotes too), fold apostrophes and quotation marks to ASCII, NFKC, casefold, remove
    format characters (category Cf: zero-width, bidi marks, BOM), collapse white space, strip one pair of outer quotes.
    Accepts any string, lone surrogates too.
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
        return " ".join(name.lower().replace("`", "'").split())
    text = unicodedata.normalize("NFKC", encoded_words.decode(name).translate(_TO_ASCII)).casefold()
    if len(text) > LONGEST:  # one character may become eighteen
        return text
    return " ".join("".join(letter for letter in text if unicodedata.category(letter) != "Cf").split())


_BETWEEN = ",;:|/-\u2013\u2014 "
"""Characters between a name and an address behind it."""


def without_address(name: str, is_own: Callable[[str], bool]) -> str:
    """Return a normalised name without an address behind it, bare or in brackets or quotes of any kind.

    :param is_own: whether an address is one that is dropped; any other address is a part of the name.
    """
    if "@" not in name:
        return name
    end = len(name)
    while end and _is_bracket(name[end - 1]):
        end -= 1
    start = end
    while start and not _is_bracket(name[start - 1]):
        start -= 1
    if not is_own(name[start:end].removeprefix("mailto:")):
        return name
    while start and name[start - 1] != " " and _is_bracket(name[start - 1]):
        start -= 1
    while start and (
        name[start - 1] in _BETWEEN or name[start - 1] == "<" or unicodedata.category(name[start - 1]) == "Ps"
    ):
        start -= 1
    return normalise_uncached(name[:start])


def _is_bracket(letter: str) -> bool:
    """Whether this ends a word before or after it: a blank, a bracket, or a quote."""
    return letter in " <>\"'" or unicodedata.category(letter) in ("Ps", "Pe", "Pi", "Pf")
