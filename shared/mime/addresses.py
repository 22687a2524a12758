"""One mail address in its several spellings: to compare, and for servers that know ASCII only (RFC 5890). Pure."""

from __future__ import annotations

import unicodedata
from contextlib import suppress

DOMAIN_OCTETS = 255
"""The longest domain (RFC 1035 section 2.3.4)."""


def fold_address(address: str) -> str:
    """An address in the form in which two that are the same are equal: case, composed letters, A-labels (RFC 5890)."""
    if address.isascii() and "xn--" not in (lower := address.lower()) and "@" in lower:
        return lower.rstrip(".")
    local, _, domain = unicodedata.normalize("NFC", address).rpartition("@")
    return f"{local.casefold()}@{_u_labels(domain).casefold()}"


def ascii_address(address: str) -> str:
    """An address that every mail server understands: the domain in A-labels. As it is if its local part needs more."""
    local, _, domain = address.rpartition("@")
    return f"{local}@{_a_labels(domain)}" if local.isascii() and not domain.isascii() else address


def spellings(address: str) -> set[str]:
    """How an address may be written where it is compared letter by letter in lower case: as it stands, with a domain of
    A-labels or U-labels, and as ``fold_address`` has it."""
    local, _, domain = address.lower().rpartition("@")
    return {address.lower(), fold_address(address), f"{local}@{_u_labels(domain)}", f"{local}@{_a_labels(domain)}"}


def _u_labels(domain: str) -> str:
    """A domain in lower case without its last dot, in letters instead of A-labels."""
    domain = unicodedata.normalize("NFC", domain.lower()).rstrip(".")
    return ".".join(map(_u_label, domain.split("."))) if "xn--" in domain and len(domain) <= DOMAIN_OCTETS else domain


def _u_label(label: str) -> str:
    """What is no A-label stays as written, lest another label is taken for this one. The codec "idna" of Python knows
    another standard (RFC 3490), in which some letters of today's domains are others."""
    if not label.startswith("xn--"):
        return label
    with suppress(ValueError):
        text = label[4:].encode("ascii").decode("punycode")
        if not text.isascii() and text == unicodedata.normalize("NFC", text.lower()) and _a_label(text) == label:
            return text
    return label


def _a_labels(domain: str) -> str:
    """A domain in lower case without its last dot, in ASCII."""
    return ".".join(map(_a_label, _u_labels(domain).split(".")))


def _a_label(label: str) -> str:
    return label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"
