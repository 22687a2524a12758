"""Brings the answers of a server into a form that can be compared: without texts for people, order, and numbers that
each server gives as it likes (UIDVALIDITY, MODSEQ). Pure.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.imap_out.dates import parse_internal_date

Value = None | bytes | list["Value"]

_LITERAL = re.compile(rb"~?\{(\d+)\}\r\n")
_ATOM = re.compile(rb'(?:[^ ()\[\]"{~]|~(?!\{)|\[(?:[^\]"]|"(?:[^"\\]|\\.)*")*\])+')
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_CODE = re.compile(rb"\[([A-Z0-9-]+)(?: ([^\]]*))?\]")
_NUMBERED = re.compile(rb"\* (\d+) ([A-Z]+)(?: |\Z)")
_USES = frozenset((b"\\archive", b"\\drafts", b"\\junk", b"\\sent", b"\\trash", b"\\marked", b"\\unmarked"))
"""Attributes that are the operator's or a hint (RFC 6154 section 2, RFC 3501 section 7.2.2)."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is reported to a session about its folder. kind: EXISTS, EXPUNGE, FETCH, VANISHED, CLOSED or BYE."""

    kind: str
    number: int = 0
    items: dict[bytes, Value] = field(default_factory=dict)
    uids: Sequence[int] = ()
    earlier: bool = False


@dataclass(slots=True)
class Answer:
    """The answer to one command.

    kind: OK, NO, BAD; BYE: the connection ended. code: its name; "" without one. values: those of APPENDUID, COPYUID
    and MODIFIED. data: what was asked for, by kind. updates: in order.
    """

    kind: str
    code: str = ""
    values: object = None
    data: dict[str, object] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    highest: int = 0  # HIGHESTMODSEQ and UIDVALIDITY that were named
    validity: int = 0
    raw: list[bytes] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """The answer in full, for the report."""
        return "\n    ".join(response.decode("utf-8", "backslashreplace")[:600] for response in self.raw)


def parse_values(text: bytes) -> list[Value]:
    """Parse atoms, strings and lists. A quoted string, a literal and an atom are the same value; NIL is None."""
    top: list[Value] = []
    stack = [top]
    position = 0
    while position < len(text):
        octet = text[position : position + 1]
        if octet == b" ":
            position += 1
        elif octet == b"(":
            inner: list[Value] = []
            stack[-1].append(inner)
            stack.append(inner)
            position += 1
        elif octet == b")" and len(stack) > 1:
            stack.pop()
            position += 1
        elif found := _LITERAL.match(text, position):
            end = found.end() + int(found[1])
            stack[-1].append(text[found.end() : end])
            position = end
        elif found := _QUOTED.match(text, position):
            stack[-1].append(_ESCAPED.sub(rb"\1", found[1]))
            position = found.end()
        elif found := _ATOM.match(text, position):
            stack[-1].append(None if found[0].upper() == b"NIL" else found[0])
            position = found.end()
        else:
            raise ValueError(f"this is no value of IMAP: {text[position : position + 40]!r} in {text[:200]!r}")
    if len(stack) > 1:
        raise ValueError(f"a parenthesis is not closed: {text[:200]!r}")
    return top


def parse_numbers(text: bytes) -> list[int]:
    """Return the numbers of a set without ``*``, ascending."""
    found: set[int] = set()
    for piece in text.split(b","):
        low, _, high = piece.partition(b":")
        found.update(range(int(low), int(high or low) + 1) if int(low) <= int(high or low) else ())
    return sorted(found)


def read_answer(command: bytes, untagged: Sequence[bytes], tagged: bytes) -> Answer:
    """Read the answer to a command. :param tagged: without its tag; b"": the connection ended."""
    kind, code, argument = _status(tagged)
    answer = Answer(kind or "BYE", code, _code_values(code, argument), raw=[*untagged, tagged])
    _take_code(answer, code, argument)
    fetched: dict[int, dict[bytes, Value]] = {}
    for response in untagged:
        _take(answer, command, response, fetched)
    wanted = _wanted_items(command)
    shown = {number: {k: v for k, v in items.items() if k in wanted} for number, items in fetched.items()}
    if shown := {number: items for number, items in shown.items() if items}:
        answer.data["FETCH"] = shown
    return answer


def _status(text: bytes) -> tuple[str, str, bytes]:
    """Return kind, code and the code's argument of a status response."""
    kind, _, rest = text.partition(b" ")
    found = _CODE.match(rest)
    return kind.decode(), found[1].decode() if found else "", (found[2] or b"") if found else b""


def _code_values(code: str, argument: bytes) -> object:
    words = argument.split()
    if code == "APPENDUID":
        return parse_numbers(words[1])
    if code == "COPYUID":
        return parse_numbers(words[1]), parse_numbers(words[2])
    return parse_numbers(words[0]) if code == "MODIFIED" else None


def _take_code(answer: Answer, code: str, argument: bytes) -> None:
    if code == "HIGHESTMODSEQ":
        answer.highest = int(argument)
    elif code == "UIDVALIDITY":
        answer.validity = int(argument)
    elif code in ("UNSEEN", "UIDNEXT"):
        answer.data[code] = int(argument)
    elif code == "COPYUID" and answer.values is None:  # of MOVE
        answer.values = _code_values(code, argument)
    elif code == "CLOSED":
        answer.updates.append(Update("CLOSED"))


def _take(answer: Answer, command: bytes, response: bytes, fetched: dict[int, dict[bytes, Value]]) -> None:
    if numbered := _NUMBERED.match(response):
        number, kind = int(numbered[1]), numbered[2].decode()
        if kind == "FETCH":
            [values] = parse_values(response[numbered.end() :])
            assert isinstance(values, list)
            items = _items(values)
            fetched.setdefault(number, {}).update(items)
            answer.updates.append(Update("FETCH", number, items))
        elif kind in ("EXISTS", "EXPUNGE"):
            answer.updates.append(Update(kind, number))
        return
    _, word, *rest = response.split(b" ", 2)
    text = rest[0] if rest else b""
    match word.decode().upper():
        case "OK" | "NO" | "BAD":
            _, code, argument = _status(response.removeprefix(b"* "))
            _take_code(answer, code, argument)
        case "BYE":
            answer.updates.append(Update("BYE"))
        case "VANISHED":
            earlier = text.startswith(b"(EARLIER) ")
            uids = parse_numbers(text.removeprefix(b"(EARLIER) "))
            answer.updates.append(Update("VANISHED", uids=uids, earlier=earlier))
            if earlier:
                answer.data["VANISHED"] = [*_list_of(answer, "VANISHED"), *uids]
        case "SEARCH" | "SORT":
            numbers = [int(one) for one in re.sub(rb"\(MODSEQ \d+\)", b"", text).split()]
            answer.data[word.decode()] = sorted(numbers) if word == b"SEARCH" else numbers
        case "ESEARCH":
            answer.data["ESEARCH"] = _extended_search(text)
        case "THREAD" | "NAMESPACE":
            answer.data[word.decode()] = text
        case "LIST" | "LSUB":
            listed = _list_of(answer, word.decode())
            answer.data[word.decode()] = sorted([*listed, _listed(text)], key=repr)
        case "STATUS":
            name, counts = parse_values(text)
            assert isinstance(counts, list)
            pairs = sorted(zip(counts[::2], counts[1::2], strict=True), key=repr)
            answer.data["STATUS"] = sorted([*_list_of(answer, "STATUS"), (_folded(name), pairs)], key=repr)
        case "ENABLED":
            answer.data["ENABLED"] = sorted(text.split())


def _list_of(answer: Answer, kind: str) -> list[object]:
    found = answer.data.get(kind, [])
    assert isinstance(found, list)
    return found


def _folded(name: Value) -> Value:
    return b"INBOX" if isinstance(name, bytes) and name.upper() == b"INBOX" else name


def _listed(text: bytes) -> object:
    attributes, delimiter, name, *_ = parse_values(text)
    assert isinstance(attributes, list)
    words = {one.lower() for one in attributes if isinstance(one, bytes)} - _USES
    if b"\\nonexistent" in words:  # it implies \Noselect (RFC 5258 section 3)
        words = (words - {b"\\nonexistent"}) | {b"\\noselect"}
    return sorted(words), delimiter, _folded(name)


def _extended_search(text: bytes) -> object:
    values = parse_values(text)[1:]  # without the tag
    uid = values[:1] == [b"UID"]
    pairs = [
        (name, parse_numbers(value) if name == b"ALL" and isinstance(value, bytes) else value)
        for name, value in zip(values[uid::2], values[uid + 1 :: 2], strict=True)
        if name != b"MODSEQ"
    ]
    return uid, sorted(pairs, key=repr)


# ---------------------------------------------------------------------------------------------- FETCH


def _items(values: Sequence[Value]) -> dict[bytes, Value]:
    items: dict[bytes, Value] = {}
    for name, value in zip(values[::2], values[1::2], strict=True):
        assert isinstance(name, bytes)
        key = name.upper()
        if key == b"FLAGS":
            assert isinstance(value, list)
            value = [*sorted({one.lower() for one in value if isinstance(one, bytes)} - {b"\\recent"})]
        elif key == b"INTERNALDATE":
            assert isinstance(value, bytes)
            moment = parse_internal_date(value)
            assert moment is not None, value
            value = moment.astimezone(dt.UTC).isoformat().encode()
        elif key == b"MODSEQ":
            value = b"*"
        items[key] = value
    return items


_FLAGS_ASKED = re.compile(rb"FETCH \S+ (?:\(.*\bFLAGS\b.*\)|ALL|FAST|FULL)|STORE (?!.*\.SILENT)", re.IGNORECASE)


def _wanted_items(command: bytes) -> frozenset[bytes] | _Everything:
    """Return the items that the command asked for. Others are updates, which a server may send when it likes."""
    if re.match(rb"(?:UID )?FETCH ", command, re.IGNORECASE):
        asked = set()
        if _FLAGS_ASKED.search(command) and b"CHANGEDSINCE" not in command:
            asked.add(b"FLAGS")
        if re.search(rb"\bUID\b", command):
            asked.add(b"UID")
        return _Everything(frozenset((b"FLAGS", b"MODSEQ", b"UID")) - asked)
    if re.match(rb"(?:UID )?STORE ", command, re.IGNORECASE) and _FLAGS_ASKED.search(command):
        return frozenset((b"FLAGS",))
    return frozenset()


class _Everything(frozenset[bytes]):
    """All items but these."""

    def __contains__(self, item: object) -> bool:
        return not super().__contains__(item)
