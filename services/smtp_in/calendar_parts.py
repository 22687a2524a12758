"""Finds the organizers in the calendar parts of a submission (RFC 5545, RFC 6047). Pure.

A body leaves byte for byte, so an invitation shows customers the local address of its organizer, to which their answers
cannot be sent.
"""

from __future__ import annotations

import base64
import quopri
import re
from collections.abc import Collection

from shared.mime.addresses import fold_address
from shared.mime.charsets import read_text

SEARCHED_OCTETS = 64 * 1024
"""Limits the part of a mail that is searched: octets; programs write the calendar before the attachments."""
_PART = re.compile(
    rb"(?:^|\n)content-type[ \t]*:\s*text/calendar\b(?P<fields>.{0,500}?)\r?\n\r?\n(?P<text>.*?)(?:\r?\n--|\Z)",
    re.I | re.S,
)
_ENCODING = re.compile(rb"\ncontent-transfer-encoding[ \t]*:\s*(base64|quoted-printable)", re.I)
_FOLD = re.compile(rb"\r?\n[ \t]")
_ORGANIZER = re.compile(rb"^organizer[;:].*$", re.I | re.M)
_ADDRESS = re.compile(rb"mailto:([^\s\"<>;,?]+)", re.I)
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


def local_organizers(mail: bytes, local_addresses: Collection[str]) -> list[str]:
    """Return the local addresses that a calendar part names as its organizer, sorted.

    :param mail: its beginning, up to ``SEARCHED_OCTETS``. :param local_addresses: folded.
    """
    found = set()
    for part in _PART.finditer(mail) if b"calendar" in mail.lower() else ():
        for line in _ORGANIZER.findall(_FOLD.sub(b"", _decoded(part))):
            found |= {fold_address(read_text(address)) for address in _ADDRESS.findall(line) if b"@" in address}
    return sorted(found & set(local_addresses)) if found else []


def _decoded(part: re.Match[bytes]) -> bytes:
    """Return the text of a part. Content-Transfer-Encoding may come before or after Content-Type."""
    before = part.string[max(0, part.start() - 300) : part.start("text")].rpartition(b"\n--")[2]
    encoding = _ENCODING.search(b"\n" + before)
    if encoding is None:
        return part["text"]
    if encoding[1].lower() == b"quoted-printable":
        return quopri.decodestring(part["text"])
    text = _NO_BASE64.sub(b"", part["text"])
    return base64.b64decode(
        text[: len(text) // 4 * 4] + (text[len(text) // 4 * 4 :] + b"==")[:4] * bool(len(text) % 4 > 1)
    )
