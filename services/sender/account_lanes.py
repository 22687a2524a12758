"""The state of relaying through one external account in this process: its lanes, and the mails claimed for them."""

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
"""Limits the mails that an account claims ahead, so that no lane waits for the database: mails."""
MAX_PREFETCHED_OCTETS = 4 * 1024 * 1024
"""Limits the heads of these mails in memory: octets an account."""
PREFETCHED_SECONDS = 5.0
"""Limits how long a prefetched mail waits for a lane: seconds; then its claim is released, so that another sender may
send the mail and an administrator may cancel it."""


@dataclass(slots=True)
class ClaimedMail:
    """A claimed mail that waits for a lane or is being sent."""

    mail: QueuedMail
    external: External  # as it was when the mail was claimed
    account_version: int  # of the external account, at the latest as of ``external``
    source: MessageSource | None  # None: its bytes are gone
    since: float = field(default_factory=time.monotonic)  # when it was claimed
    message: OutgoingMessage | None = None  # built when it is first needed


@dataclass(slots=True, eq=False)
class LaneConnection:
    """The connection of a lane, opened when the first mail needs it."""

    external: External  # as it was when the connection was opened
    client: SmtpClient | None
    pipelined: ClaimedMail | None = None  # the mail that follows the current one
    pipelined_envelope: SmtpEnvelope | None = None  # its envelope, if that was sent behind the final dot
    must_close: bool = False  # close after the current mail: another lane has taken the pipelined mail
    answers_quickly: bool = False  # the last reply to a final dot came soon


@dataclass(slots=True)
class AccountQueue:
    """The lanes and prefetched mails of one account."""

    external_id: int
    lanes: set[asyncio.Task[None]] = field(default_factory=set)
    connections: set[LaneConnection] = field(default_factory=set)
    prefetched: deque[ClaimedMail] = field(default_factory=deque)
    allowed_lanes: int = 0  # as of the last claim
    relayed: int = 0  # mails since the account last failed or was idle; limits prefetching
    more_due: bool = False  # the last claim left due mails unclaimed

    @property
    def prefetch_limit(self) -> int:
        """How many more mails may be claimed ahead. None for a provider that has accepted nothing yet."""
        return max(0, min(MAX_PREFETCHED_MAILS, self.relayed) - len(self.prefetched))

    @property
    def prefetch_octets(self) -> int:
        """How many octets the heads of these mails may have together."""
        return MAX_PREFETCHED_OCTETS - sum(
            len(claimed.source.head) for claimed in self.prefetched if claimed.source is not None
        )

    @property
    def needs_refill(self) -> bool:
        """Whether more mails should be claimed: some are due, and half of the prefetched ones are used up."""
        return self.more_due and 2 * len(self.prefetched) <= min(MAX_PREFETCHED_MAILS, self.relayed)

    def take_all(self) -> list[QueuedMail]:
        """Remove the prefetched mails and return them; the caller releases their claims."""
        mails = [claimed.mail for claimed in self.prefetched]
        self.prefetched.clear()
        return mails

    def take_expired(self) -> list[QueuedMail]:
        """Do the same if no lane runs, or if the oldest prefetched mail has waited too long."""
        if self.lanes and (not self.prefetched or time.monotonic() - self.prefetched[0].since < PREFETCHED_SECONDS):
            return []
        self.relayed = 0
        return self.take_all()
