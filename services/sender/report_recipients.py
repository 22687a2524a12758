"""Finds the recipients that a report names, so that no local address leaves in one. Pure, over bytes.

A mail client writes its own address, a local one, into the read receipt (RFC 8098 section 3.2) that it sends. Nothing
else in a body is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from services.sender.header_fields import iterate_addresses, replaced_address
from shared.mime import headers
from shared.mime.addresses import ascii_address, fold_address
from shared.mime.headers import Mailbox

SEARCHED_OCTETS = 256 * 1024
"""Limits the part of a body that is searched: octets; the recipients are before the reported mail."""
_REPORT = re.compile(rb"\s*multipart/report\b", re.I)
_SIGNED = re.compile(
    rb"^content-type[ \t]*:\s*(?:multipart/(?:signed|encrypted)|application/(?:x-)?pkcs7-(?:mime|signature)|"
    rb"application/pgp-(?:signature|encrypted))\b|^-----BEGIN PGP ",
    re.I | re.M,
)
_PART = re.compile(
    rb"^content-type[ \t]*:\s*message/(?:global-)?(?:disposition-notification|delivery-status)\b", re.I | re.M
)
_BLANK = re.compile(rb"\n\r?\n")
_ENCODED = re.compile(rb"^content-transfer-encoding[ \t]*:\s*base64\b", re.I | re.M)
RECIPIENTS = 100
"""Limits the recipients of a report: addresses; a client writes one or two."""
PARTS = 10
"""Limits the parts of a report that are read: parts; a report has one with recipients."""
_PART_HEADER_OCTETS = 2000
"""Limits the header of a part: octets."""
_PART_OCTETS = 64 * 1024
"""Limits the fields of a part: octets."""
_RECIPIENT = re.compile(
    rb"^(?:final|original)-recipient[ \t]*:[ \t]*(?:[^\n;]*;)?([^\n]*(?:\n[ \t][^\n]*){0,4})", re.I | re.M
)


def reported_recipients(mail: bytes, body: int) -> list[Mailbox]:
    """Return the addresses in Final-Recipient and Original-Recipient of a report that is neither signed nor encrypted.

    Each has its position in ``mail``; at most RECIPIENTS.

    :param mail: its beginning. :param body: where its body begins.
    """
    if not any(_REPORT.match(value) for value in headers.values(mail[:body], "content-type")):
        return []
    text = mail[body : body + SEARCHED_OCTETS]
    if _SIGNED.search(text):
        return []
    return list(islice(_iterate_recipients(text, body), RECIPIENTS))


def replaced_recipients(
    mail: bytes, body: int, recipients: Iterable[Mailbox], directory: Mapping[str, tuple[str, str]]
) -> bytes:
    """Return the body with external addresses in place of the local ones among these recipients.

    :param directory: folded local address to (user name, external address).
    """
    edits = []
    for found in recipients:
        person = directory.get(fold_address(found.address))
        if person is not None:
            new = replaced_address(mail[found.start : found.end], ascii_address(person[1]))
            edits.append((found.start - body, found.end - body, new))
    return headers.splice(mail[body:], edits) if edits else mail[body:]


def _iterate_recipients(text: bytes, offset: int) -> Iterator[Mailbox]:
    for part in islice(_PART.finditer(text), PARTS):
        blank = _BLANK.search(text, part.end(), part.end() + _PART_HEADER_OCTETS)
        start = text.rfind(b"\n--", max(0, part.start() - _PART_HEADER_OCTETS), part.start())
        if blank is None or _ENCODED.search(text, max(0, start), blank.end()):
            continue
        end = text.find(b"\n--", blank.end() - 1, blank.end() + _PART_OCTETS)
        fields = text[blank.end() : end if end >= 0 else blank.end() + _PART_OCTETS]
        for field in _RECIPIENT.finditer(fields):
            for found in iterate_addresses(field[1]):
                at = offset + blank.end() + field.start(1)
                yield found._replace(start=at + found.start, end=at + found.end)
