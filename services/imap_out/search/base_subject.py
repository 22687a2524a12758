"""The base subject of a mail: its subject without marks of answers and lists (RFC 5256 section 2.1)."""

from __future__ import annotations

import re
from typing import NamedTuple

from services.imap_out.folding import fold_text
from shared.mime import headers

SUBJECT_CHARACTERS = 1_000
"""Characters of a subject that count; the steps repeat, so the time grows with the square."""

_BLANKS = re.compile(r"\s+")
_TRAILER = re.compile(r"(?:\(fwd\)|\s)\Z", re.IGNORECASE)
_BLOB = r"\[[^\[\]]*+\]\s*+"
_LEADER = re.compile(rf"(?>(?:{_BLOB})*)(?:re|fwd?)\s*+(?>(?:{_BLOB})?):|\s", re.IGNORECASE)
_LEADING_BLOB = re.compile(_BLOB)


class BaseSubject(NamedTuple):
    """A base subject. text: as ``fold_text`` returns it. is_reply: the mail is an answer, or forwarded."""

    text: str
    is_reply: bool


def base_subject(raw: bytes) -> BaseSubject:
    """Return the base subject of a Subject field. :param raw: its value."""
    text = _BLANKS.sub(" ", headers.field_text(raw[: 10 * SUBJECT_CHARACTERS]))[:SUBJECT_CHARACTERS]
    is_reply = False
    while True:
        text, changed = _without_trailers(text)
        is_reply = is_reply or changed
        text, changed = _without_leaders(text)
        is_reply = is_reply or changed
        if not (text[:5].lower() == "[fwd:" and text.endswith("]")):
            return BaseSubject(fold_text(text), is_reply)
        text, is_reply = text[5:-1], True


def _without_trailers(text: str) -> tuple[str, bool]:
    """Remove ``(fwd)`` and blanks at the end (step 2)."""
    is_reply = False
    while found := _TRAILER.search(text, max(len(text) - 5, 0)):
        is_reply = is_reply or len(found[0]) > 1
        text = text[: found.start()]
    return text, is_reply


def _without_leaders(text: str) -> tuple[str, bool]:
    """Remove ``Re:``, ``Fwd:`` and ``[list]`` at the start (steps 3 to 5)."""
    position, is_reply = 0, False
    while True:
        if found := _LEADER.match(text, position):
            is_reply = is_reply or ":" in found[0]
        elif not (found := _LEADING_BLOB.match(text, position)) or found.end() >= len(text):
            return text[position:], is_reply
        position = found.end()
