"""Decodes Content-Transfer-Encodings piece by piece (RFC 2045 section 6), for BINARY (RFC 3516) and SEARCH. Pure."""

from __future__ import annotations

import binascii
import re

IDENTITIES = frozenset(("7bit", "8bit", "binary"))
"""Encodings that change nothing."""
LINE_OCTETS = 64 * 1024
"""Octets of a line of quoted-printable that are held until its end; RFC 2045 section 6.7 allows 76."""

_NOT_BASE64 = bytes(sorted(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")))
_PADDING = re.compile(rb"=+")
_TRAILING_BLANKS = re.compile(rb"(?<![ \t])[ \t]++(?=\r?\n)")


def is_known(encoding: str) -> bool:
    """Whether this encoding (in lower case) can be decoded. An unknown one is NO [UNKNOWN-CTE] for BINARY."""
    return encoding in IDENTITIES or encoding in ("base64", "quoted-printable")


class TransferDecoder:
    """Decodes one body. Octets that its encoding does not allow are skipped, as RFC 2045 section 6.8 wants it."""

    def __init__(self, encoding: str) -> None:
        """:param encoding: in lower case; an unknown one changes nothing."""
        self._rest = b""
        if encoding == "base64":
            self.feed = self._feed_base64
        elif encoding == "quoted-printable":
            self.feed = self._feed_quoted_printable
        else:
            self.feed = self._feed_identity

    def finish(self) -> bytes:
        """Return what is left, after all octets."""
        rest, self._rest = self._rest, b""
        if self.feed == self._feed_base64:
            return _decode_group(rest)
        return binascii.a2b_qp(rest.rstrip(b" \t"))

    def _feed_identity(self, octets: bytes) -> bytes:
        return octets

    def _feed_base64(self, octets: bytes) -> bytes:
        digits = self._rest + octets.translate(None, _NOT_BASE64)
        if b"=" in digits:  # the end, or of one of several encodings in a row
            *groups, digits = _PADDING.split(digits)
            decoded = b"".join(map(_decode_group, groups))
        else:
            decoded = b""
        whole = len(digits) // 4 * 4
        self._rest = digits[whole:]
        return decoded + binascii.a2b_base64(digits[:whole])

    def _feed_quoted_printable(self, octets: bytes) -> bytes:
        text = self._rest + octets
        end = text.rfind(b"\n") + 1
        if not end and len(text) > LINE_OCTETS:
            mark = text.rfind(b"=", len(text) - 3)
            end = mark if mark >= 0 else len(text)
        self._rest = text[end:]
        return binascii.a2b_qp(_TRAILING_BLANKS.sub(b"", text[:end]))


def _decode_group(digits: bytes) -> bytes:
    """Decode base64 without its padding; a single digit at the end is no octet."""
    if len(digits) % 4 == 1:
        digits = digits[:-1]
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))
