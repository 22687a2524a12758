"""Polls one account: sessions of some hundred mails, each planned from the provider's current list and the ledger.

``_session_as`` guarantees the order: commit bytes and ledger, then DELE, then QUIT. Gmail marks every mail that was
read as fetched at QUIT and no longer lists it: if a mail that was read could not be stored, the session ends without
QUIT.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import structlog

from services.fetcher import failure_notices
from services.fetcher.committer import Committer, FetchedBytes
from services.fetcher.memory_budget import MemoryShare, OverflowBudget
from services.fetcher.plan import (
    NOTICE_TRIES,
    FetchItem,
    ListedMail,
    Plan,
    ProviderList,
    RenumberedMails,
    UnchangedList,
    decide,
    plan_digest,
    preexisting_keys,
    unchanged_until,
)
from shared.errors import Temporary
from shared.mime.headers import header_end
from shared.model import Content, External, LedgerEntry, Poll
from shared.net.dial import Unreachable, host_port
from shared.provider.credentials import Credential, Credentials
from shared.provider.oauth import Unauthorized
from shared.provider.pop3_client import Pop3Client, ReserveMemory, Retrieved, RetrRequest, open_session
from shared.provider.pop3_errors import LoginRefused, ProtocolError, ReplyTooLong, ServerBusy
from shared.runtime.process import Service
from shared.store import polls, uidl_ledger

SESSION_MAILS = 500
"""Limit of mails in one session; then QUIT and log in again, so that deletions take effect and a lost connection costs
little."""
SESSION_SECONDS = 5.0
"""A session without deletions that is faster than this continues beyond SESSION_MAILS, as QUIT would only cost round
trips. New mail, which the next session finds first, waits no longer than this."""
MAX_SESSION_MAILS = 5_000
"""Limit of mails in such a longer session."""
HEADER_OCTETS = 1024 * 1024
"""Limit of a header: octets; the rest is ignored."""
SAMPLE_MAILS = 3
"""Mails that are read to distinguish one maildrop from another."""
MAX_REFUSED = 3
"""Refused mails in a row up to the end of a session from which on the provider, not the mails, is at fault."""
SIZE_TOLERANCE = 2
"""Providers guess sizes, some badly: a mail whose announced size exceeds this multiple of the limit is too large and is
not read."""

log = structlog.get_logger()


class RefusedRetr(NamedTuple):
    """A mail whose RETR the provider refused."""

    item: FetchItem
    reply: str
    octets: int | None  # None if unknown
    header: bytes | None  # None if TOP did not show it


class Polling:
    """A running poll. The public attributes are its results, as far as they are known."""

    def __init__(
        self, service: Service, credentials: Credentials, account: External, poll: Poll, budget: OverflowBudget
    ) -> None:
        self._service = service
        self._credentials = credentials
        self._share = MemoryShare(budget)
        self._account = account
        self._poll = poll
        self._limit = service.settings.max_message_bytes
        self._first_contact = poll.first_contact_at
        self._without_header: set[int] = set()
        self._lost_history: deque[LedgerEntry] = deque()
        self._renumbered = RenumberedMails()
        self._refused: list[RefusedRetr] = []
        self._session_ends = 0.0
        # For a server that announces PIPELINING and fails with it: one command at a time.
        self._without_pipelining = poll.failures > 0 and poll.last_error_kind == ProtocolError.kind
        self.login_delay = poll.login_delay  # seconds, as announced by the server
        self.backlog: int | None = None  # mails still to fetch; None before the first list
        self.more = False  # the poll succeeded, with mails left to fetch
        self.transferring = False  # mails are being fetched or deleted: cancelling now would waste work
        self.unchanged: UnchangedList | None = None  # the last session had nothing to do
        self.complaints: list[str] = []  # errors of the provider that did not end the poll

    async def run(self) -> None:
        """Fetch all mail of the maildrop.

        :raises Temporary: with a ``kind``, or without one for the database. :raises Permanent: with a ``kind``.
        """
        try:
            while await self._session():
                if self.login_delay or self._service.stopping.is_set():
                    self.more = True
                    break
                self._without_pipelining = False
        finally:
            self._share.close()
        if self.complaints:
            raise ProtocolError(
                "; ".join(f"{host_port(self._account.pop3)}: {text}" for text in dict.fromkeys(self.complaints))
            )

    async def _session(self) -> bool:
        """Log in, fetch, delete, QUIT. Returns whether mail is left to fetch."""
        credential = await self._credential()
        try:
            return await self._session_as(credential)
        except LoginRefused:
            if not credential.token:
                raise
            self._credentials.discard_token(self._account)  # the provider may have revoked the token before it expired
            return await self._session_as(await self._credential())

    async def _session_as(self, credential: Credential) -> bool:
        account = self._account
        async with open_session(account.pop3, self._service.settings.allow_private_upstream) as client:
            await client.login(credential)
            self.login_delay = client.capabilities.login_delay or self.login_delay
            if self._without_pipelining:
                client.disable_pipelining()
            reply = await client.fetch_list_reply()
            if self._is_unchanged(reply.digest):
                self.backlog = 0
                await client.quit()
                return False
            listing = reply.parse()
            if not listing.complete:
                self.complaints.append(
                    f"the list of mails is incomplete: STAT counts {reply.count}, {len(listing.mails)} are listed"
                )
            maildrop = ProviderList.of(listing.mails, listing.complete)
            reused = await self._find_reused_uidls(client, maildrop)
            plan = await self._compare(maildrop, reused, reply.digest)
            self.transferring = bool(plan.fetch or plan.delete)
            committer = Committer(self._service, account, self._poll, self._share)
            handled = 0
            if plan.fetch:
                try:
                    handled = await self._fetch(client, plan, committer)
                finally:
                    await committer.abandon()
            if not committer.lost_mail:
                numbers = [mail.number for mail, _ in plan.delete] + [item.mail.number for item in committer.deleting]
                await self._finish(client, numbers)
            self.transferring = False
            return handled > 0 and self.backlog != 0

    async def _finish(self, client: Pop3Client, numbers: Sequence[int]) -> None:
        """DELE these mails, then QUIT, which deletes them.

        :raises Temporary: the connection ended; the mails may be deleted or not.
        """
        refused = await client.delete(numbers) if numbers else []
        if refused:
            self.complaints.append(f"the provider refuses to delete {len(refused)} mails (DELE)")
        try:
            deleted = await client.quit()
        except Unreachable as error:
            if numbers:
                raise
            log.info("QUIT failed", external=self._account.address, error=str(error))
        else:
            if numbers and not deleted:
                self.complaints.append(f"the provider did not delete {len(numbers)} mails (QUIT)")

    async def _credential(self) -> Credential:
        """Get the credential. :raises LoginRefused: the account is not authorized. :raises Temporary, Permanent: with
        a ``kind``."""
        try:
            return await self._credentials.credential_for(self._account)
        except Unauthorized as error:
            raise LoginRefused(str(error), "AUTH") from error

    def _is_unchanged(self, listed: bytes) -> bool:
        """Whether a session with this list had nothing to do, and neither ledger nor time has changed since.

        Always False after the first session of a poll, which may have changed the ledger.
        """
        poll, self.unchanged = self._poll, None
        if self.backlog is not None or poll.quiet_list is None or poll.quiet_until is None:
            return False
        if poll.first_contact_at is None or poll.now >= poll.quiet_until:
            return False
        if plan_digest(listed, self._account, self._limit, poll) != poll.quiet_list:
            return False
        self.unchanged = UnchangedList(poll.quiet_list, poll.quiet_until)
        return True

    async def _find_reused_uidls(self, client: Pop3Client, maildrop: ProviderList) -> list[LedgerEntry]:
        """Return the rows whose UIDLs identify other mails now; some mails are read to find out.

        Without this check a new mail under an old UIDL would count as fetched, and be deleted upstream unread.
        """
        if self._first_contact is not None and not maildrop.position_keyed:
            return []
        async with self._service.database.transaction() as connection:
            rows = {row.key: row for row in await uidl_ledger.load_entries(connection, self._account.id)}
        if self._first_contact is None and await self._is_foreign(client, maildrop, rows):
            return list(rows.values())
        return await self._find_moved(client, maildrop, rows)

    async def _find_moved(
        self, client: Pop3Client, maildrop: ProviderList, rows: dict[str, LedgerEntry]
    ) -> list[LedgerEntry]:
        """Return all known rows of each position-keyed group whose last known UIDL identifies another mail now."""
        last_known: dict[int, tuple[LedgerEntry, tuple[ListedMail, ...]]] = {}
        for mails in maildrop.position_keyed:
            known = [(mail, rows[mail.key]) for mail in mails if mail.key in rows and self._can_verify(rows[mail.key])]
            if known:
                last_known[known[-1][0].number] = known[-1][1], mails
        moved: list[LedgerEntry] = []
        async for got in client.retrieve([RetrRequest(number, 0) for number in last_known], self._limit):
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
        received = failure_notices.first_received_date(_header(body))
        return received is None or self._first_contact is None or received < self._first_contact

    async def _is_foreign(self, client: Pop3Client, maildrop: ProviderList, known: dict[str, LedgerEntry]) -> bool:
        """Whether this is another maildrop than the one in the ledger: many servers number each maildrop from 1.

        Checked at first contact, which is repeated when the account's server or login changes.
        """
        rows = {key: row for key, row in known.items() if row.sha256 is not None}
        known_here = {mail.number: rows[mail.key] for mail in maildrop.mails if mail.key in rows and not mail.repeated}
        if not known_here:
            return False
        sizes = await client.fetch_sizes()
        samples = sorted(known_here, key=lambda number: sizes.get(number, 0))[:SAMPLE_MAILS]
        equal = [
            (got.sha256, got.octets) == (known_here[got.number].sha256, known_here[got.number].octets)
            async for got in client.retrieve(
                [RetrRequest(number, sizes.get(number, 0)) for number in samples], self._limit
            )
            if got.body is not None
        ]
        return bool(equal) and not any(equal)

    async def _compare(self, maildrop: ProviderList, reused: Sequence[LedgerEntry], listed: bytes) -> Plan:
        """Plan the session and record the state changes that the list shows.

        :param reused: rows whose UIDLs identify other mails now. :param listed: digest of the list.
        """
        account, poll = self._account, self._poll
        async with self._service.database.transaction() as connection:
            await polls.renew_lease(connection, poll)
            if reused:
                await uidl_ledger.detach_uidls(connection, reused)
            if self._first_contact is None:
                if account.history == "from_now" and not maildrop.complete:
                    raise ProtocolError(
                        f"{host_port(account.pop3)}: the list of mails is incomplete, so the mails from before the "
                        "first contact are unknown"
                    )
                self._first_contact = await uidl_ledger.record_first_contact(
                    connection, poll, preexisting_keys(maildrop, await uidl_ledger.load_entries(connection, account.id))
                )
            known = await uidl_ledger.load_entries(connection, account.id)
            plan = decide(maildrop, known, account, self._limit, poll)
            for record, rows in (
                (uidl_ledger.record_closed, plan.closed),
                (uidl_ledger.record_vanished, plan.vanished),
                (uidl_ledger.record_reappeared, plan.reappeared),
                (uidl_ledger.record_deleting, [row for _, row in plan.delete]),
            ):
                if rows:
                    await record(connection, rows)
        if plan.is_empty:
            next_poll = replace(poll, first_contact_at=self._first_contact)
            self.unchanged = UnchangedList(
                plan_digest(listed, account, self._limit, next_poll),
                unchanged_until(maildrop, known, account, poll.now),
            )
        self.backlog = len(plan.fetch)
        self._without_header = set()
        self._lost_history = deque(plan.lost_history)
        self._renumbered = RenumberedMails.of(plan.missing)
        return plan

    async def _fetch(self, client: Pop3Client, plan: Plan, committer: Committer) -> int:
        """Fetch one session's part of the plan. Returns how many mails are finished."""
        total = len(plan.fetch)
        deletes = bool(plan.delete) or self._account.delete_after_days == 0
        max_mails = SESSION_MAILS if deletes or self._lost_history else MAX_SESSION_MAILS
        self._session_ends = time.monotonic() + SESSION_SECONDS
        items: list[FetchItem] = []
        examined = 0
        while examined < total and len(items) < max_mails and not self._stops(client):
            chunk = plan.fetch[examined : examined + max_mails - len(items)]
            items += await self._skip_preexisting(client, chunk, committer)
            examined += len(chunk)
        sizes = await client.fetch_sizes()
        max_octets = SIZE_TOLERANCE * self._limit
        fitting = [item for item in items if sizes.get(item.mail.number, 0) <= max_octets]
        large = [(item, sizes[item.mail.number]) for item in items if sizes.get(item.mail.number, 0) > max_octets]
        plain = [item for item in fitting if item.tries < NOTICE_TRIES - 1]
        last_chance = [item for item in fitting if item.tries >= NOTICE_TRIES - 1]
        done = examined - len(items)
        done += await self._retrieve(client, plain, sizes, committer, {})
        headers = await self._headers(client, [item for item, _ in large], committer)
        for item, octets in large:
            await self._skip_large(committer, item, octets, headers.get(item.mail.number))
        done += len(large)
        for item in last_chance:  # one at a time: a mail that ends every session is counted alone
            if self._stops(client, done):
                break
            headers = await self._headers(client, [item], committer)
            done += await self._retrieve(client, [item], sizes, committer, headers)
        await self._count_all_refused(committer)
        self.backlog = total - done
        return done

    def _stops(self, client: Pop3Client, done: int = 0) -> bool:
        """Whether to request no further mail in this session, which has fetched ``done`` mails."""
        long = done >= SESSION_MAILS and time.monotonic() > self._session_ends
        return long or self._service.stopping.is_set() or client.past_half_time

    # ------------------------------------------------------------------------------------------ mails

    async def _retrieve(
        self,
        client: Pop3Client,
        items: Sequence[FetchItem],
        sizes: dict[int, int],
        committer: Committer,
        headers: dict[int, bytes],
    ) -> int:
        """RETR these mails and commit them. Returns how many are finished: committed, skipped or known.

        :param headers: from TOP, by number, for the notices.
        """
        by_number = {item.mail.number: item for item in items}
        requests = [RetrRequest(number, sizes.get(number, 0)) for number in by_number]
        done = 0

        def stop() -> bool:
            return self._stops(client, len(requests) - len(by_number))

        try:
            async for got in client.retrieve(requests, self._limit, stop, self._reserve_memory(committer)):
                reserved = self._share.finish_mail()
                item = by_number.pop(got.number)
                done += 1
                if got.refusal is not None:
                    octets = sizes.get(got.number)
                    self._refused.append(RefusedRetr(item, got.refusal, octets, headers.get(got.number)))
                    continue
                await self._count_refused(committer, self._refused)
                if got.body is None:
                    committer.lost_mail = True
                    await self._skip_large(committer, item, got.octets, headers.get(got.number) or _header(got.head))
                elif not await self._is_preexisting(item, got):
                    content = Content(got.body, got.octets, got.sha256)
                    first_read = item.row is None or item.row.state == "history"
                    renumbered = self._renumbered.take_match(got.sha256, got.octets) if first_read else None
                    await committer.add(FetchedBytes(item, content, renumbered, reserved))
                    reserved = 0
                    del content
                self._share.release(reserved)
                del got  # otherwise this mail stays in memory while the next one is read
        except Temporary as error:
            if client.reading in by_number:
                await self._count_try(committer, by_number[client.reading], error, sizes, headers)
            raise
        await committer.close()
        return done

    def _reserve_memory(self, committer: Committer) -> ReserveMemory:
        """Return the function that a large mail awaits for memory; the mails read before are committed meanwhile."""

        async def reserve(octets: int) -> None:
            if self._share.waits(octets):
                await committer.close()
            await self._share.reserve_octets(octets)

        return reserve

    async def _count_all_refused(self, committer: Committer) -> None:
        """Count the refused mails of this session.

        :raises ServerBusy: the provider refused all mails at the end. One is counted nevertheless, so that its
            recipients get a notice in the end.
        """
        refused = self._refused
        if len(refused) < MAX_REFUSED:
            await self._count_refused(committer, refused)
            return
        await self._count_refused(committer, refused[:1])
        raise ServerBusy(f"{host_port(self._account.pop3)}: the provider refuses every mail now: {refused[-1].reply}")

    async def _count_refused(self, committer: Committer, refused: Sequence[RefusedRetr]) -> None:
        for item, reply, octets, header in refused:
            await committer.skip(item, f"the provider refuses to hand it out: {reply}", octets, header)
        self._refused = []

    async def _count_try(
        self, committer: Committer, item: FetchItem, error: Exception, sizes: dict[int, int], headers: dict[int, bytes]
    ) -> None:
        """Commit the other mails after a session ended during this mail; count the attempt, so attempts are limited."""
        try:
            await committer.close()
            number = item.mail.number
            if isinstance(error, ReplyTooLong):
                await self._skip_large(committer, item, error.octets, headers.get(number))
            else:
                reason = f"the session ended while it was read: {error}"
                await committer.skip(item, reason, sizes.get(number), headers.get(number))
        except Temporary as unavailable:
            log.warning("fetched mails not committed", external=self._account.address, error=str(unavailable))

    async def _skip_large(self, committer: Committer, item: FetchItem, octets: int, header: bytes | None) -> None:
        renumbered = self._renumbered.take_skipped(octets) if item.row is None else None
        reason = f"it is larger than the {self._limit} octets that are allowed"
        await committer.skip_large(item, reason, octets, header, renumbered)

    async def _headers(self, client: Pop3Client, items: Sequence[FetchItem], committer: Committer) -> dict[int, bytes]:
        """Return the headers of these mails by number, as far as TOP shows them."""
        by_number = {item.mail.number: item for item in items}
        headers: dict[int, bytes] = {}
        try:
            async for got in client.fetch_headers(list(by_number), HEADER_OCTETS):
                if got.body is not None:
                    headers[got.number] = bytes(got.body)
        except Temporary as error:
            if client.reading in by_number:
                await self._count_try(committer, by_number[client.reading], error, {}, {})
            raise
        return headers

    # ------------------------------------------------------------------------------------------ renumbered history

    async def _skip_preexisting(
        self, client: Pop3Client, items: Sequence[FetchItem], committer: Committer
    ) -> list[FetchItem]:
        """Return the items to fetch: all except mails of the first contact that have new UIDLs now.

        Their bytes were never fetched, so their age identifies them: as many as vanished, if they are older than the
        first contact.
        """
        unknown = [item for item in items if item.row is None]
        if not self._lost_history or not unknown:
            return list(items)
        headers = await self._headers(client, unknown, committer)
        preexisting: dict[str, LedgerEntry] = {}
        for item in unknown:
            header = headers.get(item.mail.number)
            if header is None:
                self._without_header.add(item.mail.number)  # no TOP: checked after RETR
            elif self._lost_history and self._predates(header):
                preexisting[item.mail.key] = self._lost_history.popleft()
        await self._record_preexisting([(row, key) for key, row in preexisting.items()])
        return [item for item in items if item.mail.key not in preexisting]

    async def _is_preexisting(self, item: FetchItem, got: Retrieved) -> bool:
        """Whether a fetched mail, whose header TOP did not show, is a renumbered mail of the first contact."""
        if got.number not in self._without_header or not self._lost_history or got.body is None:
            return False
        if not self._predates(_header(got.body)):
            return False
        await self._record_preexisting([(self._lost_history.popleft(), item.mail.key)])
        return True

    def _predates(self, header: bytes) -> bool:
        received = failure_notices.first_received_date(header)
        return received is not None and self._first_contact is not None and received < self._first_contact

    async def _record_preexisting(self, pairs: Sequence[tuple[LedgerEntry, str]]) -> None:
        if pairs:
            async with self._service.database.transaction() as connection:
                await polls.renew_lease(connection, self._poll)
                await uidl_ledger.record_renumbered_history(connection, pairs)
            log.info("mails of the first contact renumbered", external=self._account.address, mails=len(pairs))


def _header(body: bytearray | bytes) -> bytes:
    """Return the header of a mail, up to HEADER_OCTETS."""
    head = bytes(memoryview(body)[:HEADER_OCTETS])
    return head[: header_end(head)]
