"""Parses the replies of POP3 servers (RFC 1939, RFC 2449), malformed ones too, in pieces cut anywhere. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.provider.mail_text import MailText
from shared.provider.reply_texts import sounds_temporary
from shared.provider.retrieval import Listing

NUMBER_DIGITS = 18
"""Longest number: digits; it fits into a bigint."""
ID_CHARACTERS = 255
"""Longest unique id that is stored as it is: characters; RFC 1939 section 7 allows 70."""

_END = b"\r\n.\r\n"
_CODE = re.compile(r"\[([A-Z0-9/_-]+)\]", re.IGNORECASE)
_TEMPORARY_CODES = {"IN-USE", "LOGIN-DELAY", "SYS/TEMP"}
_PERMANENT_CODES = {"AUTH", "SYS/PERM"}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities that CAPA announced."""

    answered: bool = False  # the server knows CAPA
    pipelining: bool = False
    uidl: bool = False
    user: bool = False  # login by USER and PASS
    sasl: frozenset[str] = frozenset()  # names of the mechanisms
    stls: bool = False
    login_delay: int | None = None  # seconds between two logins
    login_delay_by_user: bool = False  # the delay may change after the login (RFC 2449 section 6.5)

    def shown(self) -> str:
        """Describe the relevant capabilities in words."""
        words = ["PIPELINING" if self.pipelining else "no PIPELINING: mails are fetched one by one"]
        if self.login_delay is not None:
            words.append(f"at least {self.login_delay} s between two logins")
        return "; ".join(words)


@dataclass(slots=True)
class Pop3ListReply:
    """The replies to STAT and UIDL, not parsed yet. uidls: the unique ids by number, once they are parsed."""

    count: int  # of mails, from STAT
    text: bytearray
    digest: bytes  # the same for the same list
    position_keyed: bool = False  # reply to LIST of a server without UIDL: the position identifies a mail
    uidls: dict[int, str] = field(default_factory=dict)

    def parse(self) -> Listing:
        """Parse the list: numbers and unique ids ('' if missing).

        It is complete if all lines are well-formed and STAT has the same count.
        """
        lines = bytes(self.text).splitlines()
        if self.position_keyed:
            sizes = parse_list(lines)
            return self._listing(tuple((number, str(number)) for number in sizes), well_formed=True)
        mails, well_formed = parse_uidl(lines)
        self.uidls = dict(mails)
        return self._listing(mails, well_formed)

    def _listing(self, mails: tuple[tuple[int, str], ...], well_formed: bool) -> Listing:
        if well_formed and len(mails) == self.count:
            return Listing(mails, True)
        return Listing(mails, False, f"STAT counts {self.count}, {len(mails)} are listed")


class Body(MailText):
    """Receives the text of a multi-line reply, undoes dot-stuffing and replaces lone LFs by CRLF (RFC 1939 section 3).

    The pieces may be cut anywhere. The first piece begins with the CRLF of the status line, so that the first line of
    the text is a line like any other.
    """

    def __init__(self, limit: int) -> None:
        """:param limit: as ``MailText``."""
        super().__init__(limit)
        self._started = False

    def feed(self, data: bytes, at: int) -> tuple[bool, int]:
        """Read ``data`` from ``at``. Return whether the end was found, and the position up to which data was read.

        Without the end, at most four octets stay unread: put them before the next piece.
        """
        end = dot = data.find(b"\r\n.", at)  # the end, or a line that begins with a dot, which is rare
        if dot >= 0 and not data.startswith(_END, dot):
            end = data.find(_END, dot)
        stop = end + 2 if end >= 0 else len(data) - _held_back(data, at)
        if stop > at:
            piece = data[at:stop]
            self._add(piece if dot == end else piece.replace(b"\r\n..", b"\r\n."))
        return end >= 0, end + len(_END) if end >= 0 else stop

    def _add(self, piece: bytes) -> None:
        if not self._started:
            self._started = True
            piece = piece[2:]  # the CRLF of the status line
        self._append(piece)


def _held_back(data: bytes, at: int) -> int:
    """Return how many octets at the end of ``data`` may begin the end of the text or a stuffed dot."""
    for beginning in (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r"):
        if data.endswith(beginning, at):
            return len(beginning)
    return 0


def response_code(reply: str) -> str | None:
    """Return the response code of a refusal (RFC 2449 section 8, RFC 3206) in upper case."""
    found = _CODE.match(reply)
    return found[1].upper() if found else None


def is_temporary(reply: str) -> bool:
    """Whether a refusal, as ``trim`` returns it, is temporary."""
    code = response_code(reply)
    if code in _TEMPORARY_CODES:
        return True
    return code not in _PERMANENT_CODES and sounds_temporary(reply)


def parse_capa(lines: Sequence[bytes]) -> Capabilities:
    """Parse the lines of a CAPA reply (RFC 2449 section 5)."""
    found = {words[0].upper(): words[1:] for line in lines if (words := line.split())}
    delay = found.get(b"LOGIN-DELAY")
    known = delay is not None and len(delay) > 0 and _is_number(delay[0])
    return Capabilities(
        answered=True,
        pipelining=b"PIPELINING" in found,
        uidl=b"UIDL" in found,
        user=b"USER" in found,
        sasl=frozenset(name.decode("latin-1").upper() for name in found.get(b"SASL", [])),
        stls=b"STLS" in found,
        login_delay=min(int(delay[0]), 86400) if delay and known else None,
        login_delay_by_user=delay is not None and any(word.upper() == b"USER" for word in delay),
    )


def parse_stat(line: bytes) -> tuple[int, int] | None:
    """Parse the text after +OK in a reply to STAT: number of mails and their octets; None if malformed."""
    match line.split():
        case [count, octets, *_] if _is_number(count) and _is_number(octets):
            return int(count), int(octets)
    return None


def parse_uidl(lines: Sequence[bytes]) -> tuple[tuple[tuple[int, str], ...], bool]:
    """Parse the lines of a UIDL reply: numbers and unique ids ('' if missing), and whether all are well-formed."""
    mails: dict[int, str] = {}
    well_formed = True
    for line in lines:
        match line.split(None, 2):
            case [number, *words] if _is_number(number) and int(number) not in mails and int(number) > 0:
                mails[int(number)] = unique_id(words[0]) if words else ""
            case _:
                well_formed = False
    return tuple(mails.items()), well_formed


def parse_list(lines: Sequence[bytes]) -> dict[int, int]:
    """Parse the lines of a LIST reply: octets by number; malformed lines are skipped."""
    sizes: dict[int, int] = {}
    for line in lines:
        match line.split(None, 2):
            case [number, octets, *_] if _is_number(number) and _is_number(octets):
                sizes[int(number)] = int(octets)
    return sizes


def _is_number(word: bytes) -> bool:
    return word.isdigit() and len(word) <= NUMBER_DIGITS


def unique_id(word: bytes) -> str:
    """Return the id, or a digest for an id that is too long or not printable (RFC 1939 section 7)."""
    text = word.decode("latin-1")
    if len(text) <= ID_CHARACTERS and text.isascii() and text.isprintable():
        return text
    return f"sha256:{hashlib.sha256(word).hexdigest()}"
