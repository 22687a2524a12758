"""Strings, names and flags on the wire (RFC 3501 sections 4 and 9; RFC 6855, RFC 9051 section 5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shared.imap.names import encode_utf7, quoted

QUOTED_OCTETS = 1024
"""Longest quoted string: octets; a longer one is a literal, because some clients limit their lines."""

_ATOM = re.compile(rb'[^ (){%*"\\\]\[\x00-\x1f\x7f-\xff]++')


def literal(octets: bytes) -> bytes:
    """Format a literal. A NUL, which no literal may have, becomes 0x80 (RFC 3501 section 9, CHAR8)."""
    return b"{%d}\r\n%b" % (len(octets), octets.replace(b"\0", b"\x80"))


def string(octets: bytes, utf8: bool = False) -> bytes:
    """Format a quoted string if these octets can be one, else a literal.

    :param utf8: quoted strings may have UTF-8: UTF8=ACCEPT or IMAP4rev2 is enabled.
    """
    if len(octets) <= QUOTED_OCTETS:
        text = quoted(octets)
        if text is None and utf8:
            text = _quoted_utf8(octets)
        if text is not None:
            return text
    return literal(octets)


def _quoted_utf8(octets: bytes) -> bytes | None:
    """Return a quoted string with UTF-8; None if these octets are none, or have control characters."""
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return None
    ascii_only = quoted(re.sub(rb"[\x80-\xff]", b"", octets))
    if ascii_only is None:
        return None
    return b'"' + octets.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def nstring(octets: bytes | None, utf8: bool = False) -> bytes:
    """Format a string, or NIL."""
    return b"NIL" if octets is None else string(octets, utf8)


def astring(octets: bytes, utf8: bool = False) -> bytes:
    """Format an atom if these octets can be one, else a string. NIL is quoted: a client could take it for no string."""
    return octets if _ATOM.fullmatch(octets) and octets.upper() != b"NIL" else string(octets, utf8)


def mailbox(name: str, utf8: bool = False) -> bytes:
    """Format the name of a mailbox: modified UTF-7, or UTF-8 in a session that has enabled it."""
    return astring(name.encode("utf-8"), utf8=True) if utf8 else astring(encode_utf7(name))


def flag_list(flags: Iterable[str]) -> bytes:
    r"""Format flags: ``(\Seen $Forwarded)``."""
    return b"(" + " ".join(flags).encode("ascii", "replace") + b")"
