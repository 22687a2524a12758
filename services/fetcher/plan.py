"""Decides what one session does with a maildrop: pure decisions from the provider's list and our ledger.

A mail is identified by its key: its UIDL, plus a number where the list repeats the UIDL. UIDLs contain no blanks, so
the key of a repeated one never equals the key of another mail. Such a key, and a UIDL that only counts the mails,
identifies a position in the list: when a mail is deleted, the next mail moves into its position. These keys are trusted
only while the last known one still identifies the same mail: a deletion before that mail moves it.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from shared.model import External, LedgerEntry, LedgerState, Poll

MAX_TRIES = 10
"""Limit of attempts to fetch a mail; then it stays skipped."""
NOTICE_TRIES = 3
"""Attempt after which the recipients get a notice: a single failure may be the network's."""
INTERRUPTED_FOR = datetime.timedelta(minutes=10)
"""Time for which lost connections and time-outs count as less than NOTICE_TRIES failures of a mail: a network or a
server may fail for as long without the mail's fault. Such a mail is tried again in each poll, alone and last."""
UNCHANGED_TRUST = datetime.timedelta(hours=1)
"""Longest time without a comparison of list and ledger while the list stays the same."""
_RETRY_MINUTES = (0, 0, 10, 60, 240)
_RETRY_LONGEST = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ListedMail:
    """A mail in the provider's list."""

    number: int
    key: str
    repeated: bool  # another mail has the same UIDL, or this mail has none


@dataclass(frozen=True, slots=True)
class ProviderList:
    """The provider's list of mails."""

    mails: tuple[ListedMail, ...]
    complete: bool  # the list is known to be complete; only then is an absent mail gone
    position_keyed: tuple[tuple[ListedMail, ...], ...] = ()  # groups, in order, whose keys identify positions only

    @classmethod
    def of(cls, mails: Iterable[tuple[int, str]], complete: bool) -> ProviderList:
        """Build the list from numbers and UIDLs: a distinct key for each mail, ordered by number."""
        ordered = sorted(mails)
        if "" not in (uidls := {uidl for _, uidl in ordered}) and len(uidls) == len(ordered):
            del uidls  # a list may have a million mails
            return cls._of_distinct(ordered, complete)
        copies = Counter(uidl for _, uidl in ordered)
        seen: Counter[str] = Counter()
        listed = []
        repeated: dict[str, list[ListedMail]] = {}
        for number, uidl in ordered:
            seen[uidl] += 1
            key = uidl if seen[uidl] == 1 else f"{uidl} {seen[uidl]}"
            mail = ListedMail(number, key, copies[uidl] > 1 or not uidl)
            listed.append(mail)
            if mail.repeated:
                repeated.setdefault(uidl, []).append(mail)
        return cls(tuple(listed), complete, tuple(map(tuple, repeated.values())))

    @classmethod
    def _of_distinct(cls, ordered: Sequence[tuple[int, str]], complete: bool) -> ProviderList:
        """As ``of`` for UIDLs that differ; they may only count the mails."""
        listed = tuple(ListedMail(number, uidl, False) for number, uidl in ordered)
        only_count = bool(listed) and all(uidl == str(number) for number, uidl in ordered)
        return cls(listed, complete, (listed,) if only_count else ())


@dataclass(frozen=True, slots=True)
class FetchItem:
    """A mail to fetch, with its ledger row; None if the mail is unknown."""

    mail: ListedMail
    row: LedgerEntry | None = None

    @property
    def tries(self) -> int:
        """Number of failed attempts."""
        return self.row.tries if self.row else 0

    @property
    def next_try_at(self) -> float:
        """When the mail is or was due: seconds of the epoch; 0 if it never failed. The next in turn is the least."""
        return self.row.next_try_at.timestamp() if self.row and self.row.next_try_at else 0.0

    @property
    def was_history(self) -> bool:
        """Whether the mail was in the maildrop at first contact."""
        return self.row is not None and self.row.was_history


@dataclass(frozen=True, slots=True)
class Plan:
    """Work of one session. Every row is as loaded, unless its comment says otherwise."""

    fetch: tuple[FetchItem, ...] = ()  # mails to fetch, in this order
    vanished: tuple[LedgerEntry, ...] = ()  # rows that become 'vanished' now
    reappeared: tuple[LedgerEntry, ...] = ()  # vanished rows that are listed again
    closed: tuple[LedgerEntry, ...] = ()  # rows that become 'closed' now: our deletion took effect
    delete: tuple[tuple[ListedMail, LedgerEntry], ...] = ()  # mails to delete upstream; rows become 'deleting' first
    missing: tuple[LedgerEntry, ...] = ()  # vanished rows, new ones included: unknown mails may be those, renumbered
    deleted: tuple[LedgerEntry, ...] = ()  # closed rows whose UIDLs are listed again: the same mails, or new ones
    lost_history: tuple[LedgerEntry, ...] = ()  # mails of the first contact, vanished since the last complete poll

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do and nothing to record."""
        return not (self.fetch or self.vanished or self.reappeared or self.closed or self.delete)


def keys_to_compare(plan: Plan, maildrop: ProviderList) -> list[str]:
    """Return the keys of mails to fetch that closed rows may name: UIDLs, not positions in the list."""
    positions = {mail.number for group in maildrop.position_keyed for mail in group}
    return [
        item.mail.key
        for item in plan.fetch
        if (item.row is None or item.row.state == "history") and item.mail.number not in positions
    ]


@dataclass(frozen=True, slots=True)
class UnchangedList:
    """A list that needs no work before ``until``, unless the ledger changes."""

    digest: bytes  # from plan_digest
    until: datetime.datetime
    state: bytes | None  # the same of the maildrop's state before it was listed; None if the server tells none


def plan_digest(listed: bytes, account: External, limit: int, poll: Poll) -> bytes:
    """Return a digest of all input of ``decide`` except ledger and time.

    :param listed: digest of the list, or of the maildrop's state.
    """
    return hashlib.sha256(
        repr(
            (
                listed,
                (account.incoming, account.login),
                (account.history, account.delete_after_days, account.delete_history),
                limit,
                poll.first_contact_at,
            )
        ).encode()
    ).digest()


def unchanged_until(
    maildrop: ProviderList, ledger: Iterable[LedgerEntry], account: External, now: datetime.datetime
) -> datetime.datetime:
    """Return until when an empty plan stays empty if list and ledger stay the same; UNCHANGED_TRUST at most."""
    listed = {mail.key: mail for mail in maildrop.mails}
    due = [now + UNCHANGED_TRUST]
    for row in ledger:
        mail = listed.get(row.key)
        if mail is None:
            continue
        if row.state == "skipped" and row.tries < MAX_TRIES and row.next_try_at is not None:
            due.append(retry_time(row.next_try_at, row.tries, now))
        delete_at = deletion_time(row.was_history, row.fetched_at, account)
        if row.state in ("fetched", "deleting") and not mail.repeated and delete_at is not None:
            due.append(delete_at)
    return min(due)


def preexisting_keys(maildrop: ProviderList, ledger: Iterable[LedgerEntry]) -> list[str]:
    """Return the keys of the mails in a maildrop at first contact.

    Empty if the ledger knows one of them: then the account was pointed at the same maildrop under another name, and
    unknown mails have arrived since.
    """
    keys = [mail.key for mail in maildrop.mails]
    return keys if {row.key for row in ledger}.isdisjoint(keys) else []


@dataclass(slots=True)
class _ListedWork:
    """Collects the work for listed mails: one method per ledger state, chosen by ``_LISTED``."""

    account: External
    limit: int  # octets of the largest mail to fetch
    now: datetime.datetime
    new: list[FetchItem] = field(default_factory=list)
    preexisting: list[FetchItem] = field(default_factory=list)
    retries: list[FetchItem] = field(default_factory=list)
    reappeared: list[LedgerEntry] = field(default_factory=list)
    delete: list[tuple[ListedMail, LedgerEntry]] = field(default_factory=list)

    def add(self, mail: ListedMail, row: LedgerEntry | None) -> None:
        if row is None:
            self.new.append(FetchItem(mail))
        else:
            _LISTED[row.state](self, mail, row)

    def add_history(self, mail: ListedMail, row: LedgerEntry) -> None:
        if self.account.history == "all":
            self.preexisting.append(FetchItem(mail, row))

    def add_fetched(self, mail: ListedMail, row: LedgerEntry) -> None:
        if not mail.repeated and is_deletion_due(row.was_history, row.fetched_at, self.account, self.now):
            self.delete.append((mail, row))

    def add_skipped(self, mail: ListedMail, row: LedgerEntry) -> None:
        if is_retry_due(row, self.limit, self.now):
            self.retries.append(FetchItem(mail, row))

    def add_vanished(self, mail: ListedMail, row: LedgerEntry) -> None:
        """Handle the mail as in its state before."""
        self.reappeared.append(row)
        self.add(mail, replace(row, state=row.before or "fetched"))

    def ignore(self, mail: ListedMail, row: LedgerEntry) -> None:
        """Closed rows are not loaded; one needs no work."""


_LISTED: Mapping[LedgerState, Callable[[_ListedWork, ListedMail, LedgerEntry], None]] = {
    "history": _ListedWork.add_history,
    "fetched": _ListedWork.add_fetched,
    "skipped": _ListedWork.add_skipped,
    "deleting": _ListedWork.add_fetched,  # deleted again: the last QUIT had no effect
    "vanished": _ListedWork.add_vanished,
    "closed": _ListedWork.ignore,
}
"""What to do with a listed mail, by the state of its row."""

_VANISHES: Mapping[LedgerState, Literal["history", "fetched", "skipped"]] = {
    "history": "history",
    "fetched": "fetched",
    "skipped": "skipped",
}
"""States in which a row becomes 'vanished' when its mail is absent from a complete list; the value is ``before``."""


def decide(maildrop: ProviderList, ledger: Iterable[LedgerEntry], account: External, limit: int, poll: Poll) -> Plan:
    """Compare the list with the ledger (its rows in every state except 'closed').

    :param limit: octets of the largest mail to fetch. :param poll: for its time, and that of the last complete poll.
    """
    rows = {row.key: row for row in ledger}
    work = _ListedWork(account, limit, poll.now)
    for mail in maildrop.mails:
        work.add(mail, rows.get(mail.key))
    listed = {mail.key for mail in maildrop.mails}
    absent = [row for row in rows.values() if row.key not in listed]
    gone = absent if maildrop.complete else []
    vanished = tuple(row for row in gone if row.state in _VANISHES)
    # Rows that vanished in an interrupted poll count until a complete poll has succeeded.
    before = [row for row in absent if row.state == "vanished"]
    emptied = _emptied_at(rows.values())
    return Plan(
        fetch=(*work.new, *work.preexisting, *work.retries),
        vanished=vanished,
        reappeared=tuple(work.reappeared),
        closed=tuple(row for row in gone if row.state == "deleting"),
        delete=tuple(work.delete),
        missing=(*before, *(replace(row, state="vanished", before=_VANISHES[row.state]) for row in vanished)),
        lost_history=(
            *(row for row in before if row.before == "history" and (_is_recent(row, poll) or row.state_at == emptied)),
            *(row for row in vanished if row.state == "history"),
        ),
    )


def _emptied_at(rows: Iterable[LedgerEntry]) -> datetime.datetime | None:
    """Return when all mails of the maildrop vanished at once, as while a provider moves it; None if some were left."""
    known = list(rows)
    vanished = [row.state_at for row in known if row.state == "vanished"]
    present = [row.state_at for row in known if row.state != "vanished"]
    if not vanished or (present and min(present) < max(vanished)):
        return None
    return max(vanished)


def _is_recent(row: LedgerEntry, poll: Poll) -> bool:
    """Whether the row vanished since the last complete poll."""
    return poll.last_success_at is None or row.state_at > poll.last_success_at


def is_deletion_due(
    was_history: bool, fetched_at: datetime.datetime | None, account: External, now: datetime.datetime
) -> bool:
    """Whether a fetched mail is due for deletion upstream."""
    due = deletion_time(was_history, fetched_at, account)
    return due is not None and due <= now


def deletion_time(
    was_history: bool, fetched_at: datetime.datetime | None, account: External
) -> datetime.datetime | None:
    """Return when a fetched mail is to be deleted upstream; None for never."""
    if account.delete_after_days is None or fetched_at is None or (was_history and not account.delete_history):
        return None
    return fetched_at + datetime.timedelta(days=account.delete_after_days)


def is_retry_due(row: LedgerEntry, limit: int, now: datetime.datetime) -> bool:
    """Whether to try a skipped mail again now."""
    if row.tries >= MAX_TRIES:
        return False
    if row.next_try_at is None:  # the mail was too large
        return row.octets is not None and row.octets <= limit
    return retry_time(row.next_try_at, row.tries, now) <= now


def retry_time(at: datetime.datetime, tries: int, now: datetime.datetime) -> datetime.datetime:
    """Return when a skipped mail is due: at its time, or now if no try could have set that time.

    Such a time was set before the database's clock was set back.
    """
    return at if at <= next_try(max(1, tries), now) else now


def count_failures(item: FetchItem, now: datetime.datetime, *, interrupted: bool = False, least: int = 1) -> int:
    """Return the number of failed attempts with one more.

    :param interrupted: by a lost connection or the like, which proves nothing about the mail until it recurs for
        INTERRUPTED_FOR. :param least: a proven fault of the mail counts as so many attempts at least.
    """
    tries = min(max(item.tries + 1, least), MAX_TRIES)
    failing_since = item.row.state_at if item.row and item.row.state == "skipped" else now
    if interrupted and item.tries < NOTICE_TRIES and abs(now - failing_since) < INTERRUPTED_FOR:
        return min(tries, NOTICE_TRIES - 1)
    return tries


def next_try(tries: int, now: datetime.datetime) -> datetime.datetime:
    """Return when to retry a mail that has failed ``tries`` times: in the next polls, then after longer pauses."""
    if tries > len(_RETRY_MINUTES):
        return now + _RETRY_LONGEST
    return now + datetime.timedelta(minutes=_RETRY_MINUTES[tries - 1])


@dataclass(slots=True)
class RenumberedMails:
    """Finds known mails whose old UIDLs have vanished. Each row matches once, so that copies are counted."""

    by_bytes: dict[tuple[bytes, int], deque[LedgerEntry]] = field(default_factory=dict)  # by SHA-256 and octets
    by_size: dict[int, deque[LedgerEntry]] = field(default_factory=dict)  # skipped rows without digest, by octets

    @classmethod
    def of(cls, vanished: Iterable[LedgerEntry]) -> RenumberedMails:
        """Build the index from rows in state 'vanished'."""
        index = cls()
        for row in vanished:
            if row.sha256 is not None and row.octets is not None:
                index.by_bytes.setdefault((row.sha256, row.octets), deque()).append(row)
            elif row.before == "skipped" and row.octets is not None:
                index.by_size.setdefault(row.octets, deque()).append(row)
        return index

    def take_match(self, sha256: bytes, octets: int) -> LedgerEntry | None:
        """Remove and return the row of a mail with these bytes."""
        return _take_row(self.by_bytes.get((sha256, octets)))

    def take_skipped(self, octets: int) -> LedgerEntry | None:
        """Remove and return the row of a mail of this size that was skipped as too large."""
        return _take_row(self.by_size.get(octets))


def _take_row(rows: deque[LedgerEntry] | None) -> LedgerEntry | None:
    return rows.popleft() if rows else None
