"""What a failure notice or an auto-reply reports on: the ids of the mail that it was sent about.

Read are multipart/report (RFC 6522) with the returned mail or header in it, disposition notifications (RFC 8098), and
as plain text what older servers send. Nothing is believed: an id counts only if it is of a mail that we sent.
"""

from __future__ import annotations

import binascii
import re

from shared.mime.headers import Field, fields, header_end, message_ids

IDS = 20
"""No more ids of one notice are read."""
_PARTS = 200
_DEPTH = 3
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
    """Whether a mail with these fields (raw values by lower-case name) was sent by a machine about another mail."""

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
    """Ids of the mails that this notice carries or names, the returned ones first; [] if it has none.

    :param message: header and body, or as much of it as there is.
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
    found = (field for field in fields(header.lstrip(b"\r\n")) if field.key in names)
    return [id_ for field in found for id_ in message_ids(field.value)[:1]]


def _collect(header: list[Field], body: bytes, parts: list[tuple[str, bytes]], depth: int) -> None:
    """Add the leaves of this entity to ``parts``, as (type, decoded body); a returned mail is a leaf."""
    kind, encoding, boundary = "text/plain", b"", b""
    for field in header:
        if field.key == "content-type":
            kind = field.value.partition(b";")[0].strip().lower().decode("latin-1")
            found = _BOUNDARY.search(field.value)
            boundary = (found[1] or found[2] or b"").strip() if found else b""
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
