"""The fence: a command behind a mail whose reply is known, and proves that the mail was read to its end. Pure.

A server that does not double dots (RFC 1939 section 3) ends a mail at its first line that is a lone dot. The rest of
that mail comes in place of the reply to the next command, and may even look like one. A mail hardly contains its own
number and unique id, so the reply to ``UIDL n`` is not mistaken; nor is that to ``LIST n``, or to STAT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.provider.pop3_replies import unique_id

Words = tuple[str, ...]
"""The first two words of a reply after +OK."""


@dataclass(frozen=True, slots=True)
class Fence:
    """A command and the replies that the server has to give."""

    verb: str  # UIDL, LIST or STAT
    known: Mapping[int, Words]  # by number of the mail; STAT: of mail 0

    @classmethod
    def of_uidls(cls, uidls: Mapping[int, str]) -> Fence:
        """Return the fence of a server whose UIDL names one mail."""
        return cls("UIDL", {number: (str(number), uidl) for number, uidl in uidls.items() if uidl})

    @classmethod
    def of_sizes(cls, sizes: Mapping[int, int]) -> Fence:
        """Return the fence of a server whose LIST measures one mail."""
        return cls("LIST", {number: (str(number), str(octets)) for number, octets in sizes.items()})

    @classmethod
    def of_counts(cls, count: int, octets: int) -> Fence:
        """Return the fence of a server that only counts its mails."""
        return cls("STAT", {0: (str(count), str(octets))})

    def command(self, number: int) -> bytes:
        """Return the command to send behind mail ``number``."""
        asked = self._asked(number)
        return f"{self.verb} {asked}\r\n".encode() if asked else f"{self.verb}\r\n".encode()

    def matches(self, number: int, text: bytes) -> bool:
        """Whether this is the reply to ``command(number)``. :param text: after +OK."""
        return tuple(unique_id(word) for word in text.split(None, 2)[:2]) == self.known[self._asked(number)]

    def _asked(self, number: int) -> int:
        """Return this mail's number, or another one if the reply for this mail is unknown."""
        return number if number in self.known else next(iter(self.known))
