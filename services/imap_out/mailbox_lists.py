"""Decides what LIST and LSUB return (RFC 3501 sections 6.3.8 and 6.3.9, RFC 5258, RFC 6154). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.imap_out.grammar.commands import ListArguments
from services.imap_out.responses.data import DELIMITER


@dataclass(frozen=True, slots=True)
class ListableMailbox:
    """A mailbox, or a name that is only subscribed."""

    name: str
    exists: bool = True
    subscribed: bool = False
    special_use: tuple[str, ...] = ()  # as ``\\Sent``


@dataclass(frozen=True, slots=True)
class ListedMailbox:
    """One LIST or LSUB response."""

    name: str
    attributes: tuple[str, ...]
    child_info: tuple[str, ...] = ()
    exists: bool = True  # STATUS may follow (RFC 5819)


class MailboxPattern:
    """A pattern: ``*`` matches anything, ``%`` anything within a level (RFC 3501 section 6.3.8).

    The time is that of the pattern times that of the name, however many wildcards there are.
    """

    def __init__(self, pattern: str) -> None:
        """:param pattern: with its reference before it."""
        elements: list[str] = []
        for character in pattern:
            if character in "*%" and elements and elements[-1] in ("*", "%"):
                elements[-1] = "*" if "*" in (character, elements[-1]) else "%"
            else:
                elements.append(character)
        self._end = 1 << len(elements)  # a state is a bit: the element that comes next
        self._any = self._within = 0
        self._literals: dict[str, int] = {}
        for index, element in enumerate(elements):
            if element == "*":
                self._any |= 1 << index
            elif element == "%":
                self._within |= 1 << index
            else:
                self._literals[element] = self._literals.get(element, 0) | 1 << index
        self._folded = MailboxPattern(pattern.upper()) if pattern.upper() != pattern else self

    def matches(self, name: str) -> bool:
        """Whether the whole name matches; the case of INBOX does not matter."""
        return self._run(name) or (name == "INBOX" and self._folded._run(name))

    def _run(self, name: str) -> bool:
        states = self._skip(1)
        for character in name:
            matched = (states & self._literals.get(character, 0)) << 1
            kept = states & self._any
            if character != DELIMITER:
                kept |= states & self._within
            states = self._skip(matched | kept)
            if not states:
                return False
        return bool(states & self._end)

    def _skip(self, states: int) -> int:
        """Let wildcards match nothing. No two of them are side by side."""
        return states | (states & (self._any | self._within)) << 1


def parents(name: str) -> Iterable[str]:
    """Yield the names of the levels above, the top one first."""
    position = name.find(DELIMITER)
    while position > 0:
        yield name[:position]
        position = name.find(DELIMITER, position + 1)


def list_mailboxes(arguments: ListArguments, mailboxes: Sequence[ListableMailbox]) -> list[ListedMailbox]:
    """Return the responses to LIST, by name. Levels that exist only above others are returned, too."""
    patterns = [MailboxPattern(arguments.reference + pattern) for pattern in arguments.patterns]
    known = _with_parents(mailboxes)
    having_children = {parent for one in known.values() if one.exists for parent in parents(one.name)}
    listed = []
    for name in sorted(known, key=_order):
        if not any(pattern.matches(name) for pattern in patterns):
            continue
        one = known[name]
        info = _child_info(arguments, name, known, patterns)
        if info or _is_selected(arguments, one, name in having_children):
            attributes = _attributes(arguments, one, name in having_children)
            listed.append(ListedMailbox(name, attributes, info, one.exists))
    return listed


def list_subscribed(arguments: ListArguments, mailboxes: Sequence[ListableMailbox]) -> list[ListedMailbox]:
    """Return the responses to LSUB: a level above a subscribed name is there for a pattern with ``%`` only."""
    patterns = [MailboxPattern(arguments.reference + pattern) for pattern in arguments.patterns]
    subscribed = {one.name: one for one in mailboxes if one.subscribed}
    above = {parent for name in subscribed for parent in parents(name) if parent not in subscribed}
    if not any("%" in pattern for pattern in arguments.patterns):
        above.clear()
    listed = []
    for name in sorted({*subscribed, *above}, key=_order):
        if any(pattern.matches(name) for pattern in patterns):
            attributes = ("\\Noselect",) if name in above or not subscribed[name].exists else ()
            listed.append(ListedMailbox(name, attributes))
    return listed


def _order(name: str) -> tuple[bool, list[str]]:
    """INBOX first, then each mailbox before those below."""
    return name != "INBOX", name.split(DELIMITER)


def _with_parents(mailboxes: Sequence[ListableMailbox]) -> dict[str, ListableMailbox]:
    known = {one.name: one for one in mailboxes}
    for one in mailboxes:
        for parent in parents(one.name):
            known.setdefault(parent, ListableMailbox(parent, exists=False))
    return known


def _is_selected(arguments: ListArguments, one: ListableMailbox, has_children: bool) -> bool:
    """Whether the selection options take this name by itself (RFC 5258 section 3.1)."""
    selects = arguments.selects
    if "SUBSCRIBED" in selects and not one.subscribed:
        return False
    if "SPECIAL-USE" in selects and not one.special_use:
        return False
    return one.exists or "SUBSCRIBED" in selects or has_children


def _child_info(
    arguments: ListArguments,
    name: str,
    known: Mapping[str, ListableMailbox],
    patterns: Sequence[MailboxPattern],
) -> tuple[str, ...]:
    """Return SUBSCRIBED if RECURSIVEMATCH is asked for, and a name below that no pattern matches is subscribed."""
    if not {"RECURSIVEMATCH", "SUBSCRIBED"} <= arguments.selects:
        return ()
    below = (one.name for one in known.values() if one.subscribed and one.name.startswith(name + DELIMITER))
    return ("SUBSCRIBED",) if any(not any(p.matches(other) for p in patterns) for other in below) else ()


def _attributes(arguments: ListArguments, one: ListableMailbox, has_children: bool) -> tuple[str, ...]:
    attributes = []
    if not one.exists:
        attributes.append("\\NonExistent" if arguments.extended else "\\Noselect")
    if one.subscribed and ("SUBSCRIBED" in arguments.returns or "SUBSCRIBED" in arguments.selects):
        attributes.append("\\Subscribed")
    attributes.append("\\HasChildren" if has_children else "\\HasNoChildren")
    return (*attributes, *one.special_use)
