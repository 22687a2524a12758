"""Chooses how to log in to a POP3 server with a password or a token (RFC 5034 SASL), and computes the digest of APOP.
Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from shared.provider.pop3_replies import Capabilities

Mechanism = Literal["USER", "PLAIN", "CRAM-MD5", "APOP"]

TokenMechanism = Literal["XOAUTH2", "OAUTHBEARER"]

_TIMESTAMP = re.compile(rb"<[^<>\s]+@[^<>\s]+>")


def timestamp_of(greeting: bytes) -> bytes | None:
    """Return the timestamp of a server that knows APOP (RFC 1939 section 7)."""
    found = _TIMESTAMP.search(greeting)
    return found[0] if found else None


def choose_mechanisms(capabilities: Capabilities, timestamp: bytes | None, encrypted: bool) -> list[Mechanism]:
    """Return the mechanisms to try, the best first. The next one is tried if the server refuses to begin with one.

    A server that announces no mechanism, or no capabilities, is asked for USER.

    :param timestamp: of the greeting; None: no APOP. :param encrypted: the connection has TLS.
    """
    sasl: list[Mechanism] = ["PLAIN", "CRAM-MD5"] if encrypted else ["CRAM-MD5", "PLAIN"]
    offered = [name for name in sasl if name in capabilities.sasl]
    apop: list[Mechanism] = ["APOP"] if timestamp else []
    if capabilities.user:
        return ["USER", *offered, *apop]
    if offered or (capabilities.answered and apop):
        return [*offered, *apop]
    return ["USER", *apop]


def choose_token_mechanism(capabilities: Capabilities) -> TokenMechanism:
    """Return the mechanism for an access token: OAUTHBEARER (RFC 7628) only where nothing else is offered.

    Google and Microsoft document XOAUTH2 for POP3, and some of their servers announce no mechanism before the login.
    """
    offered = capabilities.sasl
    return "OAUTHBEARER" if "OAUTHBEARER" in offered and "XOAUTH2" not in offered else "XOAUTH2"


def apop_digest(timestamp: bytes, password: str) -> str:
    """Return the digest of APOP."""
    return hashlib.md5(timestamp + password.encode(), usedforsecurity=False).hexdigest()
