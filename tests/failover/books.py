"""Decides which losses and duplicates a failover explains. Pure.

An asynchronous standby that lags does not have the last commits of the primary. The failover may undo every change
between the end of the replication and the time at which the standby serves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.faults.books import Copies, Findings, digest
from tests.rolling.imap_clients import Inbox


@dataclass(frozen=True, slots=True)
class Lag:
    """A period whose commits the new primary does not have: monotonic seconds."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Seen:
    """An observation of a mail by the driver."""

    what: str  # digest or token of the mail
    where: str  # mailbox; "": none
    begin: float  # monotonic seconds, the last time without the mail
    end: float  # monotonic seconds, the first time with the mail

    def is_in(self, lags: Iterable[Lag]) -> bool:
        """Return whether the mail may have arrived during one of these periods."""
        return any(self.begin <= lag.end and self.end >= lag.begin for lag in lags)


def within(seen: Iterable[Seen], lags: Iterable[Lag]) -> Copies:
    """Count the mails that may have arrived during one of these periods."""
    known = list(lags)
    return Counter((each.what, each.where) for each in seen if each.is_in(known))


@dataclass(frozen=True, slots=True)
class Undone:
    """The copies that a lag explains."""

    lost: Copies  # arrived in a lag, and are missing afterwards
    repeated: Copies  # arrived in a lag, and once more afterwards


def take_undone(findings: Findings, may_be_lost: Copies, may_be_repeated: Copies) -> Undone:
    """Remove from the findings the copies that a lag explains, and return these copies."""
    undone = Undone(findings.lost & may_be_lost, findings.duplicate & may_be_repeated)
    findings.lost -= undone.lost
    findings.duplicate -= undone.repeated
    return undone


@dataclass(frozen=True, slots=True)
class Flow:
    """Seconds from an event until mail that was offered after the event arrived; None: no such mail has arrived."""

    taken: float | None  # until smtp_in accepted a submission
    inward: float | None  # until a mail was readable by POP3
    heard: float | None  # until a client that waits in IDLE had read a mail
    outward: float | None  # until a submission was at the provider

    def __str__(self) -> str:
        return "".join("    never" if each is None else f"{each:9.1f}" for each in self._times)

    @property
    def complete(self) -> bool:
        """Whether mail flows in both directions."""
        return None not in self._times

    @property
    def _times(self) -> tuple[float | None, ...]:
        return (self.taken, self.inward, self.heard, self.outward)


def flow_since(
    at: float,
    offered: Mapping[str, float],
    begun: Mapping[str, float],
    taken: Mapping[str, float],
    read: Iterable[Seen],
    heard: Iterable[Seen],
    relayed: Iterable[Seen],
) -> Flow:
    """Return the times until mail flowed after an event.

    :param at: time of the event: monotonic seconds, as all times. :param offered: time by digest. :param begun: time
        of the first try by token. :param taken: time of the final reply by token. :param read: by POP3. :param heard:
        by IMAP.
    """

    def first(times: Iterable[float]) -> float | None:
        return min((each - at for each in times), default=None)

    def since(arrived: Iterable[Seen]) -> float | None:
        return first(seen.end for seen in arrived if at <= offered.get(seen.what, at - 1) <= seen.end)

    return Flow(
        first(time for token, time in taken.items() if begun[token] >= at),
        since(read),
        since(heard),
        first(seen.end for seen in relayed if begun.get(seen.what, at - 1) >= at),
    )


def wrong_inbox(by_pop3: Iterable[bytes], by_imap: Inbox, known: Inbox, *, may_vanish: bool) -> list[str]:
    """Compare the mails that a mailbox lists by POP3 and by IMAP now, and those that an IMAP client has kept.

    :param known: what the client kept during the run. :param may_vanish: mails of it may be gone.
    :return: what is wrong.
    """
    shown = Counter(digest(mail) for mail in by_imap.mails.values())
    listed = Counter(digest(mail) for mail in by_pop3)
    other = [key for key, mail in known.mails.items() if by_imap.mails.get(key, mail) != mail]
    gone = [] if may_vanish else sorted(known.mails.keys() - by_imap.mails.keys())
    counts = {
        "mails by POP3 alone": (listed - shown).total(),
        "mails by IMAP alone": (shown - listed).total(),
        "UIDs that named two mails": len({*other, *known.changed, *by_imap.changed}),
        "mails that a client had read by IMAP, and that are gone": len(gone),
    }
    return [f"{what}: {count}" for what, count in counts.items() if count]
