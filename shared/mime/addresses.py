"""Converts mail addresses: to compare them, and for servers that accept ASCII only (RFC 5890). Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

DOMAIN_OCTETS = 255
"""Longest domain: octets (RFC 1035 section 2.3.4)."""
LABEL_OCTETS = 63
"""Longest label of a domain that is converted: octets (RFC 1035 section 2.3.4); the time for Punycode grows with the
square."""
CACHE_SIZE = 1000
"""Cached labels and accounts: each mail contains those of its account."""


def fold_address(address: str) -> str:
    """Return an address in the form for comparison: case, composed letters and A-labels (RFC 5890) are unified."""
    if address.isascii() and "xn--" not in (lower := address.lower()) and "@" in lower:
        return lower.rstrip(".")
    local, _, domain = unicodedata.normalize("NFC", address).rpartition("@")
    return f"{local.casefold()}@{_u_labels(domain).casefold()}"


def ascii_address(address: str) -> str:
    """Return an address with its domain in A-labels, as every mail server understands it.

    An address with a local part beyond ASCII is returned unchanged.
    """
    local, _, domain = address.rpartition("@")
    return f"{local}@{_a_labels(domain)}" if local.isascii() and not domain.isascii() else address


def spellings(address: str) -> set[str]:
    """Return the lower-case spellings of an address for a comparison by characters: as written, with a domain in
    A-labels or U-labels, and as from ``fold_address``."""
    local, _, domain = address.lower().rpartition("@")
    return {address.lower(), fold_address(address), f"{local}@{_u_labels(domain)}", f"{local}@{_a_labels(domain)}"}


def _u_labels(domain: str) -> str:
    """Return a domain in lower case, without its last dot, in U-labels."""
    domain = unicodedata.normalize("NFC", domain.lower()).rstrip(".")
    return ".".join(map(_u_label, domain.split("."))) if "xn--" in domain and len(domain) <= DOMAIN_OCTETS else domain


@lru_cache(CACHE_SIZE)
def _u_label(label: str) -> str:
    """Return the U-label of an A-label; any other label stays as written. Python's codec "idna" implements an older
    standard (RFC 3490), which maps some letters of today's domains to others."""
    if not label.startswith("xn--") or len(label) > LABEL_OCTETS:
        return label
    with suppress(ValueError):
        text = label[4:].encode("ascii").decode("punycode")
        if not text.isascii() and text == unicodedata.normalize("NFC", text.lower()) and _a_label(text) == label:
            return text
    return label


def _a_labels(domain: str) -> str:
    """Return a domain in lower case, without its last dot, in A-labels."""
    return ".".join(map(_a_label, _u_labels(domain).split(".")))


@lru_cache(CACHE_SIZE)
def _a_label(label: str) -> str:
    if label.isascii() or len(label) > LABEL_OCTETS:
        return label
    return f"xn--{label.encode('punycode').decode('ascii')}"


@lru_cache(CACHE_SIZE)
def address_matcher(addresses: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a function that returns whether an address is one of these; a ``+tag`` is tolerated.

    The result is the same as with ``fold_address``, but no A-label of the given address is decoded: both spellings of
    each label of ``addresses`` are known. So an unknown address differs in its local part or its first other label.
    """
    own = [_split(address) for address in addresses]

    def is_own(address: str) -> bool:
        local, _, domain = address.rpartition("@")
        if len(domain) > DOMAIN_OCTETS:
            return False
        local = _folded(local)
        for own_local, own_labels in own:
            if local == own_local or local.startswith(own_local + "+"):
                labels = domain.rstrip(".").split(".")
                if len(labels) == len(own_labels) and all(
                    _folded(label) in spelled for label, spelled in zip(labels, own_labels, strict=True)
                ):
                    return True
        return False

    return is_own


def plus_tag(address: str, addresses: tuple[str, ...]) -> str | None:
    """Return the ``+tag`` of an address that is one of these (``address_matcher``), folded; None if it has none."""
    local = _folded(address.rpartition("@")[0])
    own_locals = [_folded(own.rpartition("@")[0]) for own in addresses]
    if local in own_locals:
        return None
    tags = [local[len(own) + 1 :] for own in own_locals if local.startswith(own + "+")]
    return min(tags, key=len, default=None)


def _split(address: str) -> tuple[str, list[set[str]]]:
    local, _, domain = address.rpartition("@")
    labels = _u_labels(domain).split(".")
    return _folded(local), [{_folded(label), _a_label(label)} for label in labels]


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()
