"""Mail clients by IMAP while servers fail over: they wait in IDLE, and keep a copy of their INBOX."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from tests.failover.books import Seen, wrong_inbox
from tests.faults import clients
from tests.faults.books import digest
from tests.faults.mails import PEOPLE, SHARERS
from tests.faults.seen import is_alarm
from tests.polling import until
from tests.rolling.clients import Ended, Tally
from tests.rolling.imap_clients import Inbox, follow_inbox, read_inbox

SESSION_SECONDS = 5.0
PAUSE_SECONDS = 0.3
"""Time before a client connects again: seconds."""
ALIKE_SECONDS = 60.0
"""Limit of the wait until POP3 and IMAP show the same mails, after the last mail: seconds."""
FOLLOWERS = tuple(PEOPLE[names[0]] for names in SHARERS.values())
"""The first person of each account; none of them deletes mail."""


class _KeptInbox(Inbox):
    """A copy that records when it got each mail. seen: of this mailbox."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        self._address = address

    def add(self, key: tuple[int, int], mail: bytes) -> None:
        if key not in self.mails:
            now = time.monotonic()
            self.seen.append(Seen(digest(mail), self._address, now, now))
        super().add(key, mail)


class Followers:
    """The clients. refusals: permanent ones."""

    def __init__(self, imap_port: int, pop3_port: int) -> None:
        self.refusals: list[str] = []
        self._imap_port, self._pop3_port = imap_port, pop3_port
        self._inboxes = {address: _KeptInbox(address) for address in FOLLOWERS}

    @property
    def heard(self) -> list[Seen]:
        """The mails that they have read, each with the time at which it was read."""
        return [seen for inbox in self._inboxes.values() for seen in tuple(inbox.seen)]

    def follow(self, goes_on: Callable[[], bool]) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines of the clients."""
        return [self._follow(address, goes_on) for address in FOLLOWERS]

    async def _follow(self, address: str, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            try:
                await follow_inbox(self._imap_port, address, self._inboxes[address], Tally(), SESSION_SECONDS)
            except Ended as end:
                if end.outcome == "permanent":
                    self.refusals.append(f"{address}: {end}")
                await asyncio.sleep(PAUSE_SECONDS)

    async def find_wrong(self, *, may_vanish: bool) -> list[str]:
        """Compare all mailboxes by POP3, by IMAP and with the copies. :return: what is wrong, for printing."""
        wrong: list[str] = []

        async def is_right() -> bool:
            wrong[:] = [
                f"{address}: {line}"
                for address in PEOPLE.values()
                for line in await self._compare(address, may_vanish=may_vanish)
            ]
            return not wrong

        with suppress(TimeoutError):
            await until(is_right, ALIKE_SECONDS)
        return wrong

    async def _compare(self, address: str, *, may_vanish: bool) -> list[str]:
        by_pop3: dict[bytes, bytes] = {}
        now, known = Inbox(), self._inboxes.get(address, Inbox())
        try:
            await clients.read(self._pop3_port, address, by_pop3)
            await read_inbox(self._imap_port, address, now, Tally())
        except (clients.Gone, Ended) as error:
            return [str(error)]
        for inbox in (now, known):  # an alarm may arrive at any time
            inbox.mails = {key: mail for key, mail in inbox.mails.items() if not is_alarm(mail)}
        mails = [mail for mail in by_pop3.values() if not is_alarm(mail)]
        return wrong_inbox(mails, now, known, may_vanish=may_vanish)
