"""Compares mails with the key of a search (RFC 3501 section 6.4.4), without reading a mail that need not be read.

A test is asked with what is known of a mail: first with the view alone, then with its header, then with its text. It
returns None as long as that is not enough (the logic of Kleene: NOT, AND and OR of an unknown value may be known).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

from services.imap_out.grammar.keys import (
    ChangedSince,
    Either,
    Every,
    EveryMail,
    HasFlag,
    InHeader,
    InSet,
    InText,
    Not,
    OfAge,
    OfDay,
    OfSize,
    SearchKey,
)
from services.imap_out.number_sets import index_of_uid, indexes_of_numbers, indexes_of_uids

TRIGRAM = 3
"""Characters of a text that an index of trigrams needs at least."""


class Need(IntEnum):
    """What a key needs to know of a mail at most."""

    VIEW = 0
    HEADER = 1
    TEXT = 2


class MailTexts(Protocol):
    """What has been read of a mail. All texts are as ``fold_text`` returns them.

    has_header: the header has been read.
    """

    has_header: bool

    def lacks(self, text: str) -> bool:
        """Return whether a text is certainly nowhere in the mail."""

    def header_values(self, name: str) -> Sequence[str] | None:
        """Return the values of a field (its name is in lower case); None: the header has not been read."""

    def sent_day(self) -> dt.date | None:
        """Return the day of the Date field; None: there is none, or the header has not been read."""

    def contains(self, text: str, header: bool) -> bool | None:
        """Return whether the body contains a text, or with ``header`` the whole mail; None: it has not been read."""


@dataclass(frozen=True, slots=True)
class SearchView:
    """The view of a session, in columns: index 0 is message number 1."""

    uids: Sequence[int]
    octets: Sequence[int]
    arrivals: Sequence[float]  # INTERNALDATE, seconds since 1970 in UTC
    modseqs: Sequence[int]
    flag_test: Callable[[str], Callable[[int], bool]]  # by flag in lower case: whether the mail at an index has it
    saved: Collection[int] = ()  # UIDs of ``$``


SearchTest = Callable[[int, MailTexts | None], bool | None]
"""Whether the mail at an index matches; None: more of the mail has to be read."""


def need_of(key: SearchKey) -> Need:
    """Return what a key needs at most."""
    match key:
        case InText():
            return Need.TEXT
        case InHeader():
            return Need.HEADER
        case OfDay(field="sent"):
            return Need.HEADER
        case Not(inner):
            return need_of(inner)
        case Either(one, other):
            return max(need_of(one), need_of(other))
        case Every(keys):
            return max(map(need_of, keys))
    return Need.VIEW


def has_modseq(key: SearchKey) -> bool:
    """Whether MODSEQ is among the keys: the answer then names a mod-sequence (RFC 7162 section 3.1.5)."""
    return any(isinstance(one, ChangedSince) for one in _leaves(key))


def body_texts(key: SearchKey) -> frozenset[str]:
    """Return all texts that the bodies of mails are searched for."""
    return frozenset(one.text for one in _leaves(key) if isinstance(one, InText))


def text_places(key: SearchKey) -> dict[str, Literal["header", "body", "mail"]]:
    """Return all texts that mails are searched for, and whether only in the header, only in the body, or anywhere."""
    places: dict[str, Literal["header", "body", "mail"]] = {}
    for one in _leaves(key):
        match one:
            case InHeader(_, text):
                place: Literal["header", "body", "mail"] = "header"
            case InText(text, header):
                place = "mail" if header else "body"
            case _:
                continue
        places[text] = place if places.get(text, place) == place else "mail"
    return places


def _leaves(key: SearchKey) -> Iterator[SearchKey]:
    match key:
        case Not(inner):
            yield from _leaves(inner)
        case Either(one, other):
            yield from _leaves(one)
            yield from _leaves(other)
        case Every(keys):
            for one in keys:
                yield from _leaves(one)
        case _:
            yield key


def necessary_texts(key: SearchKey) -> list[InHeader | InText]:
    """Return texts that every found mail has: an index of trigrams may be asked for them first."""
    match key:
        case InHeader() | InText():
            return [key] if len(key.text) >= TRIGRAM else []
        case Every(keys):
            return [text for one in keys for text in necessary_texts(one)]
    return []


def compile_search(key: SearchKey, view: SearchView, now: dt.datetime) -> SearchTest:
    """Return the test for the mails of a view. :param now: for OLDER and YOUNGER."""
    match key:
        case EveryMail():
            return lambda index, mail: True
        case HasFlag(flag):
            has_flag = view.flag_test(flag)
            return lambda index, mail: has_flag(index)
        case InSet():
            members = _members(key, view)
            return lambda index, mail: members[index] == 1
        case OfSize(comparison, octets):
            if comparison == "larger":
                return lambda index, mail: view.octets[index] > octets
            return lambda index, mail: view.octets[index] < octets
        case ChangedSince(modseq):
            return lambda index, mail: view.modseqs[index] >= modseq
        case OfAge(comparison, seconds):
            edge = now.timestamp() - seconds
            if comparison == "older":
                return lambda index, mail: view.arrivals[index] <= edge
            return lambda index, mail: view.arrivals[index] >= edge
        case OfDay():
            return _compile_sent(key) if key.field == "sent" else _compile_internal(key, view)
        case InHeader(name, text):
            return lambda index, mail: None if mail is None else _in_header(mail, name, text)
        case InText(text, header):
            return lambda index, mail: None if mail is None else mail.contains(text, header)
        case Not(inner):
            return _compile_not(compile_search(inner, view, now))
        case Either(one, other):
            ordered = sorted((one, other), key=need_of)
            return _compile_all([compile_search(each, view, now) for each in ordered], deciding=True)
        case Every(keys):
            return _compile_all([compile_search(each, view, now) for each in sorted(keys, key=need_of)], deciding=False)


def _compile_not(test: SearchTest) -> SearchTest:
    def negated(index: int, mail: MailTexts | None) -> bool | None:
        matches = test(index, mail)
        return None if matches is None else not matches

    return negated


def _compile_all(tests: Sequence[SearchTest], deciding: bool) -> SearchTest:
    """Join tests by OR, if one that is True decides, or by AND, if one that is False does."""

    def joined(index: int, mail: MailTexts | None) -> bool | None:
        known = True
        for test in tests:
            matches = test(index, mail)
            if matches is deciding:
                return deciding
            known = known and matches is not None
        return not deciding if known else None

    return joined


def _members(key: InSet, view: SearchView) -> bytearray:
    """Return 1 for each mail of a set, by index. Numbers that no mail has are ignored."""
    members = bytearray(len(view.uids))
    if key.numbers.saved:
        found = [index for uid in view.saved if (index := index_of_uid(uid, view.uids)) is not None]
    elif key.uids:
        found = indexes_of_uids(key.numbers, view.uids)
    else:
        found = indexes_of_numbers(key.numbers, len(view.uids), clipped=True) or []
    for index in found:
        members[index] = 1
    return members


def _compile_internal(key: OfDay, view: SearchView) -> SearchTest:
    start = dt.datetime.combine(key.day, dt.time(), dt.UTC).timestamp()
    end = start + dt.timedelta(days=1).total_seconds()
    arrivals = view.arrivals
    match key.comparison:
        case "before":
            return lambda index, mail: arrivals[index] < start
        case "on":
            return lambda index, mail: start <= arrivals[index] < end
        case "since":
            return lambda index, mail: arrivals[index] >= start


def _compile_sent(key: OfDay) -> SearchTest:
    def sent(index: int, mail: MailTexts | None) -> bool | None:
        if mail is None or not mail.has_header:
            return None
        day = mail.sent_day()
        if day is None:
            return False
        return (
            day < key.day
            if key.comparison == "before"
            else day == key.day
            if key.comparison == "on"
            else day >= key.day
        )

    return sent


def _in_header(mail: MailTexts, name: str, text: str) -> bool | None:
    if mail.lacks(text):
        return False
    values = mail.header_values(name)
    return None if values is None else any(text in value for value in values)
