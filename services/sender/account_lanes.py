"""How relaying through one external account stands in this process: its lanes, and what is at hand for them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from services.sender.outgoing_message import Source
from services.sender.smtp_transaction import Envelope, Letter
from shared.model import External
from shared.provider.smtp_client import SmtpClient
from shared.store.relay_queue import Group

AHEAD = 100
"""So many groups at most are claimed ahead of the lanes."""
AHEAD_OCTETS = 4 * 1024 * 1024
"""… and so much of them is held in memory."""
AHEAD_SECONDS = 5.0
"""What no lane has taken by then goes back: others may send it, and the operator may cancel it."""


@dataclass(slots=True)
class Work:
    """A claimed group on its way. source: None if its bytes are gone. external: the account as it was at the claim."""

    group: Group
    external: External
    source: Source | None
    since: float = field(default_factory=time.monotonic)
    letter: Letter | None = None


@dataclass(slots=True, eq=False)
class Line:
    """A lane's connection, made when it is needed. external: the account as it was then.

    next: the mail that is to follow the one under way, and ``begun`` its envelope if that went out already.
    spent: the connection is to be closed after the mail under way: another lane has taken what was begun on it.
    prompt: whether the last answer came soon.
    """

    external: External
    client: SmtpClient | None
    next: Work | None = None
    begun: Envelope | None = None
    spent: bool = False
    prompt: bool = False


@dataclass(slots=True)
class Outlet:
    """allowed: lanes, at the last look. relayed: mails since the account last stood still; so far it looks ahead.

    more: some may be due that were not claimed.
    """

    external_id: int
    lanes: set[asyncio.Task[None]] = field(default_factory=set)
    lines: set[Line] = field(default_factory=set)
    ahead: deque[Work] = field(default_factory=deque)
    allowed: int = 0
    relayed: int = 0
    more: bool = False

    @property
    def room(self) -> int:
        """How many more are to be claimed ahead. A provider that answers nothing gets nothing ahead."""
        return max(0, min(AHEAD, self.relayed) - len(self.ahead))

    @property
    def room_octets(self) -> int:
        """… and how large they may be together."""
        return AHEAD_OCTETS - sum(len(work.source.beginning) for work in self.ahead if work.source is not None)

    @property
    def low(self) -> bool:
        """Whether it is time to claim more."""
        return self.more and 2 * len(self.ahead) <= min(AHEAD, self.relayed)

    def drop(self) -> list[Group]:
        """Take away what no lane has: to be given back."""
        groups = [work.group for work in self.ahead]
        self.ahead.clear()
        return groups

    def stale(self) -> list[Group]:
        """The same, if lanes do not come to it."""
        if self.lanes and (not self.ahead or time.monotonic() - self.ahead[0].since < AHEAD_SECONDS):
            return []
        self.relayed = 0
        return self.drop()
