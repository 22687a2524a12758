"""What is to be done with a maildrop: pure decisions from its list and our ledger.

A mail is known by its key: its UIDL, with a number behind it where a list repeats one. UIDLs hold no blanks, so a
repeated one never takes the key of another. Such a key, and a UIDL that just counts the mails, tells a mail's place in
the list, and the next mail slips into it when one goes. So these are believed only as long as the last known one of
them is the mail that it was: whatever goes before it moves it.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from shared.model import External, LedgerEntry, Poll

MAX_TRIES = 10
"""A mail that cannot be fetched is tried so often; then it stays skipped."""
NOTICE_TRIES = 3
"""At this try its recipients are told: one failure may be the network's."""
QUIET = datetime.timedelta(hours=1)
"""At least so often a list is compared with the ledger, even if it stays the same."""
_RETRY_MINUTES = (0, 0, 10, 60, 240)
_RETRY_LONGEST = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ListedMail:
    """A mail in the provider's list. repeated: another one has the same UIDL, or it has none."""

    number: int
    key: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class ProviderList:
    """The provider's list. complete: it is known to be whole; only then does what is absent count as gone.

    placed: mails, in order, whose keys tell only their places among each other.
    """

    mails: tuple[ListedMail, ...]
    complete: bool
    position_keyed: tuple[tuple[ListedMail, ...], ...] = ()

    @classmethod
    def of(cls, mails: Iterable[tuple[int, str]], complete: bool) -> ProviderList:
        """From numbers and UIDLs: a distinct key for each mail, in the order of numbers."""
        ordered = sorted(mails)
        copies = Counter(uidl for _, uidl in ordered)
        seen: Counter[str] = Counter()
        listed = []
        placed: dict[str, list[ListedMail]] = {}
        for number, uidl in ordered:
            seen[uidl] += 1
            key = uidl if seen[uidl] == 1 else f"{uidl} {seen[uidl]}"
            mail = ListedMail(number, key, copies[uidl] > 1 or not uidl)
            listed.append(mail)
            if mail.repeated:
                placed.setdefault(uidl, []).append(mail)
        if all(uidl == str(number) for number, uidl in ordered):
            return cls(tuple(listed), complete, (tuple(listed),) if listed else ())
        return cls(tuple(listed), complete, tuple(map(tuple, placed.values())))


@dataclass(frozen=True, slots=True)
class FetchItem:
    """A mail to be fetched. row: its ledger row, None if it is unknown."""

    mail: ListedMail
    row: LedgerEntry | None = None

    @property
    def tries(self) -> int:
        """How often it has failed."""
        return self.row.tries if self.row else 0

    @property
    def was_history(self) -> bool:
        """Whether it stood there at first contact."""
        return self.row is not None and self.row.was_history


@dataclass(frozen=True, slots=True)
class Plan:
    """What one session has to do.

    fetch: in order. vanished, reappeared, closed: ledger rows that change their state now. delete: known mails to be
    deleted upstream; those not yet in state 'deleting' get there first. missing: every row, as it stands after this,
    of a mail that is known under no listed UIDL and that we did not delete: unknown mails may be those, renumbered.
    lost_history: the rows of mails of the first contact that vanished since the last whole poll, for the same purpose.
    """

    fetch: tuple[FetchItem, ...] = ()
    vanished: tuple[LedgerEntry, ...] = ()
    reappeared: tuple[LedgerEntry, ...] = ()
    closed: tuple[LedgerEntry, ...] = ()
    delete: tuple[tuple[ListedMail, LedgerEntry], ...] = ()
    missing: tuple[LedgerEntry, ...] = ()
    lost_history: tuple[LedgerEntry, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do, and nothing to be written down."""
        return not (self.fetch or self.vanished or self.reappeared or self.closed or self.delete)


@dataclass(frozen=True, slots=True)
class UnchangedList:
    """With the list of this digest there is nothing to do before ``until``, unless the ledger changes."""

    digest: bytes
    until: datetime.datetime


def plan_digest(listed: bytes, account: External, limit: int, poll: Poll) -> bytes:
    """What ``decide`` depends on, but for the ledger and the time. listed: digest of the list."""
    return hashlib.sha256(
        repr(
            (
                listed,
                (account.pop3.host, account.pop3.port, account.login),
                (account.history, account.delete_after_days, account.delete_history),
                limit,
                poll.first_contact_at,
            )
        ).encode()
    ).digest()


def unchanged_until(
    maildrop: ProviderList, ledger: Iterable[LedgerEntry], account: External, now: datetime.datetime
) -> datetime.datetime:
    """Until when an empty plan stays empty if neither list nor ledger changes; QUIET at the most."""
    listed = {mail.key: mail for mail in maildrop.mails}
    due = [now + QUIET]
    for row in ledger:
        mail = listed.get(row.key)
        if mail is None:
            continue
        if row.state == "skipped" and row.tries < MAX_TRIES and row.next_try_at is not None:
            due.append(row.next_try_at)
        deleted_at = deletion_time(row.was_history, row.fetched_at, account)
        if row.state == "fetched" and not mail.repeated and deleted_at is not None:
            due.append(deleted_at)
    return min(due)


def preexisting_keys(maildrop: ProviderList, ledger: Iterable[LedgerEntry]) -> list[str]:
    """The keys of what stands in a maildrop at first contact.

    Nothing if the ledger knows some of it: then the account was pointed at the same maildrop under another name, and
    what is unknown came since.
    """
    keys = [mail.key for mail in maildrop.mails]
    return keys if {row.key for row in ledger}.isdisjoint(keys) else []


def decide(maildrop: ProviderList, ledger: Iterable[LedgerEntry], account: External, limit: int, poll: Poll) -> Plan:
    """Compare the list with the ledger (its rows in every state but 'closed').

    :param limit: octets of the largest mail to be fetched. :param poll: for its time, and that of the last whole poll.
    """
    rows = {row.key: row for row in ledger}
    new: list[FetchItem] = []
    again: list[FetchItem] = []
    old: list[FetchItem] = []
    reappeared: list[LedgerEntry] = []
    delete: list[tuple[ListedMail, LedgerEntry]] = []
    for mail in maildrop.mails:
        row = rows.pop(mail.key, None)
        if row is not None and row.state == "vanished":
            reappeared.append(row)
            row = replace(row, state=row.before or "fetched")
        if row is None:
            new.append(FetchItem(mail))
        elif row.state == "history" and account.history == "all":
            old.append(FetchItem(mail, row))
        elif row.state == "skipped" and is_retry_due(row, limit, poll.now):
            again.append(FetchItem(mail, row))
        elif (
            row.state in ("fetched", "deleting")
            and not mail.repeated
            and is_deletion_due(row.was_history, row.fetched_at, account, poll.now)
        ):
            delete.append((mail, row))
    gone = list(rows.values()) if maildrop.complete else []
    vanished = tuple(row for row in gone if row.state in ("history", "fetched", "skipped"))
    # a poll that was cut short leaves rows behind that vanished in it: they count until a whole one has succeeded
    before = [row for row in rows.values() if row.state == "vanished"]
    lost = [
        row
        for row in before
        if row.before == "history" and (poll.last_success_at is None or row.state_at > poll.last_success_at)
    ]
    return Plan(
        fetch=(*new, *old, *again),
        vanished=vanished,
        reappeared=tuple(reappeared),
        closed=tuple(row for row in gone if row.state == "deleting"),
        delete=tuple(delete),
        missing=(*before, *(replace(row, state="vanished", before=_before(row)) for row in vanished)),
        lost_history=(*lost, *(row for row in vanished if row.state == "history")),
    )


def _before(row: LedgerEntry) -> Literal["history", "fetched", "skipped"]:
    return row.state if row.state in ("history", "skipped") else "fetched"


def is_deletion_due(
    was_history: bool, fetched_at: datetime.datetime | None, account: External, now: datetime.datetime
) -> bool:
    """Whether a mail that we fetched is due to be deleted upstream."""
    due = deletion_time(was_history, fetched_at, account)
    return due is not None and due <= now


def deletion_time(
    was_history: bool, fetched_at: datetime.datetime | None, account: External
) -> datetime.datetime | None:
    """When a mail that we fetched is to be deleted upstream; None for never."""
    if account.delete_after_days is None or fetched_at is None or (was_history and not account.delete_history):
        return None
    return fetched_at + datetime.timedelta(days=account.delete_after_days)


def is_retry_due(row: LedgerEntry, limit: int, now: datetime.datetime) -> bool:
    """Whether a skipped mail is to be tried again now."""
    if row.tries >= MAX_TRIES:
        return False
    if row.next_try_at is None:  # it was too large
        return row.octets is not None and row.octets <= limit
    return row.next_try_at <= now


def next_try(tries: int, now: datetime.datetime) -> datetime.datetime:
    """When a mail that has failed ``tries`` times is tried again: in the next polls, then ever more seldom."""
    if tries > len(_RETRY_MINUTES):
        return now + _RETRY_LONGEST
    return now + datetime.timedelta(minutes=_RETRY_MINUTES[tries - 1])


@dataclass(slots=True)
class RenumberedMails:
    """Finds mails that we know under UIDLs that vanished, each at most once, so that copies are counted.

    by_bytes: rows by digest and length. by_size: skipped rows by length, which have no digest.
    """

    by_bytes: dict[tuple[bytes, int], deque[LedgerEntry]] = field(default_factory=dict)
    by_size: dict[int, deque[LedgerEntry]] = field(default_factory=dict)

    @classmethod
    def of(cls, vanished: Iterable[LedgerEntry]) -> RenumberedMails:
        """From the rows that are in state 'vanished'."""
        found = cls()
        for row in vanished:
            if row.sha256 is not None and row.octets is not None:
                found.by_bytes.setdefault((row.sha256, row.octets), deque()).append(row)
            elif row.before == "skipped" and row.octets is not None:
                found.by_size.setdefault(row.octets, deque()).append(row)
        return found

    def take_match(self, sha256: bytes, octets: int) -> LedgerEntry | None:
        """The row of a mail with these bytes."""
        return _take(self.by_bytes.get((sha256, octets)))

    def take_skipped(self, octets: int) -> LedgerEntry | None:
        """The row of a mail that was skipped as too large, with this size."""
        return _take(self.by_size.get(octets))


def _take(rows: deque[LedgerEntry] | None) -> LedgerEntry | None:
    return rows.popleft() if rows else None
