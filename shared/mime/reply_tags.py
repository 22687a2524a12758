"""Reply tags: the part behind ``+`` of a Reply-To address (RFC 5233) that names the author of the mail. Pure.

A tag is the number of the author and a MAC over account and author. Nobody can make one without the key, so a tag that
anybody else writes is a tolerated ``+tag`` and names nobody. It has no letter case and no sign that mail programs or
providers change: lower-case letters and digits.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence

MAC_CHARACTERS = 12
"""Length of the MAC: characters of 5 bits each; 60 bits cannot be guessed by mail."""
LOCAL_PART_OCTETS = 64
"""Longest local part of an address: octets (RFC 5321 section 4.5.3.1.1). A longer one gets no tag."""
KEY_OCTETS = 32
"""Length of a key: octets, as the digest of SHA-256 (RFC 2104 section 3)."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PROBE_ID = re.compile(r"reply-tag-probe\.[0-9a-f]{32}@[!-;=?-~]{1,255}")
_FORM = re.compile(rf"([1-9a-z][0-9a-z]{{0,12}})([a-z2-7]{{{MAC_CHARACTERS}}})")


def new_key() -> bytes:
    """Create a key at random."""
    return secrets.token_bytes(KEY_OCTETS)


def make_tag(key: bytes, external_id: int, author_id: int) -> str:
    """Return the tag of an author of this external account."""
    return _in_digits(author_id) + _mac(key, external_id, author_id)


def is_tag(text: str) -> bool:
    """Return whether a text has the form of a tag, unverified."""
    return _FORM.fullmatch(text) is not None


def author_of(tag: str, external_id: int, keys: Iterable[bytes]) -> int | None:
    """Return the author whom a tag names; None if it was made with none of the keys, or for another account."""
    found = _FORM.fullmatch(tag)
    if found is None:
        return None
    author_id = int(found[1], 36)
    valid = [hmac.compare_digest(found[2], _mac(key, external_id, author_id)) for key in keys]
    return author_id if any(valid) else None


def tagged_address(address: str, tag: str) -> str | None:
    """Return an address with the tag; None if its local part would be too long."""
    local, _, domain = address.rpartition("@")
    tagged = f"{local}+{tag}"
    return f"{tagged}@{domain}" if len(tagged.encode()) <= LOCAL_PART_OCTETS else None


def new_probe_tag() -> str:
    """Return a tag that names nobody and looks as any other one, for a probe mail."""
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return _in_digits(1 + secrets.randbelow(36**3)) + "".join(secrets.choice(letters) for _ in range(MAC_CHARACTERS))


def new_probe_id(domain: str) -> str:
    """Return the Message-ID of a probe mail. :param domain: of the account, in A-labels."""
    return f"reply-tag-probe.{secrets.token_hex(16)}@{domain}"


def probe_ids(message_ids: Iterable[str]) -> Sequence[str]:
    """Return those of these Message-IDs that have the form of a probe mail's."""
    return [message_id for message_id in message_ids if _PROBE_ID.fullmatch(message_id)]


def _mac(key: bytes, external_id: int, author_id: int) -> str:
    digest = hmac.digest(key, b"reply tag %d %d" % (external_id, author_id), hashlib.sha256)
    return base64.b32encode(digest).decode("ascii").lower()[:MAC_CHARACTERS]


def _in_digits(number: int) -> str:
    """Return a number above 0 in base 36."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits
