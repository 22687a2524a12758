"""The mails of one external account that this process has claimed for one relay, and how many lanes may send them. No
I/O."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from services.sender.outgoing_message import MessageSource
from services.sender.smtp_transaction import OutgoingMessage
from shared.model import External
from shared.store.relay_queue import Claimed, QueuedMail

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
    external: External  # as it was when the mail was claimed; its first relay sends the mail
    account_version: int  # of the external account, at the latest as of ``external``
    source: MessageSource | None  # None: its bytes are gone
    since: float = field(default_factory=time.monotonic)  # when it was claimed
    message: OutgoingMessage | None = None  # built when it is first needed


@dataclass(slots=True)
class AccountQueue:
    """The prefetched mails of one account for one relay. ``changed`` wakes its AccountRelay."""

    external_id: int
    position: int = 0  # of the relay
    prefetched: deque[ClaimedMail] = field(default_factory=deque)
    lane_count: int = 0  # lanes that have a mail
    allowed_lanes: int = 0  # as of the last claim
    careful: bool = False  # as of the last claim: the account fails, and the next mail shows whether that is over
    login_failures: int = 0  # of further lanes, since one has logged in
    limited_lanes: int = 0  # lanes that work, while logins of further ones fail
    limited_until: float = 0.0  # time.monotonic() of the next login of a further lane
    relayed: int = 0  # mails since the account last failed or was idle; limits prefetching
    more_due: bool = False  # the last claim left due mails unclaimed
    claiming: bool = False  # a claim is in progress
    claim_requested: bool = False
    stopping: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def request_claim(self) -> None:
        """Have the due mails of the account claimed, once more if a claim is in progress."""
        self.claim_requested = True
        self.changed.set()

    def add_claimed(self, claimed: Claimed) -> None:
        """Note the limits that a claim has returned."""
        self.allowed_lanes, self.more_due, self.careful = claimed.lanes, claimed.more, claimed.careful
        if time.monotonic() < self.limited_until:
            self.allowed_lanes = min(self.allowed_lanes, max(1, self.limited_lanes))

    def limit_lanes(self, working: int, seconds: float) -> None:
        """Start no further lane for a time: a login has failed while this number of lanes worked."""
        self.limited_lanes, self.limited_until = working, time.monotonic() + seconds
        self.allowed_lanes = min(self.allowed_lanes, working)

    def take_for_new_lane(self) -> ClaimedMail | None:
        """Take the first mail if another lane may start for it."""
        if self.stopping or not self.prefetched or self.lane_count >= self.allowed_lanes:
            return None
        return self.prefetched.popleft()

    def take_next(self) -> ClaimedMail | None:
        """Take the next mail for a lane that has sent its mail; None: the lane is to end."""
        if self.stopping or not self.prefetched or self.lane_count > self.allowed_lanes:
            return None
        return self.prefetched.popleft()

    def give_back(self, claimed: ClaimedMail) -> None:
        """Put a mail back to the front, for any lane."""
        self.prefetched.appendleft(claimed)
        self.changed.set()

    @property
    def is_every_lane_busy(self) -> bool:
        """Whether no free lane could send the first mail sooner than one that is busy."""
        return self.lane_count == self.allowed_lanes

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

    def request_refill(self) -> None:
        """Request a claim if more mails are due and half of the prefetched ones are used up."""
        if self.more_due and not self.claiming and 2 * len(self.prefetched) <= min(MAX_PREFETCHED_MAILS, self.relayed):
            self.request_claim()

    def take_all(self) -> list[QueuedMail]:
        """Remove the prefetched mails and return them; the caller releases their claims."""
        mails = [claimed.mail for claimed in self.prefetched]
        self.prefetched.clear()
        return mails

    def take_expired(self) -> list[QueuedMail]:
        """Do the same if no lane runs, or if the oldest prefetched mail has waited too long."""
        waits = self.prefetched and time.monotonic() - self.prefetched[0].since >= PREFETCHED_SECONDS
        if self.lane_count and not waits:
            return []
        self.relayed = 0
        return self.take_all()
