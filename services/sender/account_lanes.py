"""How relaying through one external account stands in this process: its lanes, and what is at hand for them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from services.sender.outgoing_message import MessageSource
from services.sender.smtp_transaction import OutgoingMessage, SmtpEnvelope
from shared.model import External
from shared.provider.smtp_client import SmtpClient
from shared.store.relay_queue import QueuedMail

MAX_PREFETCHED_MAILS = 100
"""So many groups at most are claimed ahead of the lanes."""
MAX_PREFETCHED_OCTETS = 4 * 1024 * 1024
"""… and so much of them is held in memory."""
PREFETCHED_SECONDS = 5.0
"""What no lane has taken by then goes back: others may send it, and the operator may cancel it."""


@dataclass(slots=True)
class ClaimedMail:
    """A claimed group on its way. source: None if its bytes are gone. external: the account as it was at the claim."""

    mail: QueuedMail
    external: External
    source: MessageSource | None
    since: float = field(default_factory=time.monotonic)
    message: OutgoingMessage | None = None


@dataclass(slots=True, eq=False)
class LaneConnection:
    """A lane's connection, made when it is needed. external: the account as it was then.

    next: the mail that is to follow the one under way, and ``begun`` its envelope if that went out already.
    spent: the connection is to be closed after the mail under way: another lane has taken what was begun on it.
    prompt: whether the last answer came soon.
    """

    external: External
    client: SmtpClient | None
    pipelined: ClaimedMail | None = None
    pipelined_envelope: SmtpEnvelope | None = None
    must_close: bool = False
    answers_quickly: bool = False


@dataclass(slots=True)
class AccountQueue:
    """allowed: lanes, at the last look. relayed: mails since the account last stood still; so far it looks ahead.

    more: some may be due that were not claimed.
    """

    external_id: int
    lanes: set[asyncio.Task[None]] = field(default_factory=set)
    connections: set[LaneConnection] = field(default_factory=set)
    prefetched: deque[ClaimedMail] = field(default_factory=deque)
    allowed_lanes: int = 0
    relayed: int = 0
    more_due: bool = False

    @property
    def prefetch_limit(self) -> int:
        """How many more are to be claimed ahead. A provider that answers nothing gets nothing ahead."""
        return max(0, min(MAX_PREFETCHED_MAILS, self.relayed) - len(self.prefetched))

    @property
    def prefetch_octets(self) -> int:
        """… and how large they may be together."""
        return MAX_PREFETCHED_OCTETS - sum(len(work.source.head) for work in self.prefetched if work.source is not None)

    @property
    def needs_refill(self) -> bool:
        """Whether it is time to claim more."""
        return self.more_due and 2 * len(self.prefetched) <= min(MAX_PREFETCHED_MAILS, self.relayed)

    def take_all(self) -> list[QueuedMail]:
        """Take away what no lane has: to be given back."""
        groups = [work.mail for work in self.prefetched]
        self.prefetched.clear()
        return groups

    def take_expired(self) -> list[QueuedMail]:
        """The same, if lanes do not come to it."""
        if self.lanes and (not self.prefetched or time.monotonic() - self.prefetched[0].since < PREFETCHED_SECONDS):
            return []
        self.relayed = 0
        return self.take_all()
