"""Reads which mails a bounce or an auto-reply refers to: their Message-IDs.

Supported are multipart/report (RFC 6522) with the returned mail or header, disposition notifications (RFC 8098), and
the text of servers that write neither: it quotes the header, or only the id. The ids are not trusted: an id counts only
if we sent a mail with it.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from shared.mime.headers import header_end, iterate_values, message_ids

IDS = 20
"""Message-IDs that are read from one bounce."""
_PARTS = 200  # parts of one mail
_DEPTH = 3  # levels of nested multiparts
_VALUE_OCTETS = 4096  # of a field that is read here, but for Message-IDs
_RETURNED = frozenset({"message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers"})
_FACTS = frozenset(
    {
        "message/disposition-notification",
        "message/delivery-status",
        "message/feedback-report",
        "message/global-disposition-notification",
        "message/global-delivery-status",
    }
)
_BOUNDARY = re.compile(rb"""boundary\s*=\s*(?:"((?:[^"\\]++|\\.)*+)"|([^\s;"]+))""", re.IGNORECASE | re.DOTALL)
_ID_LINE = re.compile(
    rb"^[> \t]*(?:X-)?(?:Original-)?Message-ID[ \t]*:([^\n]*+(?:\n[ \t]+(?:<|=\?)[^\n]*+){0,9})",
    re.IGNORECASE | re.MULTILINE,
)


_ANY_ID = re.compile(rb"<[^<>\s@]{1,500}@[^<>\s@]{1,400}>")
_NULL_PATH = re.compile(rb"<?(?:mail(?:er)?[-_.]?daemon(?:@[^<>@\s]*)?|#@\[\])?>?")
"""Envelope sender of a bounce: the null sender (RFC 5321 section 4.5.5), qmail's own of a double bounce, or a program
that has no null sender."""
_DAEMON = re.compile(
    rb"(?:^|[\s<\"'(])(?:mail(?:er)?[-_.]?daemon|mdaemon|postmaster|microsoftexchange[0-9a-f]{32})(?:@|[\s>\"')]|$)"
    rb"|mail delivery (?:sub)?system"
)
"""Matches From of a bounce with a wrong envelope sender, or without a Return-Path."""


NOTICE_FIELDS = frozenset(
    {
        "content-type",
        "from",
        "auto-submitted",
        "return-path",
        "precedence",
        "x-failed-recipients",
        "x-autoreply",
        "x-autorespond",
    }
)
"""The fields that ``is_notice`` reads."""


def is_notice(header: dict[str, list[bytes]]) -> bool:
    """Whether a program sent this mail about another mail.

    :param header: raw values by lower-case field name; those of NOTICE_FIELDS suffice.
    """

    def first(name: str) -> bytes:
        return b" ".join(header.get(name, [b""])[0][:_VALUE_OCTETS].split()).lower()

    return (
        first("content-type").startswith(b"multipart/report")
        or first("auto-submitted").partition(b";")[0].strip() not in (b"", b"no")  # RFC 3834 section 5
        or ("return-path" in header and _NULL_PATH.fullmatch(first("return-path")) is not None)
        or _DAEMON.search(first("from")) is not None
        or first("precedence") in (b"auto_reply", b"auto-reply")
        or "x-failed-recipients" in header
        or "x-autoreply" in header
        or "x-autorespond" in header
    )


def reported_ids(message: bytes) -> list[str]:
    """Return the Message-IDs of the mails that this notice contains (first) or names; [] if there are none.

    :param message: header and body, or their beginning.
    """
    end = header_end(message)
    parts: list[_Part] = []
    _collect(message[:end], message[end:], parts, _DEPTH)
    returned: list[str] = []
    named: list[str] = []
    for part in parts:
        if part.kind in _RETURNED:
            returned += _ids(part.content(), "message-id")
        elif part.kind in _FACTS:
            for block in re.split(rb"\n\r?\n", part.content(), maxsplit=IDS)[:IDS]:
                named += _ids(block, "original-message-id", "message-id", "x-original-message-id")
    if not returned and not named:
        texts = [part.text() for part in parts]
        for text in texts:
            for line in islice(_ID_LINE.finditer(text), IDS):
                named += message_ids(line[1], 1)
        for text in texts if not named else ():
            for found in islice(_ANY_ID.finditer(text), IDS):
                named += message_ids(found[0], 1)
    return list(dict.fromkeys(returned + named))[:IDS]


def _ids(header: bytes, *names: str) -> list[str]:
    matching = (value for name, value in iterate_values(header.lstrip(b"\r\n")) if name in names)
    return list(islice(_first_ids(matching), IDS))


def _first_ids(values: Iterable[bytes]) -> Iterable[str]:
    for value in values:
        yield from message_ids(value, 1)


class _Part(NamedTuple):
    """A leaf of a multipart."""

    kind: str  # type/subtype
    body: bytes
    encoding: bytes

    def content(self) -> bytes:
        """The decoded body."""
        return _decode(self.body, self.encoding)

    def text(self) -> bytes:
        """The decoded body with the angle brackets of HTML."""
        content = self.content()
        return content.replace(b"&lt;", b"<").replace(b"&gt;", b">") if self.kind == "text/html" else content


def _collect(header: bytes, body: bytes, parts: list[_Part], depth: int) -> None:
    """Append the leaf parts of this entity to ``parts``; a returned mail is a leaf."""
    kind, encoding, boundary = "text/plain", b"", b""
    for name, value in iterate_values(header):
        if name == "content-type":
            kind = value[:_VALUE_OCTETS].partition(b";")[0].strip().lower().decode("latin-1")
            match = _BOUNDARY.search(value[:_VALUE_OCTETS])
            boundary = (match[1] or match[2] or b"").strip() if match else b""
        elif name == "content-transfer-encoding":
            encoding = value[:_VALUE_OCTETS].strip().lower()
    if not kind.startswith("multipart/") or not boundary or depth == 0:
        parts.append(_Part(kind, body, encoding))
        return
    for piece in (b"\n" + body).split(b"\n--" + boundary, _PARTS)[1:_PARTS]:
        rest, _, entity = piece.partition(b"\n")
        if rest.startswith(b"--") or len(parts) >= _PARTS:
            return
        if not rest.strip():
            end = header_end(entity)
            _collect(entity[:end], entity[end:], parts, depth - 1)


def _decode(body: bytes, encoding: bytes) -> bytes:
    if encoding == b"quoted-printable":
        return binascii.a2b_qp(body)
    if encoding == b"base64":
        digits = re.sub(rb"[^A-Za-z0-9+/]+", b"", body)
        try:
            return binascii.a2b_base64(digits[: len(digits) // 4 * 4])
        except binascii.Error:
            return body
    return body
