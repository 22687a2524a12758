"""The driver's own books: compares the mails that were offered with the mails that were found. Pure.

A mail is identified by the digest of its bytes, so an altered mail is none of the offered ones, and identical mails are
counted. The gateway's own records are used for one question only: whether it reported a possible duplicate.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Copies = Counter[tuple[str, str]]
"""Number of copies by mail (its digest or its token) and mailbox (its address)."""


def digest(mail: bytes) -> str:
    """Return the identity of a mail: the SHA-256 digest of its bytes, in hexadecimal."""
    return hashlib.sha256(mail).hexdigest()


def token(mail: bytes) -> str:
    """Return the token in a mail's subject; "" for a mail that the driver did not make."""
    found = re.search(rb"^Subject: (\S+)\r?$", mail, re.M)
    return found[1].decode("ascii", "replace") if found else ""


@dataclass(slots=True)
class Findings:
    """The differences between expected and found copies."""

    lost: Copies = field(default_factory=Counter)
    duplicate: Copies = field(default_factory=Counter)
    repeated: Copies = field(default_factory=Counter)  # duplicates that are allowed
    altered: Copies = field(default_factory=Counter)
    misdirected: Copies = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether no copy is lost, duplicate, altered or misdirected."""
        return not (self.lost or self.duplicate or self.altered or self.misdirected)

    def lines(self, of: str) -> list[str]:
        """Return the counts and up to ten copies of each kind of error, for printing. :param of: the heading."""
        wrong = [f"{name} {getattr(self, name).total()}" for name in ("lost", "duplicate", "altered", "misdirected")]
        shown = [
            f"  {name}: {what[:40]} in {where or 'no mailbox'} ({count})"
            for name in ("lost", "duplicate", "altered", "misdirected")
            for (what, where), count in list(getattr(self, name).items())[:10]
        ]
        explained = f", allowed duplicates {self.repeated.total()}" if self.repeated else ""
        return [f"{of}: {', '.join(wrong)}{explained}", *shown]


def judge(expected: Copies, found: Copies, mails: Collection[str], allowed: Copies | None = None) -> Findings:
    """Compare the copies that must be in mailboxes with those that are there.

    :param mails: every mail that was offered. :param allowed: copies that may exist beyond the expected ones.
    """
    findings = Findings(lost=expected - found)
    for (mail, address), count in (found - expected).items():
        if mail not in mails:
            findings.altered[mail, address] += count
        elif (mail, address) not in expected:
            findings.misdirected[mail, address] += count
        else:
            explained = min(count, (allowed or Counter())[mail, address])
            findings.repeated[mail, address] += explained
            findings.duplicate[mail, address] += count - explained
    for name in ("duplicate", "repeated"):
        setattr(findings, name, +getattr(findings, name))
    return findings


@dataclass(slots=True)
class Submitted:
    """A mail that a client submits again and again until it gets a final reply."""

    token: str
    author: str
    mail: bytes
    relayed: tuple[str, ...]  # outside recipients that the provider accepts
    refused: tuple[str, ...] = ()  # outside recipients that the provider refuses
    inside: tuple[str, ...] = ()  # local recipients
    outstanding: int = 0  # transactions that ended after DATA without a final reply: the mail may have been accepted
    accepted: bool = False
    refusals: list[str] = field(default_factory=list)  # permanent replies (5yz)


def relays_expected(submitted: Mapping[str, Submitted]) -> Copies:
    """Return the copies that the providers must get: each accepted mail once for each outside recipient."""
    return Counter((each.token, address) for each in submitted.values() if each.accepted for address in each.relayed)
