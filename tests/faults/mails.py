"""The mails of the driver and their recipients. Some mails are identical, and some share a Message-ID."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

SUPPORT, SALES, HELP, INFO, DESK = (f"{name}@company.com" for name in ("support", "sales", "help", "info", "desk"))
"""Fetched by POP3 from a real and a scripted server; by IMAP from a real one, where mail is deleted at HELP and kept at
INFO; by IMAP from a scripted one."""
BY_IMAP = (HELP, INFO)
"""At the real server; copies of sent mail are filed there."""
SHARERS = {
    SUPPORT: ("Alex", "Jim"),
    SALES: ("Kim", "Tom", "Eve"),
    HELP: ("Ida", "Pat"),
    INFO: ("Mia", "Lou"),
    DESK: ("Ben", "Zoe"),
}
PEOPLE = {name: f"{name.lower()}@local.com" for names in SHARERS.values() for name in names}
ACCOUNTS = {PEOPLE[name]: account for account, names in SHARERS.items() for name in names}
"""The external account of each person."""
CUSTOMERS = ("anna@customer.example", "bert@customer.example", "cleo@elsewhere.example")

_LINE = b"A line of some length, so that the mail has a size, and then some.\r\n"
_HARD = b"..two dots\r\n.\r\n\xff\xfe eight bits \x80\r\nFrom the beginning\r\n"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A mail to fetch."""

    account: str  # the external account in whose mailbox it is
    mail: bytes
    people: tuple[str, ...]  # the local addresses that must get it


def incoming(chance: Random, run: str) -> Iterator[Incoming]:
    """Yield mails without end. One in twenty comes twice, and one in twenty has the Message-ID of the one before.

    The first one is the mail that all submissions of ``INFO`` answer.
    """
    question = f"From: {CUSTOMERS[0]}\r\nTo: {INFO}\r\nSubject: {run}-question\r\nMessage-ID: {_question(run)}\r\n\r\n"
    yield Incoming(INFO, question.encode() + _LINE, tuple(PEOPLE[name] for name in SHARERS[INFO]))
    before: str | None = None
    for number in itertools.count(1):
        token = f"{run}-in-{number}"
        account = chance.choice(tuple(SHARERS))
        team = SHARERS[account]
        named = chance.choice(([], [chance.choice(team)], [chance.choice(team)], chance.sample(team, 2)))
        to = ", ".join(f'"{name}" <{account}>' for name in named) or account
        reused = before is not None and chance.random() < 0.05
        message_id = before if reused else f"{token}@customer.example"
        mail = (
            f"Received: from mx.example by provider; Thu, 01 Oct 2026 10:00:00 +0000\r\n"
            f"From: {chance.choice(CUSTOMERS)}\r\nTo: {to}\r\nSubject: {token}\r\nMessage-ID: <{message_id}>\r\n\r\n"
        ).encode() + _body(chance)
        before = message_id
        found = Incoming(account, mail, tuple(PEOPLE[name] for name in dict.fromkeys(named or team)))
        yield found
        if chance.random() < 0.05:
            yield found


def outgoing(chance: Random, run: str) -> Iterator[tuple[str, str, bytes, tuple[str, ...], tuple[str, ...], str]]:
    """Yield submissions without end: token, author, mail, outside recipients, refused ones, a local recipient or ""."""
    for number in itertools.count(1):
        token = f"{run}-out-{number}"
        author = chance.choice(list(PEOPLE.values()))
        relayed = tuple(chance.sample(CUSTOMERS, chance.choice((1, 1, 1, 2))))
        refused = (f"nobody-{number}@customer.example",) if chance.random() < 0.03 else ()
        inside = chance.choice([each for each in PEOPLE.values() if each != author]) if chance.random() < 0.1 else ""
        answers = f"In-Reply-To: {_question(run)}\r\n" if ACCOUNTS[author] == INFO else ""
        mail = (
            f"From: {author}\r\nTo: {', '.join(relayed)}\r\nSubject: {token}\r\n{answers}"
            f"Date: Thu, 01 Oct 2026 10:00:00 +0000\r\nMessage-ID: <{token}@local.com>\r\n\r\n"
        ).encode() + _body(chance)
        yield token, author, mail, relayed, refused, inside


def _question(run: str) -> str:
    return f"<{run}-question@customer.example>"


def _body(chance: Random) -> bytes:
    lines = _LINE * (chance.choice((1, 10, 50)) if chance.random() < 0.98 else 6000)
    return lines + (_HARD if chance.random() < 0.3 else b"")


def stuffed(mail: bytes) -> bytes:
    """Return a mail with dot-stuffing and the final dot, as SMTP transmits it (RFC 5321 section 4.5.2)."""
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in mail.split(b"\r\n")) + b".\r\n"
