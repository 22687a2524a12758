"""Parses address fields for ENVELOPE (RFC 3501 section 7.4.2): names are not decoded, groups are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shared.mime.tokens import Token, TooManyTokens, token_budget, tokens

MAX_ADDRESSES = 1_000
"""Addresses of one field that are read."""
MAX_TOKENS = 20_000
"""Tokens of one field that are read."""


class EnvelopeAddress(NamedTuple):
    """An address structure. Its parts are octets of the mail; None is NIL.

    The start of a group has its name as ``mailbox`` and no ``host``; its end has neither.
    """

    name: bytes | None
    route: bytes | None
    mailbox: bytes | None
    host: bytes | None


GROUP_END = EnvelopeAddress(None, None, None, None)
MISSING_MAILBOX = b"MISSING_MAILBOX"
MISSING_DOMAIN = b"MISSING_DOMAIN"
"""Stand for a part of an address that is not there, as other servers send them: NIL would mean a group."""


def parse_addresses(value: bytes) -> list[EnvelopeAddress]:
    """Return the addresses of a field. Never raises; text without an address is a mailbox without a domain."""
    found: list[EnvelopeAddress] = []
    try:
        for address in _addresses(value.decode("latin-1")):
            found.append(address)
            if len(found) >= MAX_ADDRESSES:
                break
    except TooManyTokens:
        pass
    return found


def _addresses(text: str) -> Iterator[EnvelopeAddress]:
    words: list[Token] = []
    angle: EnvelopeAddress | None = None
    group = False
    stream = tokens(text, token_budget(MAX_TOKENS))
    for token in stream:
        if token.kind == "<":
            angle = _angle(stream)
        elif token.kind in (",", ";"):
            yield from _finished(words, angle)
            words, angle = [], None
            if token.kind == ";" and group:
                yield GROUP_END
                group = False
        elif token.kind == ":" and angle is None and not group:
            yield EnvelopeAddress(None, None, _octets(_phrase(words)), None)
            words, group = [], True
        elif token.kind != "blank":
            words.append(token)
    yield from _finished(words, angle)
    if group:
        yield GROUP_END


def _angle(stream: Iterator[Token]) -> EnvelopeAddress:
    """Read an address behind its ``<``; without a ``>`` it ends at the next comma, or with the field."""
    route, text = "", ""
    for token in stream:
        if token.kind == ">" or (token.kind == "," and not text.startswith("@")):
            break
        if token.kind == ":" and text.startswith("@"):
            route, text = text, ""
        elif token.kind not in ("blank", "comment"):
            text += token.text
    return _split(None, route, text)


def _finished(words: list[Token], angle: EnvelopeAddress | None) -> Iterator[EnvelopeAddress]:
    if angle is not None:
        name = _phrase(words) or _comment(words)
        yield angle._replace(name=_octets(name) if name else None)
        return
    text = "".join(word.text for word in words if word.kind != "comment")
    if not text:
        return
    if "@" in text:
        yield _split(_comment(words), "", text)
    else:
        yield _split(_comment(words), "", _phrase(words))


def _split(name: str | None, route: str, text: str) -> EnvelopeAddress:
    mailbox, at, host = text.rpartition("@")
    if not at:
        mailbox, host = text, ""
    return EnvelopeAddress(
        _octets(name) if name else None,
        _octets(route) if route else None,
        _octets(mailbox) or MISSING_MAILBOX,
        _octets(host) or MISSING_DOMAIN,
    )


def _phrase(words: list[Token]) -> str:
    """Join words; there is a blank where the field has one."""
    text = ""
    end = -1
    for word in words:
        if word.kind == "comment":
            continue
        text += (" " if text and end != word.start else "") + word.text
        end = word.end
    return text


def _comment(words: list[Token]) -> str | None:
    return next((word.text for word in words if word.kind == "comment"), None)


def _octets(text: str) -> bytes:
    return text.encode("latin-1")
