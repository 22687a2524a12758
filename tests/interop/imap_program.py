"""A mail program that is tested by IMAP, and what a folder of the server contains."""

from __future__ import annotations

import imaplib
from collections.abc import Callable
from dataclasses import dataclass

from tests.interop.mails import Letter
from tests.interop.stand import WAYS, Account, Tls

Read = Callable[[Account], list[bytes]]
Change = Callable[[Account, imaplib.IMAP4, str, list[Letter]], str]
"""Stores the letters in the folder of this name, and changes there what the program can. The session, which is not the
program's, sees whether it is so. Returns the problem; "": there is none."""


@dataclass(frozen=True, slots=True)
class ImapProgram:
    """A mail program. reads: TLS modes; ``change`` uses the last of them."""

    name: str
    version: tuple[str, ...]
    read: Read | None = None  # fetches all mails of INBOX without deleting them
    change: Change | None = None
    reads: tuple[Tls, ...] = WAYS
    in_debian: bool = True  # False: tested only where the command is installed


def stored(session: imaplib.IMAP4, folder: str) -> dict[int, tuple[bytes, bytes]]:
    """Return flags and octets of each mail of a folder, by UID."""
    session.select(folder, readonly=True)
    found = {}
    for uid in session.uid("SEARCH", "ALL")[1][0].split():
        [(head, mail), *_] = session.uid("FETCH", uid.decode(), "(FLAGS BODY.PEEK[])")[1]
        found[int(uid)] = head, mail
    session.unselect()
    return found
