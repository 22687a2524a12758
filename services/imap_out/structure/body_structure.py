"""Formats BODY and BODYSTRUCTURE (RFC 3501 section 7.4.2)."""

from __future__ import annotations

from services.imap_out.responses.strings import nstring, string
from services.imap_out.structure.content_fields import (
    Parameters,
    parse_disposition,
    parse_languages,
    parse_token,
    unfolded,
)
from services.imap_out.structure.envelope import format_envelope
from services.imap_out.structure.mime_parser import MimePart

_EMPTY = b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 0 0'
"""A multipart without parts has this one: the grammar wants at least one."""


def format_structure(part: MimePart, extended: bool) -> bytes:
    """Format the structure of a part. :param extended: BODYSTRUCTURE, with extension data; else BODY."""
    if part.is_multipart:
        return _format_multipart(part, extended)
    body = _format_basic(part)
    if part.is_message:
        mail = part.children[0]
        body += b" %b %b %d" % (format_envelope(mail), format_structure(mail, extended), part.lines)
    elif part.kind.startswith(b"text/"):
        body += b" %d" % part.lines
    if extended:
        body += b" " + nstring(_text(part, "content-md5")) + b" " + _format_extension(part)
    return b"(" + body + b")"


def _format_multipart(part: MimePart, extended: bool) -> bytes:
    children = b"".join(format_structure(child, extended) for child in part.children)
    body = children or _EMPTY + (b" NIL NIL NIL NIL)" if extended else b")")
    body += b" " + string(part.content_type.value.partition(b"/")[2] if part.content_type else b"mixed")
    if extended:
        parameters = part.content_type.parameters if part.content_type else ()
        body += b" " + _format_parameters(parameters) + b" " + _format_extension(part)
    return b"(" + body + b")"


def _format_basic(part: MimePart) -> bytes:
    """Type, parameters, id, description, encoding and octets."""
    kind = part.content_type.value if part.content_type else part.kind
    main, _, sub = kind.partition(b"/")
    parameters = part.content_type.parameters if part.content_type else ()
    if part.kind.startswith(b"text/") and not any(name.lower() == b"charset" for name, _ in parameters):
        parameters = (*parameters, (b"charset", b"us-ascii"))  # RFC 2045 section 5.2
    raw_encoding = part.value("content-transfer-encoding")
    encoding = parse_token(raw_encoding) if raw_encoding is not None else None
    return b" ".join(
        (
            *(string(main), string(sub), _format_parameters(parameters)),
            *(nstring(_text(part, name)) for name in ("content-id", "content-description")),
            *(string(encoding or b"7bit"), b"%d" % (part.body_end - part.body_start)),
        )
    )


def _format_parameters(parameters: Parameters) -> bytes:
    if not parameters:
        return b"NIL"
    return b"(" + b" ".join(string(text) for pair in parameters for text in pair) + b")"


def _format_extension(part: MimePart) -> bytes:
    """Disposition, language and location."""
    raw = part.value("content-disposition")
    disposition = parse_disposition(raw) if raw is not None else None
    raw_language = part.value("content-language")
    languages = parse_languages(raw_language) if raw_language is not None else []
    return b" ".join(
        (
            b"(%b %b)" % (string(disposition.value), _format_parameters(disposition.parameters))
            if disposition
            else b"NIL",
            b"(" + b" ".join(map(string, languages)) + b")" if languages else b"NIL",
            nstring(_text(part, "content-location")),
        )
    )


def _text(part: MimePart, name: str) -> bytes | None:
    raw = part.value(name)
    return None if raw is None else unfolded(raw)
