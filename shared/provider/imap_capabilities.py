"""What an IMAP server can do (RFC 3501 section 7.2.1), and how to log in to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Mechanism = Literal["PLAIN", "CRAM-MD5", "LOGIN", "OAUTHBEARER", "XOAUTH2"]
"""LOGIN is the command, not the SASL mechanism of that name."""

_SHOWN = ("IDLE", "UIDPLUS", "SPECIAL-USE")
"""Capabilities that are named to the user."""
_MISSED = {
    "IDLE": "new mail is noticed at the next poll",
    "UIDPLUS": "nothing can be deleted there",
}
"""Capabilities that are named if they are missing, with the consequence."""
MAX_CAPABILITIES = 500
"""Capabilities that are read; servers announce some dozens."""
SHARED_OCTETS, SHARED = 2_000, 200
"""Limit of an announcement whose parsed form is kept for further sessions: octets; and how many are kept: 2 MB."""


@dataclass(frozen=True, slots=True)
class ImapCapabilities:
    """The capabilities that the server announced, in upper case. answered: it announced any."""

    names: frozenset[str] = frozenset()

    @property
    def answered(self) -> bool:
        """Whether the server announced capabilities."""
        return bool(self.names)

    def has(self, name: str) -> bool:
        """Whether the server announced this one, in upper case."""
        return name in self.names

    def offers(self, mechanism: str) -> bool:
        """Whether the server announced this SASL mechanism."""
        return f"AUTH={mechanism}" in self.names

    def shown(self) -> str:
        """Describe the relevant capabilities in words."""
        if not self.answered:
            return "the server announces no capabilities (CAPABILITY)"
        words = [" ".join(name for name in _SHOWN if self.has(name)) or "IMAP4"]
        words += [f"no {name}: {lost}" for name, lost in _MISSED.items() if not self.has(name)]
        return "; ".join(words)


def parse_capabilities(text: bytes) -> ImapCapabilities:
    """Parse the names behind CAPABILITY. Sessions of one server share the result: hundreds may wait for news."""
    return _parse_shared(text) if len(text) <= SHARED_OCTETS else _parse(text)


@lru_cache(SHARED)
def _parse_shared(text: bytes) -> ImapCapabilities:
    return _parse(text)


def _parse(text: bytes) -> ImapCapabilities:
    words = text.upper().split(None, MAX_CAPABILITIES)[:MAX_CAPABILITIES]
    return ImapCapabilities(frozenset(word.decode("latin-1") for word in words))


def choose_mechanisms(capabilities: ImapCapabilities, token: bool, encrypted: bool) -> list[Mechanism]:
    """Return the ways to log in, the best first; empty if the server offers none.

    A server that announces no capabilities, or no mechanism for tokens, is asked for LOGIN or XOAUTH2.

    :param token: with an access token, not a password. :param encrypted: the connection has TLS.
    """
    if token:
        tokens: list[Mechanism] = ["OAUTHBEARER", "XOAUTH2"]
        return [name for name in tokens if capabilities.offers(name)] or ["XOAUTH2"]
    sasl: list[Mechanism] = ["PLAIN", "CRAM-MD5"] if encrypted else ["CRAM-MD5", "PLAIN"]
    offered = [name for name in sasl if capabilities.offers(name)]
    if capabilities.has("LOGINDISABLED"):
        return offered
    at = len(offered) if not encrypted or "CRAM-MD5" not in offered else offered.index("CRAM-MD5")
    return [*offered[:at], "LOGIN", *offered[at:]]
