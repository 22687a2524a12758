"""Names of IMAP folders: modified UTF-7 (RFC 3501 section 5.1.3); quoted strings. Pure."""

from __future__ import annotations

import base64
import binascii
import re

_PLAIN = re.compile(r"[\x20-\x25\x27-\x7e]+")
_UNQUOTABLE = re.compile(rb"[\0\r\n\x7f-\xff]")
_SHIFTED = re.compile(rb"&([A-Za-z0-9+,]*)-")


def encode_utf7(name: str) -> bytes:
    """Return the name in modified UTF-7."""
    coded = []
    position = 0
    for plain in _PLAIN.finditer(name):
        coded += [_shift(name[position : plain.start()]), plain[0].encode()]
        position = plain.end()
    return b"".join([*coded, _shift(name[position:])])


def _shift(text: str) -> bytes:
    """Encode characters that are not plain; ``&`` is ``&-``."""
    parts = []
    for between in re.split("(&)", text):
        if between == "&":
            parts.append(b"&-")
        elif between:
            coded = base64.b64encode(between.encode("utf-16-be")).rstrip(b"=").replace(b"/", b",")
            parts.append(b"&" + coded + b"-")
    return b"".join(parts)


def decode_name(raw: bytes, utf8: bool = False) -> str:
    """Return a folder's name for people, from modified UTF-7 or, as some servers send it, UTF-8.

    A name that is neither is shown octet by octet, so different names stay different.

    :param utf8: it is UTF-8 (RFC 6855), whatever it looks like.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
    if utf8 or not text.isascii():
        return text
    try:
        decoded = _SHIFTED.sub(_unshift, raw).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return text
    return decoded if encode_utf7(decoded) == raw else text


def _unshift(found: re.Match[bytes]) -> bytes:
    if not found[1]:
        return b"&"
    coded = found[1].replace(b",", b"/")
    octets = base64.b64decode(coded + b"=" * (-len(coded) % 4), validate=True)
    return octets.decode("utf-16-be").encode("utf-8")


def is_inbox(name: str) -> bool:
    """Whether this is the name of the INBOX, in which case does not matter (RFC 3501 section 5.1)."""
    return name.upper() == "INBOX"


def quoted(octets: bytes) -> bytes | None:
    """Return a quoted string (RFC 3501 section 4.3); None if these octets need a literal."""
    if _UNQUOTABLE.search(octets):
        return None
    return b'"' + octets.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
