"""The mailboxes of the stand-in, in memory."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field


@dataclass(slots=True)
class DemoMaildrop:
    """A mailbox and its password."""

    password: str
    mails: dict[str, bytes] = field(default_factory=dict)  # content by UIDL, in the order of arrival; CRLF line ends

    def put(self, mail: bytes) -> None:
        """Add a mail. Its UIDL is unique, also after a restart."""
        self.mails[secrets.token_hex(12)] = mail


class Maildrops:
    """The mailboxes by address, case-insensitive."""

    def __init__(self, passwords: dict[str, str]) -> None:
        """:param passwords: by address."""
        self._drops = {address.casefold(): DemoMaildrop(password) for address, password in passwords.items()}

    def get(self, address: str) -> DemoMaildrop | None:
        """Return the mailbox of this address, None if there is none."""
        return self._drops.get(address.casefold())

    def open(self, address: str, password: str) -> DemoMaildrop | None:
        """Return the mailbox of this address, None if the password is wrong."""
        drop = self.get(address)
        return drop if drop is not None and drop.password == password else None
