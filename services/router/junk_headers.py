"""Applies the operator's rules on header fields (setting JUNK_HEADERS): which mail is junk. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.mime.headers import iterate_values

VALUE_OCTETS = 4096
"""Limits the beginning of a field that is compared: octets; the reports of filters are shorter."""
FIELDS = 20
"""Limits the compared fields of one name: fields; each server on the way may add one."""

JunkRules = Mapping[str, Sequence[str]]
"""Patterns by the name of the field in lower case. ``*`` in a pattern stands for any text; case does not matter."""


def is_junk(head: bytes, rules: JunkRules) -> bool:
    """Return whether a rule applies to the header of a mail. :param head: its beginning."""
    seen = dict.fromkeys(rules, 0)
    for name, value in iterate_values(head):
        if name in seen and seen[name] < FIELDS:
            seen[name] += 1
            text = " ".join(value[:VALUE_OCTETS].decode("latin-1").split()).casefold()
            if any(_fits(text, pattern.casefold().split("*")) for pattern in rules[name]):
                return True
    return False


def _fits(text: str, parts: Sequence[str]) -> bool:
    """Return whether a text has these parts in their order, the first at its beginning and the last at its end."""
    first, *others = parts
    if not others:
        return text == first
    *middle, last = others
    if not text.startswith(first):
        return False
    position = len(first)
    for part in middle:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return len(text) - position >= len(last) and text.endswith(last)
