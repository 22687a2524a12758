"""What a POP3 server's replies mean (RFC 1939, RFC 2449): pure, however strange they are and wherever they are cut."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_CHARACTERS = 120
NUMBER_DIGITS = 18
ID_CHARACTERS = 255

_END = b"\r\n.\r\n"
_LONE_LF = re.compile(rb"(?<!\r)\n")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What CAPA announced. answered: the server knows CAPA. login_delay: seconds between logins."""

    answered: bool = False
    pipelining: bool = False
    stls: bool = False
    login_delay: int | None = None
    login_delay_by_user: bool = False

    def shown(self) -> str:
        """What of it matters to us, in words."""
        told = ["PIPELINING" if self.pipelining else "no PIPELINING: mails are fetched one by one"]
        if self.login_delay is not None:
            told.append(f"at least {self.login_delay} s between two logins")
        return "; ".join(told)


@dataclass(frozen=True, slots=True)
class Listing:
    """Numbers and unique ids. complete: every line was well-formed and as many as STAT counted."""

    mails: tuple[tuple[int, str], ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class ListReply:
    """The replies to STAT and UIDL, unread. digest: the same for the same list."""

    count: int
    text: bytearray
    digest: bytes

    def listing(self) -> Listing:
        """Read it."""
        mails, well_formed = parse_uidl(bytes(self.text).splitlines())
        return Listing(mails, well_formed and len(mails) == self.count)


class Body:
    """Takes the text of a multi-line reply in pieces, undoes dot-stuffing and mends lone LFs (RFC 1939 section 3).

    The pieces may be cut anywhere. The text is taken to begin after the CRLF of the status line, which is part of the
    first piece, so that its first line is a line like any other.
    """

    def __init__(self, limit: int) -> None:
        """:param limit: octets kept; beyond that nothing is kept and ``octets`` goes on counting."""
        self.kept = bytearray()
        self.octets = 0
        self.too_large = False
        self._limit = limit
        self._digest = hashlib.sha256()
        self._started = False

    def take(self, data: bytes, at: int) -> tuple[bool, int]:
        """Read ``data`` from ``at``. Returns whether the end was found, and up to where it was read.

        What is left unread without the end is at most four octets, to be put before the next piece.
        """
        end = dot = data.find(b"\r\n.", at)  # the end, or a line that begins with a dot, which most mails have not
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
        if piece.count(b"\n") != piece.count(b"\r\n"):
            piece = _LONE_LF.sub(b"\r\n", piece)
        self.octets += len(piece)
        if self.octets > self._limit:
            self.too_large = True
            self.kept = bytearray()
        else:
            self.kept += piece
            self._digest.update(piece)

    @property
    def sha256(self) -> bytes:
        """Of what was kept."""
        return self._digest.digest()


def _held_back(data: bytes, at: int) -> int:
    """How many octets at the end may be the beginning of an end or of a stuffed dot."""
    for beginning in (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r"):
        if data.endswith(beginning, at):
            return len(beginning)
    return 0


def trim(line: bytes) -> str:
    """A reply line as it may be shown: printable, short."""
    text = line.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()[:SHOWN_CHARACTERS]


def parse_capa(lines: Sequence[bytes]) -> Capabilities:
    """The lines of a CAPA reply (RFC 2449 section 5)."""
    found = {words[0].upper(): words[1:] for line in lines if (words := line.split())}
    delay = found.get(b"LOGIN-DELAY")
    known = delay is not None and len(delay) > 0 and _is_number(delay[0])
    return Capabilities(
        answered=True,
        pipelining=b"PIPELINING" in found,
        stls=b"STLS" in found,
        login_delay=min(int(delay[0]), 86400) if delay and known else None,
        login_delay_by_user=delay is not None and any(word.upper() == b"USER" for word in delay),
    )


def parse_stat(line: bytes) -> tuple[int, int] | None:
    """What follows +OK in a reply to STAT: how many mails, and their octets; None if it is something else."""
    match line.split():
        case [count, octets, *_] if _is_number(count) and _is_number(octets):
            return int(count), int(octets)
    return None


def parse_uidl(lines: Sequence[bytes]) -> tuple[tuple[tuple[int, str], ...], bool]:
    """The lines of a UIDL reply: numbers and unique ids, and whether all of it was well-formed."""
    mails: dict[int, str] = {}
    well_formed = True
    for line in lines:
        match line.split(None, 2):
            case [number, word, *_] if _is_number(number) and int(number) not in mails and int(number) > 0:
                mails[int(number)] = _unique_id(word)
            case _:
                well_formed = False
    return tuple(mails.items()), well_formed


def parse_list(lines: Sequence[bytes]) -> dict[int, int]:
    """The lines of a LIST reply: octets by number; what is malformed is left out."""
    sizes: dict[int, int] = {}
    for line in lines:
        match line.split(None, 2):
            case [number, octets, *_] if _is_number(number) and _is_number(octets):
                sizes[int(number)] = int(octets)
    return sizes


def _is_number(word: bytes) -> bool:
    return word.isdigit() and len(word) <= NUMBER_DIGITS


def _unique_id(word: bytes) -> str:
    """RFC 1939 section 7 allows 70 printable characters; what is more is kept apart by a digest."""
    text = word.decode("latin-1")
    if len(text) <= ID_CHARACTERS and text.isascii() and text.isprintable():
        return text
    return f"sha256:{hashlib.sha256(word).hexdigest()}"
