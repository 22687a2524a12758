"""Finds, parses and replaces header fields in raw bytes; every other byte stays as it is.

Values are parsed first and decoded afterwards (RFC 5322 section 3.4, then RFC 2047): a comma, a line end or an
``<address>`` inside an encoded-word thus creates no second address. For any header, no function here raises, and the
time is proportional to the length: every kind of malformed input is parsed in some way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from shared.mime import charsets, encoded_words
from shared.mime.tokens import QUOTED, Token, TooManyTokens, comment_end, token_budget, tokens

TOKENS = 40_000
"""Tokens that ``mailboxes`` reads of one value: some 5,000 mailboxes; limits the time for hostile input."""
IDS = 10_000
"""Message-IDs that are read of one value."""
ID_OCTETS = 998
"""Longest Message-ID: octets; a longer one does not fit into a line (RFC 5322 section 2.1.1)."""
ADDRESS_OCTETS = 1000
"""Longest address: characters (RFC 5321 section 4.5.3.1 allows 254)."""
MAX_HOPS = 50
"""Received fields of a mail; a mail with more of them loops (RFC 5321 section 6.3)."""
LINE = 76
"""Longest line that is written if it can be folded: characters (RFC 5322 section 2.1.1, RFC 2047 section 2)."""
FIRST_LINE = 45
"""The same for the first line, after the longest field name (Disposition-Notification-To)."""


# ---------------------------------------------------------------------------------------------- fields


class Field(NamedTuple):
    """A header field and its position in the header."""

    name: str  # as written
    start: int
    end: int  # after the line end and all folded lines
    value: bytes  # the raw octets after the colon, without the last line end
    value_start: int

    @property
    def key(self) -> str:
        """The name in lower case."""
        return self.name.lower()


# Blanks before the colon are obsolete (RFC 5322 section 4.5) but still in use. A line of blanks continues a field.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)\n?")
_OTHER_LINE = re.compile(rb"[^\n]*+(?:\n[ \t][^\n]*+)*+\n?")
# The same fields in one search, without spans. A folded line begins with a blank, so it never starts a field.
_FIELDS = re.compile(rb"^(?:\A\xef\xbb\xbf)?+([!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)", re.MULTILINE)
_FOLD = re.compile(rb"[\r\n]+")
BOM = "\ufeff".encode()
"""A byte order mark: some programs write it before the first field, which is read without it."""


def header_end(message: bytes) -> int:
    """Return the start of the body, after the blank line that ends the header; ``len(message)`` without one."""
    if message.startswith((b"\r\n", b"\n"), len(BOM) if message.startswith(BOM) else 0):
        return message.index(b"\n") + 1
    long = message.find(b"\n\r\n")
    short = message.find(b"\n\n", 0, long + 1 if long >= 0 else None)
    return short + 2 if short >= 0 else long + 3 if long >= 0 else len(message)


def fields(header: bytes) -> list[Field]:
    """Return the fields in order, up to the first blank line. Other lines (``From `` of an mbox) are skipped."""
    return list(iterate_fields(header))


def iterate_fields(header: bytes) -> Iterator[Field]:
    """Yield the same fields; one at a time is in memory."""
    position = len(BOM) if header.startswith(BOM) else 0
    while position < len(header) and not header.startswith((b"\r\n", b"\n"), position):
        match = _FIELD.match(header, position)
        if match is None:
            line = _OTHER_LINE.match(header, position)
            position = line.end() if line else len(header)
            continue
        value = match[2].removesuffix(b"\r")
        yield Field(match[1].decode("ascii"), position, match.end(), value, match.start(2))
        position = match.end()


def iterate_values(message: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name in lower case and the raw value of each field of a message or header, in order."""
    for match in _FIELDS.finditer(message, 0, header_end(message)):
        name, value = match.groups()
        yield name.decode("ascii").lower(), value.removesuffix(b"\r")


def by_name(message: bytes) -> dict[str, list[bytes]]:
    """Return the raw values of all fields of a message or header, by name in lower case, in order."""
    by_key: dict[str, list[bytes]] = {}
    for name, value in iterate_values(message):
        by_key.setdefault(name, []).append(value)
    return by_key


def values(header: bytes, name: str) -> list[bytes]:
    """Return the raw values of every field of this name, in order."""
    key = name.lower()
    return [value for field_name, value in iterate_values(header) if field_name == key]


def field_text(value: bytes) -> str:
    """Decode an unstructured value (Subject): unfolded, encoded-words decoded, without line ends."""
    return encoded_words.decode(charsets.read_text(_FOLD.sub(b"", value))).strip()


def splice(header: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Replace the octets ``start:end`` of each edit in ``header``; every other byte stays.

    :param edits: (start, end, new) in any order; start == end inserts.
    :raises ValueError: two edits overlap, or an edit is outside of the header.
    """
    pieces = []
    position = 0
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        if not position <= start <= end <= len(header):
            raise ValueError(f"edit {start}:{end} overlaps another one or is outside of the header")
        pieces += [header[position:start], new]
        position = end
    return b"".join([*pieces, header[position:]])


# ---------------------------------------------------------------------------------------------- mailboxes


class Mailbox(NamedTuple):
    """A mailbox of an address field (RFC 5322 section 3.4) and its position in the value."""

    name: str | None  # decoded
    address: str  # as written, without comments and needless quotes, always with an @
    start: int  # of name, address and comments, without the comma
    end: int


def mailboxes(value: bytes, limit: int | None = None) -> list[Mailbox]:
    """Return the mailboxes of an address field, in order, also those in groups (RFC 5322 sections 3.4 and 4.4).

    Tolerated: a name before a bare address, or in a comment after it, missing and additional brackets, routes,
    semicolons instead of commas, raw UTF-8. Text without an address yields nothing.

    :param limit: the number of mailboxes after which reading ends; it also ends after TOKENS tokens.
    """
    parsed: list[Mailbox] = []
    with suppress(TooManyTokens):
        parsed.extend(islice(iterate_mailboxes(value, token_budget(TOKENS)), limit))
    return parsed


def iterate_mailboxes(
    value: bytes, budget: Iterator[int] | None = None, *, joins_words: bool = False
) -> Iterator[Mailbox]:
    """Yield the same mailboxes; one at a time is in memory.

    :param budget: limits the tokens that are read (``token_budget``); all of them if it is None.
    :param joins_words: words without an address, as in ``Smith, Alex <a@b>``, belong to the name beside the next
        address: the name is ``Smith, Alex``, whatever separator is between. The name of a group ends them.
    :raises TooManyTokens: it is used up before the value ends.
    """
    text = value.decode("latin-1")
    plain = _plain_mailboxes(text)
    if plain is not None:
        return iter(plain)
    parsed = _any_mailboxes(text, budget or token_budget(len(text)))
    return _join_words(parsed) if joins_words else (item for item in parsed if isinstance(item, Mailbox))


def _join_words(parsed: Iterator[Mailbox | _Words | None]) -> Iterator[Mailbox]:
    """Yield the mailboxes; words before a mailbox become the beginning of its name."""
    words: list[str] = []
    for item in parsed:
        if isinstance(item, Mailbox):
            name = ", ".join([*words, item.name] if item.name else words)
            yield item._replace(name=name or None)
        if isinstance(item, _Words):
            words.append(item.text)
        else:
            words = []


class _Words(NamedTuple):
    """An element of an address field without an address."""

    text: str  # decoded


def _any_mailboxes(text: str, budget: Iterator[int]) -> Iterator[Mailbox | _Words | None]:
    """Yield mailboxes, words without an address, and None for the name of a group."""
    words: list[Token] = []  # the current mailbox: its name, or its address, and comments
    angle: Token | None = None  # its <address>
    tail: list[Token] = []  # the tokens after the <address>
    stream = tokens(text, budget)
    token = next(stream, None)
    while token is not None:
        if token.kind == "<":
            address, token = _read_angle(token, stream)
            if "@" not in address.text:
                (tail if angle else words).append(address)
                continue
            if angle:  # a comma is missing between two mailboxes
                yield _angle_mailbox(words, angle, [])
                words, tail = tail, []
            angle = address
            continue
        if token.kind in (",", ";") or (token.kind == ":" and angle):
            yield from _finish(words, angle, tail)
        if token.kind == ":":  # the words before it are the name of a group
            yield None
        if token.kind in (",", ";", ":"):
            words, angle, tail = [], None, []
        elif token.kind != "blank":
            (tail if angle else words).append(token)
        token = next(stream, None)
    yield from _finish(words, angle, tail)


def _finish(words: Sequence[Token], angle: Token | None, tail: Sequence[Token]) -> Iterator[Mailbox | _Words | None]:
    mailbox = _angle_mailbox(words, angle, tail) if angle else _bare_mailbox(words)
    if mailbox:
        yield mailbox
    if text := _phrase(tail if angle else () if mailbox else words):
        yield _Words(text.removesuffix("\\"))  # of an escaped separator


# Most address fields contain only ``Name <a@b>``, ``"Name" <a@b>`` and ``a@b`` in ASCII: no comments, groups,
# backslashes, encoded-words, or apostrophes around addresses. Then one match per mailbox gives the same result.
_PLAIN = re.compile(
    r"""[ \t\r\n]*+
    (?:
        (?P<quoted>"(?P<text>[ !#-\[\]-~]*+)"[ \t\r\n]*+<)
      | (?P<words>(?P<phrase>[!#-'*+\-./0-9=?@A-Z^-~]++(?>(?:[ ][!#-'*+\-./0-9=?@A-Z^-~]++)*))[ \t\r\n]*+<)
      | (?P<angle><)
    )?
    (?P<address>[!#-&*+\-./0-9=?A-Z^-~]++@[A-Za-z0-9.\-]++)
    (?P<close>>)?
    [ \t\r\n]*+(?:,|\Z)""",
    re.VERBOSE | re.ASCII,
)
_PLAIN_CHARACTERS = 10_000


def _plain_mailboxes(text: str) -> list[Mailbox] | None:
    """Parse a plain value as ``mailboxes`` does; None for any other value."""
    if len(text) > _PLAIN_CHARACTERS or "=?" in text:
        return None
    parsed = []
    position = 0
    while position < len(text):
        match = _PLAIN.match(text, position)
        if match is None:
            return None
        quoted, name, words, phrase, angle, address, close = match.groups()
        opened = quoted or words or angle
        if bool(opened) != bool(close) or len(address) > ADDRESS_OCTETS:
            return None
        start = match.start("address") - len(opened or "")
        end = match.end("close") if close else match.end("address")
        parsed.append(Mailbox((name or phrase or "").strip() or None, address, start, end))
        position = match.end()
    return parsed


def _read_angle(opening: Token, stream: Iterator[Token]) -> tuple[Token, Token | None]:
    """Read an address after its ``<``; return it as a token, and the token after it.

    Without a ``>``, the address ends at the next comma or ``<``. A route (RFC 5322 section 4.4) and ``mailto:`` are
    skipped.
    """
    start = end = opening.start
    parts: list[Token] = []
    following = None
    for token in stream:
        route = bool(parts) and parts[0].text.startswith("@")
        if token.kind == "<" or (token.kind in (",", ";") and not route):
            following = token
            break
        end = token.end
        if token.kind == ">":
            following = next(stream, None)
            break
        if token.kind == ":" and (route or (len(parts) == 1 and parts[0].text.lower() == "mailto")):
            parts = []
        elif token.kind not in ("blank", "comment"):
            parts.append(token)
    return Token("atom", _address(parts), start, end), following


def _angle_mailbox(words: Sequence[Token], angle: Token, tail: Sequence[Token]) -> Mailbox:
    name = _phrase(words) or _comment(tail)
    first = words[0] if words else angle
    last = tail[-1] if tail else angle
    return Mailbox(name, charsets.read_text(angle.text.encode("latin-1")), first.start, last.end)


def _bare_mailbox(words: Sequence[Token]) -> Mailbox | None:
    """Build a mailbox without angle brackets: the last run of words with an @ is the address."""
    runs: list[list[Token]] = []
    for word in words:
        if word.kind in ("comment", ">"):
            continue
        previous = runs[-1][-1] if runs else None
        if (
            previous
            and word.kind == "atom"
            and (
                word.text.startswith("@")
                or (previous.kind == "atom" and (previous.text.endswith("@") or previous.end == word.start))
            )
        ):
            runs[-1].append(word)
        else:
            runs.append([word])
    for run in reversed(runs):
        if any(word.kind == "atom" and "@" in word.text for word in run) and "@" in (address := _address(run)):
            before = [word for word in words if word.start < run[0].start]
            behind = [word for word in words if word.start > run[-1].start]
            return Mailbox(
                _phrase(before) or _comment(behind),
                charsets.read_text(address.encode("latin-1")),
                words[0].start,
                words[-1].end,
            )
    return None


_DOT_ATOM = re.compile(r"""[^\s"(),:;<>@\[\]\\]+""", re.ASCII)
_CONTROL_OCTET = re.compile("[\x00-\x1f\x7f]")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]+")


def _address(parts: Sequence[Token]) -> str:
    """Join tokens to ``local@domain``; '' for an invalid address. A local part is quoted only if necessary."""
    text = "".join(_quote(part.text) if part.kind == "quoted" else part.text for part in parts)
    if len(parts) == 1 and parts[0].kind == "quoted":
        text = parts[0].text.strip()  # <"support@company.com">
    if text.startswith("'") and text.endswith("'"):
        text = text[1:-1]
    local, _, domain = text.rpartition("@")
    if len(parts) > 1 and parts[0].kind == "quoted" and local == _quote(parts[0].text):
        local = parts[0].text if _DOT_ATOM.fullmatch(parts[0].text) else local
    if not local or not domain or len(text) > ADDRESS_OCTETS or _CONTROL_OCTET.search(text):
        return ""
    return f"{local}@{domain}"


def _quote(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _phrase(words: Sequence[Token]) -> str | None:
    """Join words to a decoded name."""
    text = ""
    previous: Token | None = None
    for word in words:
        if word.kind in ("comment", ">"):
            continue
        if previous and (previous.end < word.start or "quoted" in (previous.kind, word.kind)):
            text += " "
        text += word.text
        previous = word
    return _decoded(text)


def _comment(words: Sequence[Token]) -> str | None:
    """Return the decoded name in a comment after the address (the style of RFC 822)."""
    return _decoded(" ".join(word.text for word in words if word.kind == "comment"))


def _decoded(text: str) -> str | None:
    name = encoded_words.decode(charsets.read_text(text.encode("latin-1")))
    return _CONTROL.sub(" ", name).strip() or None


_BLANKS = re.compile("[ \t]+")


def format_mailbox(name: str | None, address: str) -> bytes:
    """Format ``"name" <address>`` for a header field, CRLF-folded. Names beyond ASCII become encoded-words (RFC 2047).

    Control characters are removed from both, so neither can end the line. An address beyond ASCII stays UTF-8
    (RFC 6532). The first line leaves space for the field's name.
    """
    local, _, domain = _CONTROL.sub("", address).rpartition("@")
    if not _DOT_ATOM.fullmatch(local) and not QUOTED.fullmatch(local):
        local = _quote(local)
    domain = re.sub(r'[\s<>(),;"\\@]', "", domain)
    end = f"<{local}@{domain}>"
    name = _BLANKS.sub(" ", _CONTROL.sub("", name or "")).strip()
    if not name:
        return end.encode("utf-8", "replace")
    quoted = _quote(name)
    if name.isascii() and "=?" not in name and max(map(len, quoted.split(" "))) < FIRST_LINE:
        words = quoted.split(" ")
    else:
        words = encoded_words.encode(name, FIRST_LINE, LINE - 1)
    lines = [""]
    for word in [*words, end]:
        available = (LINE if len(lines) > 1 else FIRST_LINE) - len(lines[-1])
        if lines[-1] and len(word) >= available:
            lines.append(" " + word)
        else:
            lines[-1] += (" " if lines[-1] else "") + word
    return "\r\n".join(lines).encode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------- message ids

_ID_START = re.compile(r"[<(]")
_ID = re.compile(r"<([^<>]*)(>?)")
_NOT_IN_ID = re.compile("[\x00-\x20\x7f]+")


def message_ids(value: bytes, limit: int = IDS) -> list[str]:
    """Return the ids of Message-ID, In-Reply-To or References in order, without angle brackets.

    Folds and blanks inside an id are removed, comments and phrases are skipped. Without any bracket, words with an @
    are ids. Encoded-words are decoded first: RFC 2047 section 5 forbids them here, but Python's library writes long ids
    as encoded-words.

    :param limit: the number of ids after which reading ends.
    """
    text = encoded_words.decode(charsets.read_text(_FOLD.sub(b"", value)))
    candidates: list[str] = []
    position = 0
    comments = True
    while len(candidates) < limit and (mark := _ID_START.search(text, position)):
        position = mark.end()
        if mark[0] == "<":
            match = _ID.match(text, mark.start())
            if match:
                position = match.end()
                candidates.append(match[1] if match[2] else match[1].strip().partition(" ")[0])
        elif comments:
            end = comment_end(text, mark.start())
            comments = end > 0
            position = end or position
    if "<" not in text:
        candidates = [word for word in re.split(r"[\s,;]+", text[: 100 * ID_OCTETS]) if "@" in word][:limit]
    ids = (_NOT_IN_ID.sub("", candidate) for candidate in candidates)
    return [message_id for message_id in ids if 0 < len(message_id.encode("utf-8", "replace")) <= ID_OCTETS]
