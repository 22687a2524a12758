"""One poll of one account: sessions of some hundred mails, each planned afresh from the provider's list and the ledger.

The order in ``_session_as`` is the promise: bytes and ledger are committed, then DELE, then QUIT. Some providers
(Gmail) count whatever was read before a QUIT as fetched and list it no more: a session that read a mail and could not
keep it ends without.
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
from services.fetcher.memory_budget import MemoryBudget, MemoryShare
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
"""After so many mails QUIT and log in again, so that deletions take effect and a cut costs little."""
SESSION_SECONDS = 5.0
"""Where nothing is deleted, QUIT does nothing but cost round trips: then a session that is quicker than this goes on
beyond those mails. New mail, which the next session finds first, waits no longer."""
MOST_MAILS = 5_000
"""… but to no more than these."""
HEADER_OCTETS = 1024 * 1024
SAMPLES = 3
"""Mails that are read to tell one maildrop from another."""
REFUSED_IN_A_ROW = 3
"""So many refusals up to the end of a session are no fault of the mails: the provider hands out nothing any more."""
SIZE_TOLERANCE = 2
"""Providers guess sizes, some by far: beyond so many times the limit a mail counts as too large without being read."""

log = structlog.get_logger()


class RefusedRetr(NamedTuple):
    """A mail that the provider refuses to hand out. octets, header: of it, as far as they are known."""

    want: FetchItem
    reply: str
    octets: int | None
    header: bytes | None


class Polling:
    """A poll under way. login_delay: seconds, as the server announced.

    backlog: mails still to be fetched, None before it is known. more: it ended well with mails left to fetch.
    in_hand: mails are being fetched or deleted, so that ending it now would waste what was done.
    quiet: its last session had nothing to do, and so it will be for some time. complaints: what the provider did wrong
    that did not end the poll.
    """

    def __init__(
        self, service: Service, credentials: Credentials, account: External, poll: Poll, budget: MemoryBudget
    ) -> None:
        self._service = service
        self._credentials = credentials
        self._share = MemoryShare(budget)
        self._account = account
        self._poll = poll
        self._limit = service.settings.max_message_bytes
        self._first_contact = poll.first_contact_at
        self._suspects: set[int] = set()
        self._lost_history: deque[LedgerEntry] = deque()
        self._renumbered = RenumberedMails()
        self._refused: list[RefusedRetr] = []
        self._share_ends = 0.0
        # a server that announces PIPELINING and stumbles over it is asked one thing at a time
        self._careful = poll.failures > 0 and poll.last_error_kind == ProtocolError.kind
        self.login_delay = poll.login_delay
        self.backlog: int | None = None
        self.more = False
        self.transferring = False
        self.quiet: UnchangedList | None = None
        self.complaints: list[str] = []

    async def run(self) -> None:
        """Fetch all that is there.

        :raises Temporary: with a ``kind``, or because of the database. :raises Permanent: with a ``kind``.
        """
        try:
            while await self._session():
                if self.login_delay or self._service.stopping.is_set():
                    self.more = True
                    break
                self._careful = False
        finally:
            self._share.close()
        if self.complaints:
            raise ProtocolError(
                "; ".join(f"{host_port(self._account.pop3)}: {text}" for text in dict.fromkeys(self.complaints))
            )

    async def _session(self) -> bool:
        """Log in, fetch, delete, QUIT. Returns whether there is more to fetch."""
        credential = await self._credential()
        try:
            return await self._session_as(credential)
        except LoginRefused:
            if not credential.token:
                raise
            self._credentials.discard_token(self._account)  # the provider may have ended it before its time
            return await self._session_as(await self._credential())

    async def _session_as(self, credential: Credential) -> bool:
        account = self._account
        async with open_session(account.pop3, self._service.settings.allow_private_upstream) as client:
            await client.login(credential)
            self.login_delay = client.capabilities.login_delay or self.login_delay
            if self._careful:
                client.disable_pipelining()
            reply = await client.fetch_list_reply()
            if self._is_quiet(reply.digest):
                self.backlog = 0
                await client.quit()
                return False
            listing = reply.parse()
            if not listing.complete:
                self.complaints.append(
                    f"the list of mails is not whole: STAT counts {reply.count}, {len(listing.mails)} are listed well"
                )
            maildrop = ProviderList.of(listing.mails, listing.complete)
            strangers = await self._find_reused_uidls(client, maildrop)
            plan = await self._compare(maildrop, strangers, reply.digest)
            self.transferring = bool(plan.fetch or plan.delete)
            intake = Committer(self._service, account, self._poll, self._share)
            handled = 0
            if plan.fetch:
                try:
                    handled = await self._fetch(client, plan, intake)
                finally:
                    await intake.abandon()
            if not intake.lost:
                numbers = [mail.number for mail, _ in plan.delete] + [want.mail.number for want in intake.deleting]
                await self._finish(client, numbers)
            self.transferring = False
            return handled > 0 and self.backlog != 0

    async def _finish(self, client: Pop3Client, numbers: Sequence[int]) -> None:
        """DELE these, and QUIT: only now they are gone.

        :raises Temporary: nobody knows whether they are.
        """
        refused = await client.delete(numbers) if numbers else []
        if refused:
            self.complaints.append(f"the provider refuses to delete {len(refused)} mails (DELE)")
        try:
            gone = await client.quit()
        except Unreachable as error:
            if numbers:
                raise
            log.info("no goodbye", external=self._account.address, reason=str(error))
        else:
            if numbers and not gone:
                self.complaints.append(f"the provider says that it did not delete {len(numbers)} mails (QUIT)")

    async def _credential(self) -> Credential:
        """:raises Refused: nobody has authorized the account. :raises Temporary, Permanent: with a ``kind``."""
        try:
            return await self._credentials.credential_for(self._account)
        except Unauthorized as error:
            raise LoginRefused(str(error), "AUTH") from error

    def _is_quiet(self, listed: bytes) -> bool:
        """Whether there was nothing to do with this list before, and neither ledger nor time has changed that.

        Asked in the first session of a poll: the ones before may have changed the ledger.
        """
        poll, self.quiet = self._poll, None
        if self.backlog is not None or poll.quiet_list is None or poll.quiet_until is None:
            return False
        if poll.first_contact_at is None or poll.now >= poll.quiet_until:
            return False
        if plan_digest(listed, self._account, self._limit, poll) != poll.quiet_list:
            return False
        self.quiet = UnchangedList(poll.quiet_list, poll.quiet_until)
        return True

    async def _find_reused_uidls(self, client: Pop3Client, maildrop: ProviderList) -> list[LedgerEntry]:
        """What we know under UIDLs that are other mails here. Without this mail would count as fetched, and be deleted
        upstream, that nobody here ever saw. Some of the mails are read to tell."""
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
        """Where UIDLs tell only places in the list: all of them, if the last known one is another mail than it was."""
        last: dict[int, tuple[LedgerEntry, tuple[ListedMail, ...]]] = {}
        for mails in maildrop.position_keyed:
            known = [(mail, rows[mail.key]) for mail in mails if mail.key in rows and self._can_verify(rows[mail.key])]
            if known:
                last[known[-1][0].number] = known[-1][1], mails
        moved: list[LedgerEntry] = []
        async for got in client.retrieve([RetrRequest(number, 0) for number in last], self._limit):
            row, mails = last[got.number]
            if got.body is not None and not self._same_mail(row, got.body, got):
                moved += [rows[mail.key] for mail in mails if mail.key in rows]
        if moved:
            log.warning("UIDLs moved on to other mails", external=self._account.address, mails=len(moved))
        return moved

    def _can_verify(self, row: LedgerEntry) -> bool:
        """Whether it can be told if a mail is the one of this row: by its bytes, or by its age."""
        return row.sha256 is not None or (row.state == "history" and self._account.history == "from_now")

    def _same_mail(self, row: LedgerEntry, body: bytearray, got: Retrieved) -> bool:
        if row.sha256 is not None:
            return (got.sha256, got.octets) == (row.sha256, row.octets)
        received = failure_notices.first_received_date(_header(body))
        return received is None or self._first_contact is None or received < self._first_contact

    async def _is_foreign(self, client: Pop3Client, maildrop: ProviderList, known: dict[str, LedgerEntry]) -> bool:
        """Whether this is another maildrop than the one that we know: many servers just count, each maildrop from 1.

        Asked at a first contact, which comes again when the account is pointed elsewhere.
        """
        rows = {key: row for key, row in known.items() if row.sha256 is not None}
        met = {mail.number: rows[mail.key] for mail in maildrop.mails if mail.key in rows and not mail.repeated}
        if not met:
            return False
        sizes = await client.fetch_sizes()
        samples = sorted(met, key=lambda number: sizes.get(number, 0))[:SAMPLES]
        equal = [
            (got.sha256, got.octets) == (met[got.number].sha256, met[got.number].octets)
            async for got in client.retrieve(
                [RetrRequest(number, sizes.get(number, 0)) for number in samples], self._limit
            )
            if got.body is not None
        ]
        return bool(equal) and not any(equal)

    async def _compare(self, maildrop: ProviderList, strangers: Sequence[LedgerEntry], listed: bytes) -> Plan:
        """Plan the session and write down what the list tells.

        :param strangers: known under UIDLs that are other mails here. :param listed: digest of the list.
        """
        account, poll = self._account, self._poll
        async with self._service.database.transaction() as connection:
            await polls.renew_lease(connection, poll)
            if strangers:
                await uidl_ledger.detach_uidls(connection, strangers)
            if self._first_contact is None:
                if account.history == "from_now" and not maildrop.complete:
                    raise ProtocolError(
                        f"{host_port(account.pop3)}: the list of mails is not whole, so it cannot be told which "
                        "mails are there already"
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
            met = replace(poll, first_contact_at=self._first_contact)
            self.quiet = UnchangedList(
                plan_digest(listed, account, self._limit, met), unchanged_until(maildrop, known, account, poll.now)
            )
        self.backlog = len(plan.fetch)
        self._suspects = set()
        self._lost_history = deque(plan.lost_history)
        self._renumbered = RenumberedMails.of(plan.missing)
        return plan

    async def _fetch(self, client: Pop3Client, plan: Plan, intake: Committer) -> int:
        """Fetch a session's share of the plan. Returns how many mails are done with."""
        left = len(plan.fetch)
        deletes = bool(plan.delete) or self._account.delete_after_days == 0
        most_mails = SESSION_MAILS if deletes or self._lost_history else MOST_MAILS
        self._share_ends = time.monotonic() + SESSION_SECONDS
        wants: list[FetchItem] = []
        taken = 0
        while taken < left and len(wants) < most_mails and not self._stops(client):
            chunk = plan.fetch[taken : taken + most_mails - len(wants)]
            wants += await self._skip_preexisting(client, chunk, intake)
            taken += len(chunk)
        sizes = await client.fetch_sizes()
        most = SIZE_TOLERANCE * self._limit
        fitting = [want for want in wants if sizes.get(want.mail.number, 0) <= most]
        large = [(want, sizes[want.mail.number]) for want in wants if sizes.get(want.mail.number, 0) > most]
        plain = [want for want in fitting if want.tries < NOTICE_TRIES - 1]
        last_chance = [want for want in fitting if want.tries >= NOTICE_TRIES - 1]
        done = taken - len(wants)
        done += await self._retrieve(client, plain, sizes, intake, {})
        headers = await self._headers(client, [want for want, _ in large], intake)
        for want, octets in large:
            await self._skip_large(intake, want, octets, headers.get(want.mail.number))
        done += len(large)
        for want in last_chance:  # one by one: a mail that ends each session is blamed alone
            if self._stops(client, done):
                break
            headers = await self._headers(client, [want], intake)
            done += await self._retrieve(client, [want], sizes, intake, headers)
        await self._sort_out_refused(intake)
        self.backlog = left - done
        return done

    def _stops(self, client: Pop3Client, done: int = 0) -> bool:
        """Whether no further mail is to be asked for in this session, which has fetched ``done`` mails."""
        long = done >= SESSION_MAILS and time.monotonic() > self._share_ends
        return long or self._service.stopping.is_set() or client.past_half_time

    # ------------------------------------------------------------------------------------------ mails

    async def _retrieve(
        self,
        client: Pop3Client,
        wants: Sequence[FetchItem],
        sizes: dict[int, int],
        intake: Committer,
        headers: dict[int, bytes],
    ) -> int:
        """RETR these and commit them. Returns how many are done with: committed, skipped or known.

        :param headers: what TOP showed of them, for the notices.
        """
        by_number = {want.mail.number: want for want in wants}
        asked = [RetrRequest(number, sizes.get(number, 0)) for number in by_number]
        done = 0

        def stop() -> bool:
            return self._stops(client, len(asked) - len(by_number))

        try:
            async for got in client.retrieve(asked, self._limit, stop, self._room(intake)):
                room = self._share.keep()
                want = by_number.pop(got.number)
                done += 1
                if got.refusal is not None:
                    octets = sizes.get(want.mail.number)
                    self._refused.append(RefusedRetr(want, got.refusal, octets, headers.get(want.mail.number)))
                    continue
                await self._count_refused(intake, self._refused)
                if got.body is None:
                    intake.lost = True
                    await self._skip_large(intake, want, got.octets, headers.get(got.number) or _header(got.head))
                elif not await self._is_old(want, got):
                    content = Content(got.body, got.octets, got.sha256)
                    met = want.row is None or want.row.state == "history"  # for the first time
                    known = self._renumbered.take_match(got.sha256, got.octets) if met else None
                    await intake.add(FetchedBytes(want, content, known, room))
                    room = 0
                    del content
                self._share.free(room)
                del got  # or this mail would be held while the next one is read
        except Temporary as error:
            if client.reading in by_number:
                await self._count_try(intake, by_number[client.reading], error, sizes, headers)
            raise
        await intake.close()
        return done

    def _room(self, intake: Committer) -> ReserveMemory:
        """What a large mail waits for. Meanwhile nothing is held up that was read before it."""

        async def grow(octets: int) -> None:
            if self._share.waits(octets):
                await intake.close()
            await self._share.grow(octets)

        return grow

    async def _sort_out_refused(self, intake: Committer) -> None:
        """:raises Busy: the provider handed out nothing any more; one mail is blamed all the same, so that in the end
        it is told of."""
        refused = self._refused
        if len(refused) < REFUSED_IN_A_ROW:
            await self._count_refused(intake, refused)
            return
        await self._count_refused(intake, refused[:1])
        raise ServerBusy(f"{host_port(self._account.pop3)}: the provider hands out no mails now: {refused[-1].reply}")

    async def _count_refused(self, intake: Committer, refused: Sequence[RefusedRetr]) -> None:
        for want, reply, octets, header in refused:
            await intake.skip(want, f"the provider refuses to hand it out: {reply}", octets, header)
        self._refused = []

    async def _count_try(
        self, intake: Committer, want: FetchItem, error: Exception, sizes: dict[int, int], headers: dict[int, bytes]
    ) -> None:
        """The session ended while this mail was read: keep the others, and do not let this one end every session."""
        try:
            await intake.close()
            number = want.mail.number
            if isinstance(error, ReplyTooLong):
                await self._skip_large(intake, want, error.octets, headers.get(number))
            else:
                reason = f"the session ended while it was read: {error}"
                await intake.skip(want, reason, sizes.get(number), headers.get(number))
        except Temporary as away:
            log.warning("not committed", external=self._account.address, reason=str(away))

    async def _skip_large(self, intake: Committer, want: FetchItem, octets: int, header: bytes | None) -> None:
        known = self._renumbered.take_skipped(octets) if want.row is None else None
        reason = f"it is larger than the {self._limit} octets that are allowed"
        await intake.skip_large(want, reason, octets, header, known)

    async def _headers(self, client: Pop3Client, wants: Sequence[FetchItem], intake: Committer) -> dict[int, bytes]:
        """The headers of these mails by number, as far as TOP shows them."""
        by_number = {want.mail.number: want for want in wants}
        found: dict[int, bytes] = {}
        try:
            async for got in client.fetch_headers(list(by_number), HEADER_OCTETS):
                if got.body is not None:
                    found[got.number] = bytes(got.body)
        except Temporary as error:
            if client.reading in by_number:
                await self._count_try(intake, by_number[client.reading], error, {}, {})
            raise
        return found

    # ------------------------------------------------------------------------------------------ renumbered history

    async def _skip_preexisting(
        self, client: Pop3Client, wants: Sequence[FetchItem], intake: Committer
    ) -> list[FetchItem]:
        """Those that are to be fetched: all but mails of the first contact that stand under new UIDLs now.

        Their bytes were never fetched, so age tells them apart: as many as vanished, if they came before we did.
        """
        unknown = [want for want in wants if want.row is None]
        if not self._lost_history or not unknown:
            return list(wants)
        headers = await self._headers(client, unknown, intake)
        old: dict[str, LedgerEntry] = {}
        for want in unknown:
            header = headers.get(want.mail.number)
            if header is None:
                self._suspects.add(want.mail.number)  # no TOP: RETR will show
            elif self._lost_history and self._predates(header):
                old[want.mail.key] = self._lost_history.popleft()
        await self._record_old([(row, key) for key, row in old.items()])
        return [want for want in wants if want.mail.key not in old]

    async def _is_old(self, want: FetchItem, got: Retrieved) -> bool:
        """The same for a mail that was fetched since the server knows no TOP."""
        if got.number not in self._suspects or not self._lost_history or got.body is None:
            return False
        if not self._predates(_header(got.body)):
            return False
        await self._record_old([(self._lost_history.popleft(), want.mail.key)])
        return True

    def _predates(self, header: bytes) -> bool:
        received = failure_notices.first_received_date(header)
        return received is not None and self._first_contact is not None and received < self._first_contact

    async def _record_old(self, pairs: Sequence[tuple[LedgerEntry, str]]) -> None:
        if pairs:
            async with self._service.database.transaction() as connection:
                await polls.renew_lease(connection, self._poll)
                await uidl_ledger.record_renumbered_history(connection, pairs)
            log.info("renumbered mails of the first contact", external=self._account.address, mails=len(pairs))


def _header(body: bytearray | bytes) -> bytes:
    """The header of a mail, or as much of it as is looked at."""
    head = bytes(memoryview(body)[:HEADER_OCTETS])
    return head[: header_end(head)]
