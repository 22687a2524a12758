"""What a failover may take away, by the driver's own books. Pure.

An asynchronous standby that lags does not have the last commits of the primary. From the moment at which the
replication stops until the standby serves, whatever the driver sees happen may be undone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.faults.books import Copies, Findings


@dataclass(frozen=True, slots=True)
class Lag:
    """A time whose commits the new primary does not have: monotonic seconds."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A mail that the driver saw somewhere: a digest or token, with a mailbox, or '' for none. Monotonic seconds."""

    what: str
    where: str
    begin: float  # it was not there before
    end: float  # it was there then

    def is_in(self, lags: Iterable[Lag]) -> bool:
        """Whether it may have got there in one of these times."""
        return any(self.begin <= lag.end and self.end >= lag.begin for lag in lags)


def within(seen: Iterable[Seen], lags: Iterable[Lag]) -> Copies:
    """Count the mails that were seen to get somewhere in one of these times."""
    known = list(lags)
    return Counter((each.what, each.where) for each in seen if each.is_in(known))


@dataclass(frozen=True, slots=True)
class Undone:
    """What is explained by a lag. lost: it was there, and is gone. repeated: it was there, and came once more."""

    lost: Copies
    repeated: Copies


def take_undone(findings: Findings, may_be_lost: Copies, may_be_repeated: Copies) -> Undone:
    """Take from the findings what a lag explains, and return it."""
    undone = Undone(findings.lost & may_be_lost, findings.duplicate & may_be_repeated)
    findings.lost -= undone.lost
    findings.duplicate -= undone.repeated
    return undone


@dataclass(frozen=True, slots=True)
class Flow:
    """Seconds from an event until a submission that began after it was taken, a mail that was offered after it was
    readable, and a submission that began after it was at the provider; None if that never happened.
    """

    taken: float | None
    inward: float | None
    outward: float | None

    def __str__(self) -> str:
        figures = ("    never" if each is None else f"{each:9.1f}" for each in (self.taken, self.inward, self.outward))
        return "".join(figures)

    @property
    def complete(self) -> bool:
        """Whether mail flows both ways."""
        return None not in (self.taken, self.inward, self.outward)


def flow_since(
    at: float,
    offered: Mapping[str, float],
    begun: Mapping[str, float],
    taken: Mapping[str, float],
    read: Iterable[Seen],
    relayed: Iterable[Seen],
) -> Flow:
    """How soon mail flowed after an event. :param at: its time. :param offered: time by digest. :param begun: time of
    the first try by token. :param taken: time of the final reply by token.
    """

    def first(times: Iterable[float]) -> float | None:
        return min((each - at for each in times), default=None)

    return Flow(
        first(time for token, time in taken.items() if begun[token] >= at),
        first(seen.end for seen in read if at <= offered.get(seen.what, at - 1) <= seen.end),
        first(seen.end for seen in relayed if begun.get(seen.what, at - 1) >= at),
    )
