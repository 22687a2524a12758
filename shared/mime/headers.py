"""Header fields in raw bytes: find them, read them, replace them, and leave every other byte as it is.

Values are parsed first and decoded after (RFC 5322 section 3.4, then RFC 2047), so that a comma, a line end or a
``<address>`` inside an encoded-word makes no second address. Whatever stands in a header, nothing here raises and
everything takes time in proportion to its length: every kind of malformed input has a reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shared.mime import encoded_words

TOKENS = 40_000
"""No more tokens of one value are read: some 5,000 mailboxes, and a bound in time for hostile input."""
IDS = 10_000
"""No more message ids of one value are read."""
ID_OCTETS = 998
"""A longer message id is none: it would not fit into a line (RFC 5322 section 2.1.1)."""
ADDRESS_OCTETS = 1000
"""A longer address is none (RFC 5321 section 4.5.3.1 allows 254)."""
MAX_HOPS = 50
"""Servers that have passed a mail on (Received fields); with more of them it goes round (RFC 5321 section 6.3)."""
LINE = 76
"""Written lines are no longer, where they can be folded (RFC 5322 section 2.1.1, RFC 2047 section 2)."""
FIRST_LINE = 45
"""… and the first one leaves room for the longest field name (Disposition-Notification-To)."""


# ---------------------------------------------------------------------------------------------- fields


class Field(NamedTuple):
    """A header field. name: as written. start, end: its span in the header, with its line end and folded lines.

    value: what follows the colon, raw, without the last line end. value_start: where it stands in the header.
    """

    name: str
    start: int
    end: int
    value: bytes
    value_start: int

    @property
    def key(self) -> str:
        """The name in lower case."""
        return self.name.lower()


# Blanks before the colon are obsolete (RFC 5322 section 4.5) and still sent. A line of blanks alone continues a field.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)\n?")
_OTHER_LINE = re.compile(rb"[^\n]*+(?:\n[ \t][^\n]*+)*+\n?")
# The same fields all at once, for whoever needs no spans. A folded line begins with a blank and so is no field's start.
_FIELDS = re.compile(rb"^([!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)", re.MULTILINE)
_FOLD = re.compile(rb"[\r\n]+")


def header_end(message: bytes) -> int:
    """Where the body begins: just after the blank line that ends the header; ``len(message)`` if there is none."""
    if message.startswith((b"\r\n", b"\n")):
        return message.index(b"\n") + 1
    long = message.find(b"\n\r\n")
    short = message.find(b"\n\n", 0, long + 1 if long >= 0 else None)
    return short + 2 if short >= 0 else long + 3 if long >= 0 else len(message)


def fields(header: bytes) -> list[Field]:
    """The fields in order, up to the first blank line. Other lines (``From `` of an mbox) are passed over."""
    found = []
    position = 0
    while position < len(header) and not header.startswith((b"\r\n", b"\n"), position):
        match = _FIELD.match(header, position)
        if match is None:
            line = _OTHER_LINE.match(header, position)
            position = line.end() if line else len(header)
            continue
        value = match[2].removesuffix(b"\r")
        found.append(Field(match[1].decode("ascii"), position, match.end(), value, match.start(2)))
        position = match.end()
    return found


def by_name(message: bytes) -> dict[str, list[bytes]]:
    """The raw values of ``fields`` by name in lower case, in order; of a message or its header."""
    found: dict[str, list[bytes]] = {}
    for name, value in _FIELDS.findall(message[: header_end(message)]):
        found.setdefault(name.decode("ascii").lower(), []).append(value.removesuffix(b"\r"))
    return found


def values(header: bytes, name: str) -> list[bytes]:
    """The raw values of every field of this name, in order."""
    key = name.lower().encode()
    return [
        value.removesuffix(b"\r")
        for found, value in _FIELDS.findall(header[: header_end(header)])
        if found.lower() == key
    ]


def field_text(value: bytes) -> str:
    """An unstructured value (Subject) as text: unfolded, encoded-words read, no line end in it."""
    return encoded_words.decode(encoded_words.read_text(_FOLD.sub(b"", value))).strip()


def splice(header: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """``header`` with the octets ``start:end`` of each edit replaced; everything else byte for byte.

    :param edits: (start, end, new) in any order; start == end inserts.
    :raises ValueError: two edits overlap or one lies outside.
    """
    pieces = []
    position = 0
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        if not position <= start <= end <= len(header):
            raise ValueError(f"edit {start}:{end} overlaps another one or lies outside of the header")
        pieces += [header[position:start], new]
        position = end
    return b"".join([*pieces, header[position:]])


# ---------------------------------------------------------------------------------------------- tokens


class _Token(NamedTuple):
    """kind: one of blank, atom, encoded, quoted, comment, or the special character itself.

    text: without quotes or parentheses and their backslashes; one character an octet (latin-1).
    """

    kind: str
    text: str
    start: int
    end: int


# An encoded-word is one token whatever stands in it, though a phrase must not hold it like that (RFC 2047 5 (3)).
_TOKEN = re.compile(
    r"""
    (?P<blank>\s+)
  | (?P<encoded>=\?[^?\s]*\?[A-Za-z]\?[^?\r\n]*\?=)
  | (?P<atom>[^\s"(),:;<>\[\]]+ | \[[^\[\],<>"]*\])
  | (?P<special>.)""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_PARENTHESIS = re.compile(r"\\.|[()]", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_FOLDED = re.compile(r"[\r\n]+")


def _tokens(text: str) -> Iterator[_Token]:
    """Tokens of RFC 5322 section 3.2. A quote or parenthesis that nothing closes is an ordinary character, and so is
    each after it: that keeps a long run of them linear."""
    position = 0
    quotes = comments = True
    for _ in range(TOKENS):
        match = _TOKEN.match(text, position)
        if match is None:
            return
        start, position = match.span()
        kind, found = match.lastgroup or "", match[0]
        if kind == "special":
            kind = found if found in "<>,:;" else "atom"
            if found == '"':
                string = _QUOTED.match(text, start) if quotes else None
                quotes = string is not None
                if string:
                    kind, found, position = "quoted", _unescape(string[1]), string.end()
                else:
                    kind, found = "blank", " "
            elif found == "(" and comments:
                end = _comment_end(text, start)
                comments = end > 0
                if comments:
                    kind, found, position = "comment", _unescape(text[start + 1 : end - 1]), end
        yield _Token(kind, found, start, position)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", _FOLDED.sub("", text))


def _comment_end(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at ``start``, comments nest; 0 if none does."""
    depth = 0
    for found in _PARENTHESIS.finditer(text, start):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0:
            return found.end()
    return 0


# ---------------------------------------------------------------------------------------------- mailboxes


class Mailbox(NamedTuple):
    """name: decoded, None if it has none. address: as written, comments and needless quotes left out, always with an @.

    start, end: the span of the whole mailbox (name, address, comments; no comma) in the value.
    """

    name: str | None
    address: str
    start: int
    end: int


def mailboxes(value: bytes) -> list[Mailbox]:
    """Every mailbox of an address field, in order, those in groups too (RFC 5322 sections 3.4 and 4.4, and worse).

    Read as well: a name before or in a comment behind a bare address, a bracket too many or too few, routes, semicolons
    for commas, raw UTF-8. What holds no address yields nothing.
    """
    text = value.decode("latin-1")
    plain = _plain_mailboxes(text)
    if plain is not None:
        return plain
    tokens = list(_tokens(text))
    found: list[Mailbox] = []
    words: list[_Token] = []  # of the mailbox being read: its name, or its address, and comments
    angle: _Token | None = None  # its <address>
    index = 0

    def finish(tail: Sequence[_Token]) -> None:
        mailbox = _angle_mailbox(words, angle, tail) if angle else _bare_mailbox(words)
        if mailbox:
            found.append(mailbox)

    tail: list[_Token] = []  # what follows the <address>
    while index < len(tokens):
        token = tokens[index]
        index += 1
        if token.kind == "<":
            address, index = _read_angle(tokens, index - 1)
            if "@" not in address.text:
                (tail if angle else words).append(address)
                continue
            if angle:  # no comma between two mailboxes
                finish([])
                words, tail = tail, []
            angle = address
        elif token.kind in (",", ";"):
            finish(tail)
            words, angle, tail = [], None, []
        elif token.kind == ":":  # what precedes it is the name of a group, and no name of a person
            if angle:
                finish(tail)
            words, angle, tail = [], None, []
        elif token.kind != "blank":
            (tail if angle else words).append(token)
    finish(tail)
    return found


# Most address fields hold nothing but ``Name <a@b>``, ``"Name" <a@b>`` and ``a@b`` in ASCII: no comments, groups,
# backslashes, encoded-words, apostrophes around addresses. Then one match a mailbox reads what the tokens would.
_PLAIN = re.compile(
    r"""[ \t\r\n]*+
    (?:
        (?P<quoted>"(?P<text>[ !#-\[\]-~]*+)"[ \t\r\n]*+<)
      | (?P<words>(?P<phrase>[!#-'*+\-./0-9=?@A-Z^-~]++(?:[ ][!#-'*+\-./0-9=?@A-Z^-~]++)*+)[ \t\r\n]*+<)
      | (?P<angle><)
    )?
    (?P<address>[!#-&*+\-./0-9=?A-Z^-~]++@[A-Za-z0-9.\-]++)
    (?P<close>>)?
    [ \t\r\n]*+(?:,|\Z)""",
    re.VERBOSE | re.ASCII,
)
_PLAIN_CHARACTERS = 10_000


def _plain_mailboxes(text: str) -> list[Mailbox] | None:
    """What ``mailboxes`` makes of a plain value; None for any other."""
    if len(text) > _PLAIN_CHARACTERS or "=?" in text:
        return None
    found = []
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
        found.append(Mailbox((name or phrase or "").strip() or None, address, start, end))
        position = match.end()
    return found


def _read_angle(tokens: Sequence[_Token], index: int) -> tuple[_Token, int]:
    """Read from the ``<`` at ``index``: the address as a token, and the index of the token after it.

    Without a ``>`` it ends at the next comma or ``<``. A route (RFC 5322 section 4.4) or ``mailto:`` is left out.
    """
    start = end = tokens[index].start
    parts: list[_Token] = []
    index += 1
    while index < len(tokens):
        token = tokens[index]
        route = bool(parts) and parts[0].text.startswith("@")
        if token.kind == "<" or (token.kind in (",", ";") and not route):
            break
        index += 1
        end = token.end
        if token.kind == ">":
            break
        if token.kind == ":" and (route or (len(parts) == 1 and parts[0].text.lower() == "mailto")):
            parts = []
        elif token.kind not in ("blank", "comment"):
            parts.append(token)
    return _Token("atom", _address(parts), start, end), index


def _angle_mailbox(words: Sequence[_Token], angle: _Token, tail: Sequence[_Token]) -> Mailbox:
    name = _phrase(words) or _comment(tail)
    first = words[0] if words else angle
    last = tail[-1] if tail else angle
    return Mailbox(name, encoded_words.read_text(angle.text.encode("latin-1")), first.start, last.end)


def _bare_mailbox(words: Sequence[_Token]) -> Mailbox | None:
    """A mailbox without angle brackets: the last run of words that holds an @ is the address."""
    runs: list[list[_Token]] = []
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
                encoded_words.read_text(address.encode("latin-1")),
                words[0].start,
                words[-1].end,
            )
    return None


_DOT_ATOM = re.compile(r"""[^\s"(),:;<>@\[\]\\]+""", re.ASCII)
_CONTROL_OCTET = re.compile("[\x00-\x1f\x7f]")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]+")


def _address(parts: Sequence[_Token]) -> str:
    """``local@domain`` from its tokens, or '' if that is none. A local part is quoted only where it must be."""
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


def _phrase(words: Sequence[_Token]) -> str | None:
    """The decoded name that these words make."""
    text = ""
    previous: _Token | None = None
    for word in words:
        if word.kind in ("comment", ">"):
            continue
        if previous and (previous.end < word.start or "quoted" in (previous.kind, word.kind)):
            text += " "
        text += word.text
        previous = word
    return _decoded(text)


def _comment(words: Sequence[_Token]) -> str | None:
    """The decoded name in a comment behind the address (RFC 822's way of naming)."""
    return _decoded(" ".join(word.text for word in words if word.kind == "comment"))


def _decoded(text: str) -> str | None:
    name = encoded_words.decode(encoded_words.read_text(text.encode("latin-1")))
    return _CONTROL.sub(" ", name).strip() or None


_BLANKS = re.compile("[ \t]+")


def format_mailbox(name: str | None, address: str) -> bytes:
    """``"name" <address>`` for a header field, CRLF-folded. Names beyond ASCII become encoded-words (RFC 2047).

    Control characters are dropped from both, so nothing can end the line. An address beyond ASCII stays UTF-8
    (RFC 6532). The first line leaves room for the field's name.
    """
    local, _, domain = _CONTROL.sub("", address).rpartition("@")
    if not _DOT_ATOM.fullmatch(local) and not _QUOTED.fullmatch(local):
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
        room = (LINE if len(lines) > 1 else FIRST_LINE) - len(lines[-1])
        if lines[-1] and len(word) >= room:
            lines.append(" " + word)
        else:
            lines[-1] += (" " if lines[-1] else "") + word
    return "\r\n".join(lines).encode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------- message ids

_ID_START = re.compile(r"[<(]")
_ID = re.compile(r"<([^<>]*)(>?)")
_NOT_IN_ID = re.compile("[\x00-\x20\x7f]+")


def message_ids(value: bytes) -> list[str]:
    """The ids of Message-ID, In-Reply-To or References in order, without angle brackets.

    Folds and blanks inside an id go, comments and phrases around are passed over. Without any bracket, words with an @.
    """
    text = encoded_words.read_text(_FOLD.sub(b"", value))
    found: list[str] = []
    position = 0
    comments = True
    while len(found) < IDS and (mark := _ID_START.search(text, position)):
        position = mark.end()
        if mark[0] == "<":
            match = _ID.match(text, mark.start())
            if match:
                position = match.end()
                found.append(match[1] if match[2] else match[1].strip().partition(" ")[0])
        elif comments:
            end = _comment_end(text, mark.start())
            comments = end > 0
            position = end or position
    if "<" not in text:
        found = [word for word in re.split(r"[\s,;]+", text[: 100 * ID_OCTETS]) if "@" in word]
    ids = (_NOT_IN_ID.sub("", id_) for id_ in found)
    return [id_ for id_ in ids if 0 < len(id_.encode("utf-8", "replace")) <= ID_OCTETS]
