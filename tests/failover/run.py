"""Offers mail while servers fail over, observes where it arrives, and judges the result."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tests.failover.books import Flow, Lag, Seen, flow_since, take_undone, within
from tests.failover.followers import Followers
from tests.failover.stand import FailoverStand
from tests.faults.books import Copies, Findings, Submitted, digest
from tests.faults.drive import READER, Drive
from tests.faults.mails import ACCOUNTS, PEOPLE
from tests.faults.plan import SHORT
from tests.faults.seen import failed_recipients

RATE = 15
"""Mails, and as many submissions, offered per second: a load that two cores can process."""
MOST = 1_000_000
"""Number of mails in the plan: more than any run offers; the case ends the run."""
WATCH_SECONDS = 0.2
"""Interval at which the providers are polled: seconds; the precision of the printed times."""
REST_SECONDS = 180.0
"""Limit of the wait for all mail to arrive after the last failover: seconds; no operator acts meanwhile."""
FLOW_SECONDS = 120.0
"""Limit of the wait for mail to flow after a failover: seconds; a run that waits longer has failed."""


class Maildrop(dict[str, bytes]):
    """The provider's mails by UIDL; records when each is deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[Seen] = []

    def pop(self, key: str, *default: Any) -> Any:
        """Delete a mail."""
        if key in self:
            now = time.monotonic()
            self.deleted.append(Seen(digest(self[key]), "", now, now))
        return super().pop(key, *default)


class FailoverDrive(Drive):
    """One case. All people read during the run, so that the driver knows which mails a lost commit had shown.

    One of each account also waits for mail by IMAP.
    """

    readers = MappingProxyType({address: address == READER for address in PEOPLE.values()})
    imap_readers: Mapping[str, bool] = MappingProxyType({})  # its books know of no lost commit

    def __init__(self, stand: FailoverStand, seed: int) -> None:
        most = replace(SHORT, mails=MOST, submissions=MOST, seconds=MOST / RATE)
        super().__init__(stand, replace(most, hands_off_seconds=REST_SECONDS, settle_seconds=REST_SECONDS), seed)
        self.lags: list[Lag] = []
        self.events: list[tuple[str, float]] = []
        self.over = False
        self.undone: dict[str, tuple[int, int]] = {}
        self._maildrop = Maildrop()
        stand.pop3.mails = self._maildrop
        self._followers = Followers(stand.system.settings.imap_port, stand.system.settings.pop3_port)
        self._begun: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._reads: list[Seen] = []
        self._relays: list[Seen] = []
        self._again: list[tuple[float, int]] = []  # sessions of READER: end, listed mails that it had deleted before

    # ------------------------------------------------------------------------------------------ what happens

    @property
    def taken(self) -> int:
        """Number of submissions that were answered with 250."""
        return len(self._taken)

    @property
    def read(self) -> int:
        """Number of copies that were read."""
        return len(self._reads)

    def note(self, event: str, at: float | None = None) -> float:
        """Record an event for the report. :param at: monotonic seconds; None: now. :return: its time."""
        when = time.monotonic() if at is None else at
        print(f"{when:.1f} {event}", file=sys.stderr, flush=True)
        self.events.append((event, when))
        return when

    def flow(self, at: float) -> Flow:
        """Return the times until mail flowed after an event."""
        heard, relays = self._followers.heard, tuple(self._relays)
        return flow_since(at, self._offered, self._begun, self._taken, tuple(self._reads), heard, relays)

    async def until_it_flows(self, since: float) -> None:
        """Wait until mail that was offered after this time has arrived in both directions."""
        async with asyncio.timeout(FLOW_SECONDS):
            while not self.flow(since).complete:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(WATCH_SECONDS)

    async def until_taken(self, count: int) -> None:
        """Wait until ``count`` more submissions have been accepted."""
        wanted = self.taken + count
        async with asyncio.timeout(FLOW_SECONDS):
            while self.taken < wanted:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(WATCH_SECONDS)

    # ------------------------------------------------------------------------------------------ watching

    def _is_over(self) -> bool:
        return self.over

    async def _submit(self, mine: Submitted) -> None:
        self._begun[mine.token] = time.monotonic()
        await super()._submit(mine)
        self._taken[mine.token] = time.monotonic()

    async def _read(self, address: str, *, delete: bool = False) -> int:
        got = self._mailboxes[address]
        before, begin = set(got), time.monotonic()
        try:
            known = await super()._read(address, delete=delete)
            if delete:
                self._again.append((time.monotonic(), known))
            return known
        finally:
            end = time.monotonic()
            self._reads += [Seen(digest(got[uidl]), address, begin, end) for uidl in got.keys() - before]

    def _beside(self) -> list[Coroutine[Any, Any, None]]:
        return [*super()._beside(), self._watch(), *self._followers.follow(lambda: self._offering)]

    async def _watch(self) -> None:
        """Poll the providers while mail is offered, and record when each mail arrives there."""
        known: Copies = Counter()
        begin = time.monotonic()
        while self._offering:
            found = Counter((await asyncio.to_thread(self._relayed)).found)
            end = time.monotonic()
            self._relays += [Seen(token, address, begin, end) for token, address in (found - known).elements()]
            known, begin = found, end
            await asyncio.sleep(WATCH_SECONDS)

    # ------------------------------------------------------------------------------------------ judging

    def _judge(self) -> None:
        self._refusals += self._followers.refusals
        super()._judge()
        wrong = asyncio.run(self._followers.find_wrong(may_vanish=bool(self.lags)))
        self.lines += [f"mailboxes that are wrong by IMAP: {len(wrong)}", *(f"  {line}" for line in wrong)]
        self.clean = self.clean and not wrong

    def _excuse(self, place: str, findings: Findings) -> Findings:
        """Remove from the findings the copies that a lag explains."""
        if self.lags:
            undone = take_undone(findings, self._may_be_lost(place), self._may_be_repeated(place))
            self.undone[place] = undone.lost.total(), undone.repeated.total()
        return findings

    def _changed_listings(self) -> Copies:
        """A lag undoes deletions, and deliveries that somebody has read."""
        return Counter() if self.lags else super()._changed_listings()

    def _taken_in(self, lags: Sequence[Lag]) -> list[Submitted]:
        seen = (Seen(token, "", at, at) for token, at in tuple(self._taken.items()))
        return [self._submitted[token] for token, _ in within(seen, lags)]

    def _may_be_lost(self, place: str) -> Copies:
        """Return the submissions of a lag, and fetched mails that were deleted at the provider in a lag.

        Other mails of a lag are fetched again.
        """
        taken = self._taken_in(self.lags)
        match place:
            case "providers":
                return Counter((each.token, to) for each in taken for to in each.relayed)
            case "notices":
                return Counter((name, each.author) for each in taken for name in each.refused)
            case "copies":
                return Counter((each.token, ACCOUNTS[each.author]) for each in taken)
        lost = Counter((digest(each.mail), to) for each in taken for to in each.inside)
        deleted = within(self._maildrop.deleted, self.lags)
        for what, address in self._expected:
            lost[what, address] += deleted[what, ""]
        return lost

    def _may_be_repeated(self, place: str) -> Copies:
        """Return the copies that were relayed or read in a lag: they are relayed, or can be read, once more."""
        if place == "providers":
            return within(self._relays, self.lags)
        if place == "copies":  # each is searched before it is filed
            return Counter()
        read = within(self._reads, self.lags)
        if place == "mailboxes":
            return read
        mails = {digest(mail): mail for got in self._mailboxes.values() for mail in got.values()}
        repeated: Copies = Counter()
        for (what, address), count in read.items():
            for name in failed_recipients(mails[what]):
                repeated[name, address] += count
        return repeated

    def report(self) -> list[str]:
        """Return the times of the case, the undone copies and the books, for printing."""
        lines = [f"{'':52} accepted  mail in  by IMAP mail out  (seconds after it)"]
        lines += [f"{event:52}{self.flow(at)}" for event, at in self.events]
        for lag in self.lags:
            again = next((known for end, known in self._again if end > lag.end), 0)
            lines.append(
                f"in a lag of {lag.end - lag.begin:.1f} s: submissions accepted {len(self._taken_in([lag]))}, mails "
                f"deleted at the provider {within(self._maildrop.deleted, [lag]).total()}, copies relayed "
                f"{within(self._relays, [lag]).total()}, copies read {within(self._reads, [lag]).total()}; deleted "
                f"mails that were listed again afterwards {again}"
            )
        for place, (lost, repeated) in self.undone.items():
            lines.append(f"undone by lags in {place}: lost {lost}, repeated {repeated}")
        return lines + self.lines
