"""The books: of every mail that was fetched it is known where it is, and what does not add up is told.

The ledger counts what it fetched (``polls.fetched``), in the transaction of the bytes; the other side counts the rows
that are there now, and what was purged of them. Neither is made from the other, so whatever takes a mail away shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.db.database import Connection
from shared.store import accounts, inbound_admin, polls
from shared.store.inbound_admin import InboundCounts

LATE_SECONDS = 600.0
"""Mail in flight for longer than this is a problem."""


@dataclass(frozen=True, slots=True)
class AccountBooks:
    """The books of an external account. fetched: mails, as the ledger counted them. oldest: seconds in flight.

    lost: mails that count as delivered and are in nobody's mailbox; 0 where nobody looked.
    """

    address: str
    fetched: int
    books: InboundCounts
    oldest: float
    lost: int

    @property
    def difference(self) -> int:
        """Mails that were fetched and are nowhere; less than none: mails that nobody fetched."""
        return self.fetched - self.books.total + self.lost

    def shown(self) -> dict[str, int]:
        """In the form of ``status --json``."""
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
    """The books of all external accounts that are not removed, by address. Needs a connection that sees one moment
    (``Database.snapshot``).

    :param thoroughly: look for each mail in the mailboxes, which takes about a second for a million mails.
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
    """Mails that do not add up, over all accounts. Pure."""
    return sum(abs(account.difference) for account in books)


def describe_difference(account: AccountBooks) -> str | None:
    """What does not add up, in words. Pure."""
    if account.difference == 0:
        return None
    lost = f"; {account.lost} of them count as delivered and are in nobody's mailbox" if account.lost else ""
    return f"the books differ: {account.fetched} mails were fetched, {account.books.total} are accounted for{lost}"


def describe_late(account: AccountBooks) -> str | None:
    """What has been on its way for too long, in words. Pure."""
    if not account.books.in_flight or account.oldest <= LATE_SECONDS:
        return None
    return f"{account.books.in_flight} mails in flight, the oldest for {account.oldest / 60:.0f} minutes"
