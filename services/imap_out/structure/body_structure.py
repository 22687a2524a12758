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

_EXTENSION = frozenset(("content-disposition", "content-language", "content-location"))


def format_structures(part: MimePart) -> tuple[bytes, bytes]:
    """Format BODY of a part, and BODYSTRUCTURE, which has extension data."""
    if part.is_multipart:
        return _format_multipart(part)
    body = extended = _format_basic(part)
    if part.is_message:
        mail = part.children[0]
        envelope = format_envelope(mail)
        inner, inner_extended = format_structures(mail)
        body += b" %b %b %d" % (envelope, inner, part.lines)
        extended += b" %b %b %d" % (envelope, inner_extended, part.lines)
    elif part.kind.startswith(b"text/"):
        body = extended = b"%b %d" % (body, part.lines)
    return b"(%b)" % body, b"(%b %b %b)" % (extended, nstring(_text(part, "content-md5")), _format_extension(part))


def _format_multipart(part: MimePart) -> tuple[bytes, bytes]:
    inner = [format_structures(child) for child in part.children]
    body = b"".join([one for one, _ in inner]) or _EMPTY + b")"
    extended = b"".join([one for _, one in inner]) or _EMPTY + b" NIL NIL NIL NIL)"
    subtype = string(part.content_type.value.partition(b"/")[2] if part.content_type else b"mixed")
    parameters = _format_parameters(part.content_type.parameters if part.content_type else ())
    return (
        b"(%b %b)" % (body, subtype),
        b"(%b %b %b %b)" % (extended, subtype, parameters, _format_extension(part)),
    )


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
    if part.fields.keys().isdisjoint(_EXTENSION):
        return b"NIL NIL NIL"
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
