"""Splits header field values into the tokens of RFC 5322 section 3.2. Pure; for any text, no function here raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class TooManyTokens(ValueError):
    """The value has more tokens than the caller wants to read."""


class Token(NamedTuple):
    """A token. kind: blank, atom, encoded, quoted, comment, or the special character itself.

    text: without quotes, parentheses and their backslashes; one character for each octet (latin-1).
    """

    kind: str
    text: str
    start: int
    end: int


# An encoded-word is one token whatever it contains, though RFC 2047 section 5 (3) forbids most of it in a phrase.
_TOKEN = re.compile(
    r"""
    (?P<blank>\s+)
  | (?P<encoded>=\?[^?\s]*\?[A-Za-z]\?[^?\r\n]*\?=)
  | (?P<atom>[^\s"(),:;<>\[\]]+ | \[[^\[\],<>"]*\])
  | (?P<special>.)""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_PARENTHESIS = re.compile(r"\\.|[()]", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_FOLDED = re.compile(r"[\r\n]+")


def token_budget(limit: int) -> Iterator[int]:
    """Return a budget of tokens, which several values may share."""
    return iter(range(limit))


def tokens(text: str, budget: Iterator[int]) -> Iterator[Token]:
    """Yield the tokens of a value.

    A quote or parenthesis without its end is an ordinary character, and so is each later one: this keeps a long run of
    them linear.

    :param budget: limits the tokens that are read. :raises TooManyTokens: it is used up before the value ends.
    """
    position = 0
    quotes = comments = True
    for _ in budget:
        match = _TOKEN.match(text, position)
        if match is None:
            return
        start, position = match.span()
        kind, content = match.lastgroup or "", match[0]
        if kind == "special":
            kind = content if content in "<>,:;" else "atom"
            if content == '"':
                string = QUOTED.match(text, start) if quotes else None
                quotes = string is not None
                if string:
                    kind, content, position = "quoted", _unescape(string[1]), string.end()
                else:
                    kind, content = "blank", " "
            elif content == "(" and comments:
                end = comment_end(text, start)
                comments = end > 0
                if comments:
                    kind, content, position = "comment", _unescape(text[start + 1 : end - 1]), end
        yield Token(kind, content, start, position)
    if position < len(text):
        raise TooManyTokens(f"tokens from {position} on are not read")


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", _FOLDED.sub("", text))


def comment_end(text: str, start: int) -> int:
    """Return the index after the parenthesis that closes the one at ``start`` (comments nest); 0 without one."""
    depth = 0
    for match in _PARENTHESIS.finditer(text, start):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return 0
