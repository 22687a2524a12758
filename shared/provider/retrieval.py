"""The values of a session with a maildrop, by POP3 or IMAP: lists of mails, requests, and mails that came. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

STEP_OCTETS = 1024 * 1024
"""Step in which a large mail reserves memory: octets. A smaller mail reserves none."""
HEAD_OCTETS = 256 * 1024
"""Octets that are kept of a mail that is too large: its header, for the notice about it."""

ReserveMemory = Callable[[int], Awaitable[None]]
"""Called with the number of octets before a large mail grows by them."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The mails of a maildrop: their numbers in this session, and their keys, which name them in every session.

    complete: the list is known to have every mail. problem: why it has not, in words.
    """

    mails: tuple[tuple[int, str], ...]
    complete: bool
    problem: str = ""


class ListReply(Protocol):
    """The list of mails as the server sent it."""

    @property
    def digest(self) -> bytes:
        """The same for the same list."""

    def parse(self) -> Listing:
        """Parse the list. A long one takes longer than the event loop may wait: call this in a thread."""


@dataclass(frozen=True, slots=True)
class MailRequest:
    """A mail to retrieve. octets: its size as the server announces it, 0 if unknown; many servers guess it."""

    number: int
    octets: int


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The result of one request."""

    number: int
    body: bytearray | None  # with CRLF line ends; None if refused or too large
    octets: int  # length of the body, also if it was too large
    sha256: bytes
    refusal: str | None  # why the server handed out no mail
    head: bytes = b""  # the first octets of a mail that was too large
    temporary: bool = False  # the server says that the refusal may pass


class UndeletedMails(NamedTuple):
    """The mails that the server did not delete, and why; empty if it deleted all."""

    numbers: Sequence[int]
    reason: str = ""
