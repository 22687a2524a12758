"""Identifies maildrops and mails whose UIDLs are not reliable: reused, moved, or renumbered by the provider.

A provider may serve another maildrop under the same account, number mails by position, or renumber all of them. The
bytes of a few mails show that, or their age. The result decides which rows of the ledger name a listed mail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import structlog

from services.fetcher import failure_notices
from services.fetcher.plan import FetchItem, ListedMail, Plan, ProviderList, RenumberedMails
from shared.db.database import Database
from shared.mime.headers import header_end
from shared.model import External, LedgerEntry, Poll
from shared.provider.maildrop import MaildropSession
from shared.provider.retrieval import MailRequest, Retrieved
from shared.store import polls, uidl_ledger

HEADER_OCTETS = 1024 * 1024
"""Limit of a header: octets; the rest is ignored."""
SAMPLE_MAILS = 3
"""Mails that are read to distinguish one maildrop from another."""

log = structlog.get_logger()


def header_of(body: bytearray | bytes) -> bytes:
    """Return the header of a mail, up to HEADER_OCTETS."""
    head = bytes(memoryview(body)[:HEADER_OCTETS])
    return head[: header_end(head)]


class ReusedUidls:
    """Compares the mails of a list with their rows in the ledger, before the list is planned."""

    def __init__(
        self, database: Database, client: MaildropSession, account: External, poll: Poll, max_octets: int
    ) -> None:
        """:param poll: with the time of the first contact. :param max_octets: of the largest mail to read."""
        self._database = database
        self._client = client
        self._account = account
        self._first_contact = poll.first_contact_at
        self._limit = max_octets

    async def find_reused_uidls(self, maildrop: ProviderList) -> list[LedgerEntry]:
        """Return the rows whose UIDLs identify other mails now; some mails are read to find out.

        Without this check a new mail under an old UIDL would count as fetched, and be deleted upstream unread.
        """
        if self._first_contact is not None and not maildrop.position_keyed:
            return []
        async with self._database.transaction() as connection:
            rows = {row.key: row for row in await uidl_ledger.load_entries(connection, self._account.id)}
        if self._first_contact is None and await self._is_foreign(maildrop, rows):
            return list(rows.values())
        return await self._find_moved(maildrop, rows)

    async def _find_moved(self, maildrop: ProviderList, rows: dict[str, LedgerEntry]) -> list[LedgerEntry]:
        """Return all known rows of each position-keyed group whose last known UIDL identifies another mail now."""
        last_known: dict[int, tuple[LedgerEntry, tuple[ListedMail, ...]]] = {}
        for mails in maildrop.position_keyed:
            known = [(mail, rows[mail.key]) for mail in mails if mail.key in rows and self._can_verify(rows[mail.key])]
            if known:
                last_known[known[-1][0].number] = known[-1][1], mails
        moved: list[LedgerEntry] = []
        async for got in self._client.retrieve([MailRequest(number, 0) for number in last_known], self._limit):
            row, mails = last_known[got.number]
            if got.body is not None and not self._same_mail(row, got.body, got):
                moved += [rows[mail.key] for mail in mails if mail.key in rows]
        if moved:
            log.warning("UIDLs reused for other mails", external=self._account.address, mails=len(moved))
        return moved

    def _can_verify(self, row: LedgerEntry) -> bool:
        """Whether a mail can be compared with this row: by its bytes, or by its age."""
        return row.sha256 is not None or (row.state == "history" and self._account.history == "from_now")

    def _same_mail(self, row: LedgerEntry, body: bytearray, got: Retrieved) -> bool:
        if row.sha256 is not None:
            return (got.sha256, got.octets) == (row.sha256, row.octets)
        received = failure_notices.first_received_date(header_of(body))
        return received is None or self._first_contact is None or received < self._first_contact

    async def _is_foreign(self, maildrop: ProviderList, known: dict[str, LedgerEntry]) -> bool:
        """Whether this is another maildrop than the one in the ledger: many servers number each maildrop from 1.

        Checked at first contact, which is repeated when the account's server or login changes.
        """
        rows = {key: row for key, row in known.items() if row.sha256 is not None}
        known_here = {mail.number: rows[mail.key] for mail in maildrop.mails if mail.key in rows and not mail.repeated}
        if not known_here:
            return False
        sizes = await self._client.fetch_sizes(list(known_here))
        samples = sorted(known_here, key=lambda number: sizes.get(number, 0))[:SAMPLE_MAILS]
        equal = [
            (got.sha256, got.octets) == (known_here[got.number].sha256, known_here[got.number].octets)
            async for got in self._client.retrieve(
                [MailRequest(number, sizes.get(number, 0)) for number in samples], self._limit
            )
            if got.body is not None
        ]
        return bool(equal) and not any(equal)


class RenumberedHistory:
    """Finds known mails under new UIDLs, while a session fetches. Each lost row is matched once."""

    def __init__(self, database: Database, account: External, poll: Poll, plan: Plan) -> None:
        """:param poll: with the time of the first contact."""
        self._database = database
        self._account = account
        self._poll = poll
        self._first_contact = poll.first_contact_at
        self._lost_history = deque(plan.lost_history)
        self._without_header: set[int] = set()  # unknown mails whose header came not alone
        self._fetched = RenumberedMails.of(plan.missing)
        self._deleted = {(row.key, row.sha256, row.octets): row for row in plan.deleted}

    @property
    def expects_history(self) -> bool:
        """Whether mails of the first contact are lost that may be listed under new UIDLs."""
        return bool(self._lost_history)

    def take_fetched(self, item: FetchItem, got: Retrieved) -> LedgerEntry | None:
        """Return the row of a mail with these bytes that vanished, or that we deleted under this UIDL, if the mail
        itself was not fetched before."""
        if item.row is not None and item.row.state != "history":
            return None
        deleted = self._deleted.pop((item.mail.key, got.sha256, got.octets), None)
        return deleted or self._fetched.take_match(got.sha256, got.octets)

    def take_skipped(self, item: FetchItem, octets: int) -> LedgerEntry | None:
        """Return the vanished row of a mail of this size that was too large, if the mail itself is unknown."""
        return self._fetched.take_skipped(octets) if item.row is None else None

    def unknown_mails(self, items: Sequence[FetchItem]) -> list[FetchItem]:
        """Return the mails whose headers ``leave_out_preexisting`` needs."""
        return [item for item in items if item.row is None] if self._lost_history else []

    async def leave_out_preexisting(self, items: Sequence[FetchItem], headers: dict[int, bytes]) -> list[FetchItem]:
        """Return the items to fetch: all except mails of the first contact that have new UIDLs now.

        Their bytes were never fetched, so their age identifies them: as many as vanished, if they are older than the
        first contact.

        :param headers: of the unknown mails, by number, as far as the provider showed them alone.
        """
        unknown = self.unknown_mails(items)
        preexisting: dict[str, LedgerEntry] = {}
        for item in unknown:
            header = headers.get(item.mail.number)
            if header is None:
                self._without_header.add(item.mail.number)  # checked when the mail has come
            elif self._lost_history and self._predates(header):
                preexisting[item.mail.key] = self._lost_history.popleft()
        await self._record_preexisting([(row, key) for key, row in preexisting.items()])
        return [item for item in items if item.mail.key not in preexisting]

    async def is_preexisting(self, item: FetchItem, got: Retrieved) -> bool:
        """Whether a fetched mail, whose header did not come alone, is a renumbered mail of the first contact."""
        if got.number not in self._without_header or not self._lost_history or got.body is None:
            return False
        if not self._predates(header_of(got.body)):
            return False
        await self._record_preexisting([(self._lost_history.popleft(), item.mail.key)])
        return True

    def _predates(self, header: bytes) -> bool:
        received = failure_notices.first_received_date(header)
        return received is not None and self._first_contact is not None and received < self._first_contact

    async def _record_preexisting(self, pairs: Sequence[tuple[LedgerEntry, str]]) -> None:
        if pairs:
            async with self._database.transaction() as connection:
                await polls.renew_lease(connection, self._poll)
                await uidl_ledger.record_renumbered_history(connection, pairs)
            log.info("mails of the first contact renumbered", external=self._account.address, mails=len(pairs))
