"""Parses the keys of SEARCH, SORT and THREAD (RFC 3501 section 6.4.4, RFC 9051 section 6.4.4, RFC 5256)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from services.imap_out.dates import parse_day
from services.imap_out.folding import fold_text
from services.imap_out.grammar.errors import CommandError
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
    SortKey,
)
from services.imap_out.grammar.reader import ArgumentReader
from shared.mime import charsets

MAX_DEPTH = 100
"""Keys in keys: a program that joins words by OR nests one level a word."""
MAX_KEYS = 1_000
"""Keys of one search."""
RETURN_OPTIONS = frozenset(("MIN", "MAX", "ALL", "COUNT", "SAVE"))
"""RFC 4731 section 3.1 and RFC 5182."""

_SORT_KEYS = frozenset(("ARRIVAL", "CC", "DATE", "FROM", "SIZE", "SUBJECT", "TO"))
_NOTHING = Not(EveryMail())
_PLAIN: dict[str, SearchKey] = {
    "ALL": EveryMail(),
    "RECENT": _NOTHING,  # no mail is recent (RFC 9051 has abolished the flag)
    "NEW": _NOTHING,
    "OLD": EveryMail(),
    **{name: HasFlag(f"\\{name.lower()}") for name in ("ANSWERED", "DELETED", "DRAFT", "FLAGGED", "SEEN")},
    **{f"UN{name}": Not(HasFlag(f"\\{name.lower()}")) for name in ("ANSWERED", "DELETED", "DRAFT", "FLAGGED", "SEEN")},
}


def read_returns(reader: ArgumentReader) -> frozenset[str] | None:
    """Read ``RETURN (…)`` and the blank behind it, if it follows (RFC 4731). ``RETURN ()`` is ``RETURN (ALL)``."""
    if not reader.skips_atom(b"RETURN"):
        return None
    what = "SEARCH RETURN"
    reader.space(what)
    reader.expect(b"(", what)
    returns = set()
    while not reader.skips(b")"):
        returns.add(reader.atom(what))
        reader.skips_space()
    if not returns <= RETURN_OPTIONS:
        raise CommandError(f"{what}: known are {', '.join(sorted(RETURN_OPTIONS))}")
    reader.space("the key of SEARCH")
    return frozenset(returns) or frozenset(("ALL",))


def read_order(reader: ArgumentReader) -> tuple[SortKey, ...]:
    """Read the criteria of SORT (RFC 5256 section 3)."""
    what = "the criteria of SORT"
    reader.expect(b"(", what)
    order: list[SortKey] = []
    reverse = False
    while not reader.skips(b")"):
        name = reader.atom(what)
        reader.skips_space()
        if name == "REVERSE" and not reverse:
            reverse = True
            continue
        if name not in _SORT_KEYS or len(order) > len(_SORT_KEYS):
            raise CommandError(f"{what}: known are {', '.join(sorted(_SORT_KEYS))}, each with REVERSE before it or not")
        order.append(SortKey(name, reverse))
        reverse = False
    if reverse or not order:
        raise CommandError(f"{what} are missing")
    return tuple(order)


def read_search(reader: ArgumentReader) -> SearchKey:
    """Read ``CHARSET x``, if it follows, and the keys up to the end of the command."""
    codec = charsets.GUESSED
    if reader.skips_atom(b"CHARSET"):
        reader.space("the charset")
        codec = read_charset(reader)
        reader.space("the key of SEARCH")
    return read_keys(reader, codec)


def read_charset(reader: ArgumentReader) -> str:
    """Read the name of a charset. Return its codec. :raises CommandError: NO [BADCHARSET] (RFC 3501 section 6.4.4)."""
    codec = charsets.find_codec(reader.astring("the charset").decode("latin-1"))
    if codec is None:
        raise CommandError("the charset is unknown", "NO", "BADCHARSET (US-ASCII UTF-8)")
    return codec


def read_keys(reader: ArgumentReader, codec: str) -> SearchKey:
    """Read the keys up to the end of the command. :param codec: of the strings."""
    keys = _KeyReader(reader, codec)
    found = [keys.read(0)]
    while reader.skips_space():
        found.append(keys.read(0))
    reader.end()
    return _all_of(found)


def _all_of(keys: list[SearchKey]) -> SearchKey:
    return keys[0] if len(keys) == 1 else Every(tuple(keys))


class _KeyReader:
    """Reads keys; counts them and their depth."""

    def __init__(self, reader: ArgumentReader, codec: str) -> None:
        self._reader = reader
        self._codec = codec
        self._count = 0

    def read(self, depth: int) -> SearchKey:
        """Read one key."""
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_KEYS:
            raise CommandError(
                f"the search has more than {MAX_KEYS} keys, or more than {MAX_DEPTH} in each other", "NO", "LIMIT"
            )
        reader = self._reader
        if reader.skips(b"("):
            return self._read_group(depth)
        if reader.peek() in b"0123456789*$" and reader.peek():
            numbers = reader.numbers()
            return InSet(numbers, uids=numbers.saved)
        name = reader.atom("the key of SEARCH")
        if name in _PLAIN:
            return _PLAIN[name]
        if name == "NOT":
            reader.space("the key after NOT")
            return Not(self.read(depth + 1))
        if name == "OR":
            reader.space("the first key of OR")
            one = self.read(depth + 1)
            reader.space("the second key of OR")
            return Either(one, self.read(depth + 1))
        read = _WITH_ARGUMENT.get(name)
        if read is None:
            raise CommandError("SEARCH has an unknown key")
        reader.space(f"the argument of {name}")
        return read(self, name)

    def _read_group(self, depth: int) -> SearchKey:
        keys = [self.read(depth + 1)]
        while not self._reader.skips(b")"):
            self._reader.space("a ) of SEARCH")
            if self._reader.skips(b")"):
                break
            keys.append(self.read(depth + 1))
        return _all_of(keys)

    def text(self, what: str) -> str:
        """Read a string, and fold it."""
        return fold_text(charsets.decode(self._reader.astring(what), self._codec))

    def day(self, name: str) -> date:
        """Read a date."""
        day = parse_day(self._reader.astring(f"the date of {name}"))
        if day is None:
            raise CommandError(f"{name}: the date is none such as 1-Feb-1994")
        return day

    def read_keyword(self, name: str) -> SearchKey:
        """Read the argument of KEYWORD or UNKEYWORD."""
        flag = HasFlag(self._reader.atom(f"the keyword of {name}").lower())
        return Not(flag) if name == "UNKEYWORD" else flag

    def read_field(self, name: str) -> SearchKey:
        """Read the argument of a key named after a header field."""
        return InHeader(name.lower(), self.text(f"the string of {name}"))

    def read_header(self, name: str) -> SearchKey:
        """Read the arguments of HEADER."""
        field = self._reader.astring("the field of HEADER").decode("latin-1").lower()
        self._reader.space("the string of HEADER")
        return InHeader(field, self.text("the string of HEADER"))

    def read_text(self, name: str) -> SearchKey:
        """Read the argument of BODY or TEXT."""
        return InText(self.text(f"the string of {name}"), header=name == "TEXT")

    def read_size(self, name: str) -> SearchKey:
        """Read the argument of LARGER or SMALLER."""
        octets = self._reader.number(f"the number of {name}", 2**63)
        return OfSize("larger" if name == "LARGER" else "smaller", octets)

    def read_age(self, name: str) -> SearchKey:
        """Read the argument of OLDER or YOUNGER."""
        seconds = self._reader.number(f"the seconds of {name}", least=1)
        return OfAge("older" if name == "OLDER" else "younger", seconds)

    def read_internal(self, name: str) -> SearchKey:
        """Read the argument of BEFORE, ON or SINCE."""
        day = self.day(name)
        return OfDay("internal", "before" if name == "BEFORE" else "on" if name == "ON" else "since", day)

    def read_sent(self, name: str) -> SearchKey:
        """Read the argument of SENTBEFORE, SENTON or SENTSINCE."""
        day = self.day(name)
        return OfDay("sent", "before" if name == "SENTBEFORE" else "on" if name == "SENTON" else "since", day)

    def read_uids(self, name: str) -> SearchKey:
        """Read the argument of UID."""
        return InSet(self._reader.numbers(f"the set of {name}"), uids=True)

    def read_modseq(self, name: str) -> SearchKey:
        """Read the arguments of MODSEQ; which flag changed is not recorded (RFC 7162 section 3.1.5)."""
        if self._reader.peek() == b'"':
            self._reader.string(f"the flag of {name}")
            self._reader.space(f"the kind of {name}")
            if self._reader.atom(f"the kind of {name}") not in ("ALL", "PRIV", "SHARED"):
                raise CommandError(f"the kind of {name} is none of all, priv and shared")
            self._reader.space(f"the value of {name}")
        return ChangedSince(self._reader.modseq(f"the value of {name}"))


_WITH_ARGUMENT: dict[str, Callable[[_KeyReader, str], SearchKey]] = {
    **dict.fromkeys(("BCC", "CC", "FROM", "SUBJECT", "TO"), _KeyReader.read_field),
    **dict.fromkeys(("KEYWORD", "UNKEYWORD"), _KeyReader.read_keyword),
    **dict.fromkeys(("BODY", "TEXT"), _KeyReader.read_text),
    **dict.fromkeys(("LARGER", "SMALLER"), _KeyReader.read_size),
    **dict.fromkeys(("OLDER", "YOUNGER"), _KeyReader.read_age),
    **dict.fromkeys(("BEFORE", "ON", "SINCE"), _KeyReader.read_internal),
    **dict.fromkeys(("SENTBEFORE", "SENTON", "SENTSINCE"), _KeyReader.read_sent),
    "HEADER": _KeyReader.read_header,
    "UID": _KeyReader.read_uids,
    "MODSEQ": _KeyReader.read_modseq,
}
