"""The memory for mails that are being received or committed: a limit for the process, and a share for each account.

Memory is reserved for octets that have arrived, never for a size that a client announces. A mail that finds no room
waits for it. Two rules let one of several waiting mails always finish:

- The oldest mail of each account is not limited by the account's share.
- Room for one mail of the largest size is kept apart, the *lane*. The first waiting mail that is the oldest of its
  account gets the lane until it ends.

The lane is not blocked for long, because a mail that arrives too slowly is ended (connection.py).
"""

from __future__ import annotations

import asyncio

LIMIT_OCTETS = 384 * 1024 * 1024
"""Memory of all mails together: octets, or the lane and the small reserve if these are more. The process uses a fifth
more for them (``keep_large_blocks_apart`` in ``shared/runtime/memory.py``)."""
SMALL_OCTETS = 1024 * 1024
"""Size up to which a mail is small: octets."""
SMALL_RESERVE_OCTETS = 32 * 1024 * 1024
"""Part of the limit for small mails only: octets; they are received while large ones arrive slowly."""
ACCOUNT_OCTETS = 64 * 1024 * 1024
"""Share of an account, without its oldest mail: octets. With a mail of the default size it is less than a third of the
limit, so two accounts that send slowly leave room for the others."""
STEP_OCTETS = 256 * 1024
"""Step in which the memory of a mail grows: octets; a mail that is smaller reserves what it needs."""


class ReceiveMemory:
    """Counts the memory of mails.

    :ivar in_use: octets that are reserved.
    """

    def __init__(self, max_mail_octets: int, limit_octets: int = LIMIT_OCTETS) -> None:
        """:param max_mail_octets: largest mail. :param limit_octets: memory of all mails together."""
        self.in_use = 0
        lane = max_mail_octets + STEP_OCTETS
        self._shared_octets = max(limit_octets - lane, SMALL_RESERVE_OCTETS)  # the limit without the lane
        self._shared_in_use = 0
        self._lane_mail: MailMemory | None = None
        self._by_account: dict[int, dict[MailMemory, None]] = {}  # open mails, the oldest first
        self._waiting: dict[MailMemory, tuple[int, asyncio.Future[None]]] = {}  # octets to add, in the order of calls

    def open(self, account_id: int) -> MailMemory:
        """Start a mail of this account with no octets. The caller closes it."""
        mail = MailMemory(self, account_id)
        self._by_account.setdefault(account_id, {})[mail] = None
        return mail

    def try_add(self, mail: MailMemory, octets: int) -> bool:
        """Reserve so many octets more for a mail, without waiting. Returns whether they are reserved."""
        mails = self._by_account[mail.account_id]
        oldest = next(iter(mails))
        if mail is not oldest and sum(other.octets for other in mails) - oldest.octets + octets > ACCOUNT_OCTETS:
            return False
        small = mail.octets + octets <= SMALL_OCTETS
        if self._shared_in_use + octets <= self._shared_octets - (0 if small else SMALL_RESERVE_OCTETS):
            self._shared_in_use += octets
            mail.shared_octets += octets
        elif mail is oldest and self._lane_mail in (None, mail):
            self._lane_mail = mail
        else:
            return False
        mail.octets += octets
        self.in_use += octets
        return True

    async def add(self, mail: MailMemory, octets: int, seconds: float) -> bool:
        """As ``try_add``, and wait for room. Returns False if ``seconds`` pass first."""
        if self.try_add(mail, octets):
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[mail] = octets, turn
        try:
            async with asyncio.timeout(seconds):
                await turn
        except TimeoutError:
            return turn.done() and not turn.cancelled()
        finally:
            self._waiting.pop(mail, None)
        return True

    def release(self, mail: MailMemory) -> None:
        """Return the memory of a mail that is not received any more, and serve the mails that wait."""
        self.in_use -= mail.octets
        self._shared_in_use -= mail.shared_octets
        mail.octets = mail.shared_octets = 0
        if self._lane_mail is mail:
            self._lane_mail = None
        mails = self._by_account.get(mail.account_id, {})
        mails.pop(mail, None)
        if not mails:
            self._by_account.pop(mail.account_id, None)
        for waiting, (octets, turn) in list(self._waiting.items()):
            if not turn.done() and self.try_add(waiting, octets):
                del self._waiting[waiting]
                turn.set_result(None)


class MailMemory:
    """The memory of one mail.

    :ivar octets: reserved octets. :ivar shared_octets: those of them that are not of the lane.
    """

    __slots__ = ("_memory", "account_id", "octets", "shared_octets")

    def __init__(self, memory: ReceiveMemory, account_id: int) -> None:
        """:param memory: of all mails."""
        self._memory = memory
        self.account_id = account_id
        self.octets = self.shared_octets = 0

    def try_grow(self, octets: int) -> bool:
        """Reserve this size in all, without waiting. Returns whether it is reserved."""
        return octets <= self.octets or self._memory.try_add(self, self._step(octets))

    async def grow(self, octets: int, seconds: float) -> bool:
        """As ``try_grow``, and wait for room. Returns False if ``seconds`` pass first."""
        return octets <= self.octets or await self._memory.add(self, self._step(octets), seconds)

    def close(self) -> None:
        """Return the memory. The mail does not grow any more; a second call does nothing."""
        self._memory.release(self)

    def _step(self, octets: int) -> int:
        """Octets to add, so that the mail has at least ``octets``."""
        whole = octets if octets <= STEP_OCTETS else -(-octets // STEP_OCTETS) * STEP_OCTETS
        return whole - self.octets
