"""The driver's own books: what was offered, what was found, and what that comes to. Pure.

A mail is known by the digest of its bytes, so one that was altered is none of those that were offered, and twins are
counted. What the gateway says about itself is not asked, except whether it has told of a possible duplicate.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Copies = Counter[tuple[str, str]]
"""How many of a mail (its digest, or its token) there are in a mailbox (its address)."""


def digest(mail: bytes) -> str:
    """What a mail is known by."""
    return hashlib.sha256(mail).hexdigest()


def token(mail: bytes) -> str:
    """What the driver calls a mail; '' for one that is not its own."""
    found = re.search(rb"^Subject: (\S+)\r?$", mail, re.M)
    return found[1].decode("ascii", "replace") if found else ""


@dataclass(slots=True)
class Findings:
    """Mails by digest or token, with their mailboxes. repeated: duplicates that are explained."""

    lost: Copies = field(default_factory=Counter)
    duplicate: Copies = field(default_factory=Counter)
    repeated: Copies = field(default_factory=Counter)
    altered: Copies = field(default_factory=Counter)
    misdirected: Copies = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.duplicate or self.altered or self.misdirected)

    def lines(self, of: str) -> list[str]:
        """The counts, and some of what is wrong."""
        wrong = [f"{name} {getattr(self, name).total()}" for name in ("lost", "duplicate", "altered", "misdirected")]
        shown = [
            f"  {name}: {what[:40]} in {where or 'no mailbox'} ({count})"
            for name in ("lost", "duplicate", "altered", "misdirected")
            for (what, where), count in list(getattr(self, name).items())[:10]
        ]
        explained = f", repeated and told of {self.repeated.total()}" if self.repeated else ""
        return [f"{of}: {', '.join(wrong)}{explained}", *shown]


def judge(expected: Copies, found: Copies, mails: Collection[str], allowed: Copies | None = None) -> Findings:
    """Compare what has to be in mailboxes with what is there.

    :param mails: all that were offered. :param allowed: copies that may be there beyond the expected ones.
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
    """A mail that a client handed in until it was answered. relayed: outside recipients that have to get it.

    refused: those that the provider refuses. inside: local recipients. outstanding: transactions that ended without a
    final reply, so that the client had to try again and cannot know. refusals: permanent refusals (5yz).
    """

    token: str
    author: str
    mail: bytes
    relayed: tuple[str, ...]
    refused: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    outstanding: int = 0
    accepted: bool = False
    refusals: list[str] = field(default_factory=list)


def relays_expected(submitted: Mapping[str, Submitted]) -> Copies:
    """What the providers have to get: each accepted mail once for each of its recipients."""
    return Counter((each.token, address) for each in submitted.values() if each.accepted for address in each.relayed)
