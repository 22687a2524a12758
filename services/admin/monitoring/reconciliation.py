"""The books: every fetched mail is accounted for, and a difference is reported.

One side is the number of fetched mails (``polls.fetched``), counted in the transaction that stores them. The other side
counts the stored and the purged mails. The two sides are counted independently, so a lost mail shows as a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.admin.formatting import counted
from shared.db.database import Connection
from shared.store import accounts, inbound_admin, polls
from shared.store.inbound_admin import InboundCounts

LATE_SECONDS = 600.0
"""Seconds in flight after which a mail is a problem."""


@dataclass(frozen=True, slots=True)
class AccountBooks:
    """The books of an external account."""

    address: str
    fetched: int  # mails, as the fetcher counted them
    books: InboundCounts
    oldest: float  # seconds of the oldest mail in flight
    lost: int  # mails that count as delivered but are in no mailbox; 0 if not checked

    @property
    def difference(self) -> int:
        """Number of fetched mails that are missing; negative: mails that were never fetched."""
        return self.fetched - self.books.total + self.lost

    def shown(self) -> dict[str, int]:
        """The books in the form of ``status --json``."""
        books = self.books
        return {
            "fetched": self.fetched,
            "delivered": books.delivered - self.lost,
            "held": books.held,
            "parked": books.parked,
            "own_copies": books.own_copies,
            "in_flight": books.in_flight,
        }


async def load_accounts(connection: Connection, thoroughly: bool = False) -> list[AccountBooks]:
    """Load the books of all external accounts that are not removed, by address.

    :param connection: one snapshot of the database (``Database.snapshot``).
    :param thoroughly: check each mail in the mailboxes, which takes about a second for a million mails.
    """
    fetched = await polls.load_fetched_counts(connection)
    found = await inbound_admin.count_inbound(connection)
    oldest = await inbound_admin.oldest_in_flight(connection)
    lost = await inbound_admin.count_lost(connection) if thoroughly else {}
    return [
        AccountBooks(
            external.address,
            fetched.get(external.id, 0),
            found.get(external.id, InboundCounts()),
            oldest.get(external.id, 0.0),
            lost.get(external.id, 0),
        )
        for external in await accounts.load_externals(connection)
    ]


def total_difference(books: Sequence[AccountBooks]) -> int:
    """Return the sum of the differences of all accounts, each without its sign. Pure."""
    return sum(abs(account.difference) for account in books)


def describe_difference(account: AccountBooks) -> str | None:
    """Describe the difference of an account's books; None if there is none. Pure."""
    if account.difference == 0:
        return None
    lost = f"; {account.lost} of them count as delivered and are in no mailbox" if account.lost else ""
    verbs = ("was", "were")
    fetched, total = counted(account.fetched, verbs=verbs), f"{account.books.total:,} {verbs[account.books.total != 1]}"
    return f"the counts do not add up: {fetched} fetched, {total} accounted for{lost}"


def describe_late(account: AccountBooks) -> str | None:
    """Describe mail that has been in flight for too long; None if there is none. Pure."""
    if not account.books.in_flight or account.oldest <= LATE_SECONDS:
        return None
    return f"{counted(account.books.in_flight)} in flight, the oldest for {account.oldest / 60:.0f} minutes"
