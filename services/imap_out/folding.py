"""The form in which texts are compared by SEARCH, SORT and THREAD."""

from __future__ import annotations

import unicodedata


def fold_text(text: str) -> str:
    """Return a text without differences of case and of composed or compatible characters (RFC 5051 does the same).

    A part of the text is a part of the result, so a substring of the one is found in the other.
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def order_text(text: str) -> str:
    """Return the form in which texts are ordered: accents come after their letters, as in RFC 5051 section 2.

    :param text: as ``fold_text`` returns it.
    """
    return text if text.isascii() else unicodedata.normalize("NFKD", text)
