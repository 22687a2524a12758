"""Decodes and encodes encoded-words (RFC 2047): text beyond ASCII in header fields. Never raises.

Decoding is tolerant, because names come from all kinds of software: words with blanks, characters split between two
words, wrong charset labels (``charsets.py``). A word that cannot be decoded stays as it is. Encoding is strict.
"""

from __future__ import annotations

import binascii
import re
from typing import TypeVar

from shared.mime import charsets

_T = TypeVar("_T", str, bytes)

# Up to three bare question marks in the payload are accepted; this limit keeps the search linear.
_WORD = re.compile(r"=\?([^?\s]{1,60})\?([bBqQ])\?([^?\r\n]*(?:\?(?!=)[^?\r\n]*){0,3})\?=")
_Q_OCTET = re.compile(rb"=([0-9A-Fa-f]{2})")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_ASCII = re.compile(rb"[\t\r\n -~]*")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_Q_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")  # RFC 2047 section 5 (3)


def decode(text: str) -> str:
    """Decode the encoded-words in ``text``, without the white space between two of them (RFC 2047 section 6.2).

    Control characters in a decoded word become blanks, so the result has no new line end.
    """
    if "=?" not in text:
        return text
    done: list[str] = []
    pending: list[bytes] = []  # octets of adjacent words in one charset: some senders split a character
    codec: str | None = None
    position = 0
    for word in _WORD.finditer(text):
        label = charsets.find_codec(word[1].partition("*")[0])  # RFC 2231 section 5: a language
        octets = _octets(word[2], word[3])
        if label is None and octets is not None and _ASCII.fullmatch(octets):
            label = charsets.GUESSED  # every charset that may be meant has these letters
        gap = text[position : word.start()]
        position = word.end()
        neighbours = codec is not None and label is not None and octets is not None and not gap.strip()
        if codec is not None and not (neighbours and label == codec):
            done.append(_characters(b"".join(pending), codec))
            pending, codec = [], None
        if not neighbours:
            done.append(gap)
        if label is None or octets is None:
            done.append(word[0])
        else:
            pending.append(octets)
            codec = label
    if codec is not None:
        done.append(_characters(b"".join(pending), codec))
    return "".join([*done, text[position:]])


def _octets(encoding: str, payload: str) -> bytes | None:
    raw = payload.encode("utf-8", "replace")
    if encoding in "qQ":
        return _Q_OCTET.sub(lambda octet: bytes((int(octet[1], 16),)), raw.replace(b"_", b" "))
    digits = _NOT_BASE64.sub(b"", raw)
    digits = digits[:-1] if len(digits) % 4 == 1 else digits  # truncated group
    try:
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))
    except binascii.Error:
        return None


def _characters(octets: bytes, codec: str) -> str:
    return _SURROGATE.sub("\ufffd", _UNPRINTABLE.sub(" ", charsets.decode(octets, codec)))


def encode(text: str, first: int = 75, further: int = 75) -> list[str]:
    """Encode ``text`` for a phrase: the first encoded-word has at most ``first`` characters, the others ``further``.

    UTF-8, as Q or B, whichever is shorter; no character is split (RFC 2047 section 5). :param further: 75 at most.
    """
    octets = [character.encode("utf-8", "replace") for character in text]
    as_q = ["".join(_q(octet) for octet in character) for character in octets]
    if sum(map(len, as_q)) <= -(-sum(map(len, octets)) // 3) * 4:
        return [f"=?utf-8?q?{''.join(piece)}?=" for piece in _pieces(as_q, first - 12, further - 12)]
    return [
        f"=?utf-8?b?{binascii.b2a_base64(b''.join(piece), newline=False).decode()}?="
        for piece in _pieces(octets, (first - 12) // 4 * 3, (further - 12) // 4 * 3)
    ]


def _q(octet: int) -> str:
    return "_" if octet == ord(" ") else chr(octet) if octet in _Q_SAFE else f"={octet:02X}"


def _pieces(characters: list[_T], first: int, further: int) -> list[list[_T]]:
    pieces: list[list[_T]] = [[]]
    available = first
    for character in characters:
        if pieces[-1] and len(character) > available:
            pieces.append([])
            available = further
        pieces[-1].append(character)
        available -= len(character)
    return pieces
