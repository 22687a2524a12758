"""Reads the arguments of a command from left to right (RFC 3501 section 9, RFC 9051 section 9).

A command is one text, in which a NUL stands for each literal; no line of a client may contain this octet. Each
argument is one match of a regular expression that never goes back, so the time is proportional to the text.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from services.imap_out.dates import parse_internal_date
from services.imap_out.grammar.errors import CommandError
from services.imap_out.number_sets import NumberSet, parse_set
from shared.imap.names import decode_name, encode_utf7, is_inbox

LITERAL = b"\0"
"""Stands for a literal in the text of a command."""
MAX_FLAGS = 200
"""Flags in one command."""
MAX_NAME = 1_000
"""Longest name of a mailbox in a command: octets; a line of LIST with it still fits into 8,192 octets (RFC 2683)."""

_ATOM = re.compile(rb'[^ (){%*"\\\]\x00-\x1f\x7f-\xff]++')
_ASTRING = re.compile(rb'[^ (){%*"\\\x00-\x1f\x7f]++')  # 8-bit octets: some clients send names so
_PATTERN = re.compile(rb'[^ (){"\\\x00-\x1f\x7f]++')
_QUOTED = re.compile(rb'"((?:[^"\\\r\n\0]++|\\[^\r\n\0])*+)"')
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_NUMBER = re.compile(rb"\d{1,20}+(?![^ )])")
_SET = re.compile(rb"(?:[\d*:,]++|\$)(?![^ )])")
_FLAG = re.compile(rb'\\?+[^ (){%*"\\\]\x00-\x1f\x7f-\xff]++')
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SPACES = re.compile(rb" ++")
_SYSTEM_FLAGS = {flag.lower(): flag for flag in ("\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft")}


class ArgumentReader:
    """The arguments of one command.

    :ivar position: of the next octet in the text.
    """

    __slots__ = ("_literals", "_next_literal", "position", "text", "utf8")

    def __init__(self, text: bytes, literals: Sequence[bytes] = (), position: int = 0, utf8: bool = False) -> None:
        """:param utf8: names are UTF-8, not modified UTF-7 (RFC 6855 section 3, RFC 9051 section 5.1)."""
        self.text = text
        self.position = position
        self.utf8 = utf8
        self._literals = literals
        self._next_literal = 0

    # ------------------------------------------------------------------------------------------ marks

    def ends(self) -> bool:
        """Whether nothing but blanks follows."""
        return self.position >= len(self.text) or not self.text[self.position :].strip(b" ")

    def end(self) -> None:
        """:raises CommandError: something follows."""
        if not self.ends():
            raise CommandError("the command has more arguments than it takes, or one of them is malformed")

    def space(self, before: str) -> None:
        """Skip the blank before an argument. :raises CommandError: there is none."""
        found = _SPACES.match(self.text, self.position)
        if found is None or found.end() >= len(self.text):
            raise CommandError(f"{before} is missing")
        self.position = found.end()

    def skips(self, mark: bytes) -> bool:
        """Skip this mark if it follows."""
        if self.text.startswith(mark, self.position):
            self.position += len(mark)
            return True
        return False

    def skips_space(self) -> bool:
        """Skip blanks, if an argument follows them."""
        found = _SPACES.match(self.text, self.position)
        if found is None or found.end() >= len(self.text) or self.text[found.end()] in b")":
            return False
        self.position = found.end()
        return True

    def expect(self, mark: bytes, what: str) -> None:
        """Skip a mark. :raises CommandError: another octet follows."""
        if not self.skips(mark):
            raise CommandError(f"{what}: {mark.decode()!r} is missing")

    def peek(self) -> bytes:
        """Return the next octet; b"" at the end."""
        return self.text[self.position : self.position + 1]

    def match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Skip what a pattern matches here; None if it matches nothing."""
        found = pattern.match(self.text, self.position)
        if found is not None:
            self.position = found.end()
        return found

    # ------------------------------------------------------------------------------------------ values

    def atom(self, what: str) -> str:
        """Read an atom, in upper case."""
        found = self.match(_ATOM)
        if found is None:
            raise CommandError(f"{what} is missing or no atom")
        return found[0].decode("ascii").upper()

    def skips_atom(self, name: bytes) -> bool:
        """Skip this atom, in upper case, if it follows."""
        found = _ATOM.match(self.text, self.position)
        if found is None or found[0].upper() != name:
            return False
        self.position = found.end()
        return True

    def string(self, what: str) -> bytes:
        """Read a quoted string or a literal."""
        value = self._string()
        if value is None:
            raise CommandError(f"{what} is missing or no string")
        return value

    def astring(self, what: str) -> bytes:
        """Read an atom, a quoted string or a literal, as it is."""
        value = self._string()
        if value is not None:
            return value
        found = self.match(_ASTRING)
        if found is None:
            raise CommandError(f"{what} is missing or no string")
        return found[0]

    def nstring(self, what: str) -> bytes | None:
        """Read a string, or NIL as None."""
        return None if self.skips_atom(b"NIL") else self.string(what)

    def _string(self) -> bytes | None:
        found = self.match(_QUOTED)
        if found is not None:
            return _ESCAPED.sub(rb"\1", found[1]) if b"\\" in found[1] else found[1]
        if self.peek() == LITERAL and self._next_literal < len(self._literals):
            self.position += 1
            self._next_literal += 1
            return self._literals[self._next_literal - 1]
        return None

    def number(self, what: str, limit: int = 2**32, least: int = 0) -> int:
        """Read a number of ``least`` at least and less than ``limit``."""
        found = self.match(_NUMBER)
        if found is None or not least <= int(found[0]) < limit:
            raise CommandError(f"{what} is missing, or no number from {least} to {limit - 1}")
        return int(found[0])

    def modseq(self, what: str, least: int = 0) -> int:
        """Read a mod-sequence (RFC 7162 section 7)."""
        return self.number(what, 2**63, least)

    def numbers(self, what: str = "the set of mails", saved: bool = True) -> NumberSet:
        """Read a set of message numbers or UIDs. :param saved: ``$`` is allowed."""
        found = self.match(_SET)
        numbers = parse_set(found[0]) if found else None
        if numbers is None or (numbers.saved and not saved):
            raise CommandError(f"{what} is missing or malformed")
        return numbers

    def mailbox(self, what: str = "the name of the mailbox") -> str:
        """Read the name of a mailbox. INBOX in any case is ``INBOX`` (RFC 3501 section 5.1)."""
        raw = self.astring(what)
        name = decode_mailbox(raw, self.utf8)
        if name is None:
            form = "UTF-8" if self.utf8 else "modified UTF-7 (RFC 3501 section 5.1.3)"
            raise CommandError(f"{what} is not {form}, is too long, or has control characters", "NO", "CANNOT")
        return name

    def pattern(self, what: str) -> str:
        """Read a name with ``*`` and ``%`` (RFC 3501 section 9, list-mailbox)."""
        value = self._string()
        if value is None:
            found = self.match(_PATTERN)
            if found is None:
                raise CommandError(f"{what} is missing or no pattern")
            value = found[0]
        if len(value) > MAX_NAME:
            raise CommandError(f"{what} is too long")
        return decode_name(value, self.utf8)

    def flags(self, what: str = "the flags") -> tuple[str, ...]:
        """Read flags in parentheses, or without them up to the end (RFC 3501 section 6.4.6)."""
        if not self.skips(b"("):
            flags = [self._flag(what)]
            while self.skips_space():
                flags.append(self._flag(what))
            return _distinct(flags, what)
        flags = []
        while not self.skips(b")"):
            flags.append(self._flag(what))
            self.skips_space()
        return _distinct(flags, what)

    def _flag(self, what: str) -> str:
        found = self.match(_FLAG)
        if found is None:
            raise CommandError(f"{what} are missing or malformed")
        flag = found[0].decode("ascii")
        if flag.startswith("\\"):
            known = _SYSTEM_FLAGS.get(flag.lower())
            if known is None:
                raise CommandError(f"{what}: of those with \\ a client sets {' '.join(_SYSTEM_FLAGS.values())} only")
            return known
        return flag

    def internal_date(self, what: str) -> datetime:
        """Read a date with time and zone in quotes (RFC 3501 section 9, date-time)."""
        moment = parse_internal_date(self.string(what))
        if moment is None:
            raise CommandError(f"{what} is no date such as ' 7-Feb-1994 21:52:25 -0800'")
        return moment

    def base64(self, what: str) -> bytes:
        """Read the rest of the command as base64; ``=`` is the empty string (RFC 4959 section 3)."""
        rest = self.text[self.position :].strip(b" ")
        self.position = len(self.text)
        try:
            return b"" if rest == b"=" else binascii.a2b_base64(rest, strict_mode=True)
        except binascii.Error as error:
            raise CommandError(f"{what} is no base64") from error


def _distinct(flags: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the flags without repetitions; case does not matter (RFC 9051 section 2.3.2)."""
    if len(flags) > MAX_FLAGS:
        raise CommandError(f"{what} are more than {MAX_FLAGS}")
    known: dict[str, str] = {}
    for flag in flags:
        known.setdefault(flag.lower(), flag)
    return tuple(known.values())


@lru_cache(200)
def decode_mailbox(raw: bytes, utf8: bool) -> str | None:
    """Return the name of a mailbox; None if it is not in the form that the session has, too long, or has controls.

    Raw UTF-8 is accepted in both: some clients send it, and no name in modified UTF-7 has octets above 127.
    """
    if len(raw) > MAX_NAME:
        return None
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not utf8 and name.isascii():
        name = decode_name(raw)
        if encode_utf7(name) != raw:
            return None
    if _CONTROL.search(name):  # RFC 5198 section 2, which RFC 9051 section 5.1 wants
        return None
    return "INBOX" if is_inbox(name) else name
