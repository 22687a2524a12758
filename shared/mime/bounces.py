"""Reads which mails a bounce or an auto-reply refers to: their Message-IDs.

Supported are multipart/report (RFC 6522) with the returned mail or header, disposition notifications (RFC 8098), and
the plain text of older servers. The ids are not trusted: an id counts only if we sent a mail with it.
"""

from __future__ import annotations

import binascii
import re

from shared.mime.headers import Field, fields, header_end, message_ids

IDS = 20
"""Message-IDs that are read from one bounce."""
_PARTS = 200  # parts of one mail
_DEPTH = 3  # levels of nested multiparts
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
_QUOTED_OCTET = re.compile(rb"=(?:([0-9A-Fa-f]{2})|[ \t]*\r?\n)")
_ID_LINE = re.compile(
    rb"^[> \t]*(?:X-)?(?:Original-)?Message-ID[ \t]*:([^\n]*+(?:\n[ \t]+<[^\n]*+)?)", re.IGNORECASE | re.MULTILINE
)


def is_notice(header: dict[str, list[bytes]]) -> bool:
    """Whether a program sent this mail about another mail. :param header: raw values by lower-case field name."""

    def first(name: str) -> bytes:
        return b" ".join(header.get(name, [b""])[0].split()).lower()

    return (
        first("content-type").startswith(b"multipart/report")
        or first("auto-submitted").partition(b";")[0].strip() not in (b"", b"no")  # RFC 3834 section 5
        or first("return-path") == b"<>"  # RFC 5321 section 4.5.5
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
    parts: list[tuple[str, bytes]] = []
    _collect(fields(message[:end]), message[end:], parts, _DEPTH)
    returned: list[str] = []
    named: list[str] = []
    for kind, content in parts:
        if kind in _RETURNED:
            returned += _ids(content, "message-id")
        elif kind in _FACTS:
            for block in re.split(rb"\n\r?\n", content)[:IDS]:
                named += _ids(block, "original-message-id", "message-id", "x-original-message-id")
    if not returned and not named:
        for _, content in parts:
            for line in list(_ID_LINE.finditer(content))[:IDS]:
                named += message_ids(line[1])[:1]
    return list(dict.fromkeys(returned + named))[:IDS]


def _ids(header: bytes, *names: str) -> list[str]:
    matching = (field for field in fields(header.lstrip(b"\r\n")) if field.key in names)
    return [message_id for field in matching for message_id in message_ids(field.value)[:1]]


def _collect(header: list[Field], body: bytes, parts: list[tuple[str, bytes]], depth: int) -> None:
    """Append the leaf parts of this entity to ``parts`` as (type, decoded body); a returned mail is a leaf."""
    kind, encoding, boundary = "text/plain", b"", b""
    for field in header:
        if field.key == "content-type":
            kind = field.value.partition(b";")[0].strip().lower().decode("latin-1")
            match = _BOUNDARY.search(field.value)
            boundary = (match[1] or match[2] or b"").strip() if match else b""
        elif field.key == "content-transfer-encoding":
            encoding = field.value.strip().lower()
    if not kind.startswith("multipart/") or not boundary or depth == 0:
        parts.append((kind, _decode(body, encoding)))
        return
    for piece in (b"\n" + body).split(b"\n--" + boundary)[1:_PARTS]:
        rest, _, entity = piece.partition(b"\n")
        if rest.startswith(b"--") or len(parts) >= _PARTS:
            return
        if not rest.strip():
            end = header_end(entity)
            _collect(fields(entity[:end]), entity[end:], parts, depth - 1)


def _decode(body: bytes, encoding: bytes) -> bytes:
    if encoding == b"quoted-printable":
        return _QUOTED_OCTET.sub(lambda octet: bytes((int(octet[1], 16),)) if octet[1] else b"", body)
    if encoding == b"base64":
        digits = re.sub(rb"[^A-Za-z0-9+/]+", b"", body)
        try:
            return binascii.a2b_base64(digits[: len(digits) // 4 * 4])
        except binascii.Error:
            return body
    return body
