"""Parses the responses of IMAP servers (RFC 3501 and 9051, section 7), malformed ones too. Pure.

A response arrives as parts: fragments of text, and the literals between them. A value is an atom (str), a string
(bytes), NIL (None), a list, or the text of a mail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shared.provider.mail_text import MailText
from shared.provider.reply_texts import sounds_temporary, trim

MAX_DEPTH = 20
"""Depth of lists in lists that is parsed; FETCH needs 1, LIST 2."""
MAX_VALUES = 5_000
"""Values of a response that are parsed: bounds memory and time; a folder may have some hundred keywords."""


class Literal(NamedTuple):
    """A string that was announced with its length (RFC 3501 section 4.3)."""

    octets: bytes


Part = bytes | Literal | MailText
Value = None | str | bytes | MailText | list["Value"]

_UNTAGGED = re.compile(rb"\* (?:(\d{1,18}) )?([A-Za-z][A-Za-z0-9_.-]*)(?: +|$)")
_TAGGED = re.compile(rb"([^ *+(){%\"\\\x00-\x1f\x7f-\xff]+) (OK|NO|BAD)(?: +|$)", re.IGNORECASE)
_CODE = re.compile(rb"\[([^\] ]+)(?: +([^\]]*))?\] *")
_STATUS = frozenset({"OK", "NO", "BAD", "BYE", "PREAUTH"})
_TOKEN = re.compile(
    rb' *(?:(?P<open>\()|(?P<close>\))|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<atom>(?:[^ ()\[\]"]|\[[^\]]*\])+))', re.DOTALL
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_TEMPORARY_CODES = frozenset(
    {"UNAVAILABLE", "INUSE", "LIMIT", "OVERQUOTA", "THROTTLED", "SERVERBUG", "IN-USE", "LOGIN-DELAY", "SYS/TEMP"}
)
"""RFC 5530 section 3 and RFC 9051 section 7.1; THROTTLED (Gmail, Exchange); OVERQUOTA is also Gmail's daily limit of
octets; the last three are those of POP3, which some servers send here, too."""
_PERMANENT_CODES = frozenset(
    {"AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED", "PRIVACYREQUIRED", "NOPERM", "NONEXISTENT", "CANNOT"}
)
WRONG_CREDENTIALS = frozenset({"AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED"})
"""Codes of a refused login that say that another try with the same credentials is in vain (RFC 5530)."""


class MalformedResponse(ValueError):
    """The response cannot be parsed."""


@dataclass(slots=True)
class Response:
    """A response. tag: ``*``, ``+`` or the tag of the command that it ends.

    kind: OK, NO, BAD, BYE, PREAUTH, or the name of the data, in upper case. number: before that name.
    """

    tag: str
    kind: str = ""
    number: int | None = None
    code: str = ""  # of OK, NO, …: the response code in upper case, '' if there is none
    arguments: bytes = b""  # of the code
    text: bytes = b""  # for people; of data: the rest of the first fragment
    parts: Sequence[Part] = field(default=())  # of data: everything after its name

    @property
    def shown(self) -> str:
        """The text and the code for people, trimmed."""
        return f"[{self.code}] {trim(self.text)}" if self.code else trim(self.text)

    @property
    def is_temporary(self) -> bool:
        """Whether a refusal says that it may pass, by its code or by its words."""
        if self.code in _TEMPORARY_CODES:
            return True
        return self.code not in _PERMANENT_CODES and sounds_temporary(trim(self.text))


def announces_data(line: bytes) -> bool:
    """Whether this is the first line of data, in which literals may follow; not of a text for people."""
    found = _UNTAGGED.match(line)
    return found is not None and found[2].upper().decode() not in _STATUS


def parse_response(parts: Sequence[Part]) -> Response:
    """Parse a response. :param parts: the first one is a fragment. :raises MalformedResponse: it is none of IMAP's."""
    first, *rest = parts
    if not isinstance(first, bytes):
        raise MalformedResponse
    if first[:1] == b"+":
        return Response("+", text=first[1:].strip())
    if tagged := _TAGGED.match(first):
        return _status(tagged[1].decode(), tagged[2], first[tagged.end() :])
    untagged = _UNTAGGED.match(first)
    if untagged is None:
        raise MalformedResponse
    kind, text = untagged[2].upper().decode(), first[untagged.end() :]
    if kind in _STATUS and untagged[1] is None:
        return _status("*", untagged[2], text)
    number = None if untagged[1] is None else int(untagged[1])
    return Response("*", kind, number, text=text, parts=(text, *rest))


def _status(tag: str, kind: bytes, text: bytes) -> Response:
    code = _CODE.match(text)
    if code is None:
        return Response(tag, kind.upper().decode(), text=text)
    name = code[1].upper().decode("latin-1")
    return Response(tag, kind.upper().decode(), code=name, arguments=code[2] or b"", text=text[code.end() :])


def parse_values(parts: Sequence[Part]) -> list[Value]:
    """Parse the values of a response. :raises MalformedResponse: parentheses or quotes do not match, or too many."""
    top: list[Value] = []
    stack = [top]
    count = 0
    for part in parts:
        if isinstance(part, Literal):
            stack[-1].append(part.octets)
        elif isinstance(part, MailText):
            stack[-1].append(part)
        else:
            count += _parse_fragment(part, stack, MAX_VALUES - count)
    if len(stack) > 1:
        raise MalformedResponse
    return top


def _parse_fragment(fragment: bytes, stack: list[list[Value]], most: int) -> int:
    """Append the values of a fragment to the innermost list. Return their number."""
    position, end, count = 0, len(fragment.rstrip(b" ")), 0
    while position < end:
        token = _TOKEN.match(fragment, position)
        count += 1
        if token is None or count > most:
            raise MalformedResponse
        position = token.end()
        match token.lastgroup:
            case "open":
                inner: list[Value] = []
                stack[-1].append(inner)
                stack.append(inner)
                if len(stack) > MAX_DEPTH:
                    raise MalformedResponse
            case "close":
                if len(stack) == 1:
                    raise MalformedResponse
                stack.pop()
            case "quoted":
                stack[-1].append(_ESCAPED.sub(rb"\1", token["quoted"]))
            case _:
                atom = token["atom"].decode("latin-1")
                stack[-1].append(None if atom.upper() == "NIL" else atom)
    return count


def fetch_attributes(response: Response) -> Mapping[str, Value]:
    """Return the items of a FETCH response by their names in upper case (RFC 3501 section 7.4.2).

    Of an item that is there twice, the first one counts, so that nothing behind a text can replace it.

    :raises MalformedResponse: it is no list of names and values.
    """
    match parse_values(response.parts):
        case [list(items)] if len(items) % 2 == 0:
            found: dict[str, Value] = {}
            for name, value in zip(items[::2], items[1::2], strict=True):
                if not isinstance(name, str):
                    raise MalformedResponse
                found.setdefault(name.upper(), value)
            return found
    raise MalformedResponse


def number_of(value: Value) -> int | None:
    """Return the number that an atom is, up to 18 digits; None if it is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        return int(value)
    return None


@dataclass(frozen=True, slots=True)
class ListedFolder:
    """A folder in a LIST response (RFC 3501 section 7.2.2). attributes: in lower case. raw: its name on the wire."""

    attributes: frozenset[str]
    delimiter: str
    raw: bytes


def listed_folder(response: Response) -> ListedFolder | None:
    """Parse a LIST response; None if it is malformed."""
    try:
        values = parse_values(response.parts)
    except MalformedResponse:
        return None
    match values:
        case [list(attributes), delimiter, name, *_]:
            raw = name.encode("latin-1") if isinstance(name, str) else b"NIL" if name is None else name
            if isinstance(raw, bytes) and raw:
                shown = delimiter.decode("latin-1") if isinstance(delimiter, bytes) else ""
                marks = frozenset(mark.lower() for mark in attributes if isinstance(mark, str))
                return ListedFolder(marks, shown, raw)
    return None
