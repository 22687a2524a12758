"""The mailboxes of the stand-in, in memory."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field


@dataclass(slots=True)
class DemoMaildrop:
    """mails: content by UIDL, in the order of arrival; CRLF line ends."""

    password: str
    mails: dict[str, bytes] = field(default_factory=dict)

    def put(self, mail: bytes) -> None:
        """Add a mail; its UIDL is never given to another one, also after a restart."""
        self.mails[secrets.token_hex(12)] = mail


class Maildrops:
    """By address, in any case of its letters."""

    def __init__(self, passwords: dict[str, str]) -> None:
        """:param passwords: by address."""
        self._drops = {address.casefold(): DemoMaildrop(password) for address, password in passwords.items()}

    def get(self, address: str) -> DemoMaildrop | None:
        """The mailbox of this address, if there is one."""
        return self._drops.get(address.casefold())

    def open(self, address: str, password: str) -> DemoMaildrop | None:
        """The same for who knows the password."""
        drop = self.get(address)
        return drop if drop is not None and drop.password == password else None
