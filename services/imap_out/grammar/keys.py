"""What SEARCH and SORT ask for, as values (RFC 3501 section 6.4.4, RFC 5032, RFC 5256, RFC 7162 section 3.1.5)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple

from services.imap_out.number_sets import NumberSet


@dataclass(frozen=True, slots=True)
class EveryMail:
    """ALL."""


@dataclass(frozen=True, slots=True)
class HasFlag:
    """ANSWERED, DELETED, DRAFT, FLAGGED, SEEN, KEYWORD, and their opposites within ``Not``.

    flag: in lower case, a system flag with its ``\\``.
    """

    flag: str


@dataclass(frozen=True, slots=True)
class InSet:
    """A set of message numbers, or UID and a set. ``$`` of RFC 5182 is a set of UIDs."""

    numbers: NumberSet
    uids: bool


@dataclass(frozen=True, slots=True)
class OfSize:
    """LARGER and SMALLER. octets: the limit itself does not match."""

    comparison: Literal["larger", "smaller"]
    octets: int


@dataclass(frozen=True, slots=True)
class OfDay:
    """BEFORE, ON, SINCE (INTERNALDATE), SENTBEFORE, SENTON and SENTSINCE (the Date field): days, without zones."""

    field: Literal["internal", "sent"]
    comparison: Literal["before", "on", "since"]
    day: date


@dataclass(frozen=True, slots=True)
class OfAge:
    """OLDER and YOUNGER (RFC 5032): seconds between INTERNALDATE and now."""

    comparison: Literal["older", "younger"]
    seconds: int


@dataclass(frozen=True, slots=True)
class ChangedSince:
    """MODSEQ: the mod-sequence is this one or greater."""

    modseq: int


@dataclass(frozen=True, slots=True)
class InHeader:
    """BCC, CC, FROM, SUBJECT, TO and HEADER. text: as ``fold_text`` returns it; '' matches every mail with the field.

    name: of the field, in lower case.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class InText:
    """BODY, and TEXT with ``header``. text: as ``fold_text`` returns it."""

    text: str
    header: bool


@dataclass(frozen=True, slots=True)
class Not:
    """NOT."""

    key: SearchKey


@dataclass(frozen=True, slots=True)
class Either:
    """OR."""

    one: SearchKey
    other: SearchKey


@dataclass(frozen=True, slots=True)
class Every:
    """Keys that must all match."""

    keys: tuple[SearchKey, ...]


SearchKey = (
    EveryMail | HasFlag | InSet | OfSize | OfDay | OfAge | ChangedSince | InHeader | InText | Not | Either | Every
)


class SortKey(NamedTuple):
    """A criterion of SORT. name: ARRIVAL, CC, DATE, FROM, SIZE, SUBJECT or TO."""

    name: str
    reverse: bool = False
