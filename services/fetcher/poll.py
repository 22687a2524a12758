"""One poll of one account: sessions of at most 500 mails, each planned afresh from the provider's list and the ledger.

The order in ``_session`` is the promise: bytes and ledger are committed, then DELE, then QUIT.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import structlog

from services.fetcher import notices
from services.fetcher.batch import Intake, Mail
from services.fetcher.plan import (
    NOTICE_TRIES,
    Maildrop,
    Plan,
    Quiet,
    Renumbered,
    Want,
    decide,
    digest,
    history,
    quiet_until,
)
from shared import ledger
from shared.accounts import External
from shared.credentials import Credential
from shared.failures import Temporary
from shared.headers import header_end
from shared.ledger import Known, Poll
from shared.messages import Content
from shared.oauth import Unauthorized
from shared.pop3_client import Broken, Pop3Client, Refused, Retrieved, Wanted, open_session
from shared.service import Service
from shared.upstream import place

SESSION_MAILS = 500
"""After so many mails QUIT and log in again, so that deletions take effect and a cut costs little."""
HEADER_OCTETS = 1024 * 1024
SAMPLES = 3
"""Mails that are read to tell one maildrop from another."""

log = structlog.get_logger()


class Polling:
    """A poll under way. login_delay: seconds, as the server announced.

    backlog: mails still to be fetched, None before it is known. more: it ended well with mails left to fetch.
    in_hand: mails are being fetched or deleted, so that ending it now would waste what was done.
    quiet: its last session had nothing to do, and so it will be for some time.
    """

    def __init__(self, service: Service, account: External, poll: Poll) -> None:
        self._service = service
        self._account = account
        self._poll = poll
        self._limit = service.settings.max_message_bytes
        self._first_contact = poll.first_contact_at
        self._suspects: set[int] = set()
        self._lost_history: deque[Known] = deque()
        self._renumbered = Renumbered()
        # a server that announces PIPELINING and stumbles over it is asked one thing at a time
        self._careful = poll.failures > 0 and poll.last_error_kind == Broken.kind
        self.login_delay = poll.login_delay
        self.backlog: int | None = None
        self.more = False
        self.in_hand = False
        self.quiet: Quiet | None = None

    async def run(self) -> None:
        """Fetch all that is there.

        :raises Temporary: with a ``kind``, or because of the database. :raises Permanent: with a ``kind``.
        """
        while await self._session():
            if self.login_delay or self._service.stopping.is_set():
                self.more = True
                return
            self._careful = False

    async def _session(self) -> bool:
        """Log in, fetch, delete, QUIT. Returns whether there is more to fetch."""
        credential = await self._credential()
        try:
            return await self._session_as(credential)
        except Refused:
            if not credential.token:
                raise
            self._service.credentials.refused(self._account)  # the provider may have ended it before its time
            return await self._session_as(await self._credential())

    async def _session_as(self, credential: Credential) -> bool:
        account = self._account
        async with open_session(account.pop3, self._service.settings.allow_private_upstream) as client:
            await client.login(credential)
            self.login_delay = client.capabilities.login_delay
            if self._careful:
                client.forget_pipelining()
            reply = await client.list_reply()
            if self._is_quiet(reply.digest):
                self.backlog = 0
                await client.quit()
                return False
            listing = reply.listing()
            maildrop = Maildrop.of(listing.mails, listing.complete)
            foreign = self._first_contact is None and await self._is_foreign(client, maildrop)
            plan = await self._compare(maildrop, foreign, reply.digest)
            self.in_hand = bool(plan.fetch or plan.delete)
            intake = Intake(self._service, account, self._poll)
            handled = 0
            if plan.fetch:
                try:
                    handled = await self._fetch(client, plan, intake)
                finally:
                    await intake.abandon()
            numbers = [mail.number for mail, _ in plan.delete] + [want.listed.number for want in intake.deleting]
            if numbers:
                refused = await client.delete(numbers)
                if refused:
                    log.warning("provider does not delete", external=account.address, mails=len(refused))
            if not await client.quit() and numbers:
                log.warning("provider did not delete at QUIT", external=account.address, mails=len(numbers))
            self.in_hand = False
            return handled > 0 and self.backlog != 0

    async def _credential(self) -> Credential:
        """:raises Refused: nobody has authorized the account. :raises Temporary, Permanent: with a ``kind``."""
        try:
            return await self._service.credentials.of(self._account)
        except Unauthorized as error:
            raise Refused(str(error), "AUTH") from error

    def _is_quiet(self, listed: bytes) -> bool:
        """Whether there was nothing to do with this list before, and neither ledger nor time has changed that.

        Asked in the first session of a poll: the ones before may have changed the ledger.
        """
        poll, self.quiet = self._poll, None
        if self.backlog is not None or poll.quiet_list is None or poll.quiet_until is None:
            return False
        if poll.first_contact_at is None or poll.now >= poll.quiet_until:
            return False
        if digest(listed, self._account, self._limit, poll) != poll.quiet_list:
            return False
        self.quiet = Quiet(poll.quiet_list, poll.quiet_until)
        return True

    async def _is_foreign(self, client: Pop3Client, maildrop: Maildrop) -> bool:
        """Whether UIDLs that we know are other mails here: many servers just count, each maildrop from 1.

        Asked at a first contact, which comes again when the account is pointed elsewhere: without an answer mail would
        count as fetched, and be deleted upstream, that nobody here ever saw. Some of the mails are read to tell.
        """
        async with self._service.database.transaction() as connection:
            rows = {row.key: row for row in await ledger.known(connection, self._account.id) if row.sha256 is not None}
        met = {mail.number: rows[mail.key] for mail in maildrop.mails if mail.key in rows and not mail.repeated}
        if not met:
            return False
        sizes = await client.sizes()
        samples = sorted(met, key=lambda number: sizes.get(number, 0))[:SAMPLES]
        equal = [
            (got.sha256, got.octets) == (met[got.number].sha256, met[got.number].octets)
            async for got in client.retrieve([Wanted(number, sizes.get(number, 0)) for number in samples], self._limit)
            if got.body is not None
        ]
        return bool(equal) and not any(equal)

    async def _compare(self, maildrop: Maildrop, foreign: bool, listed: bytes) -> Plan:
        """Plan the session and write down what the list tells.

        :param foreign: nothing that is known is of this maildrop. :param listed: digest of the list.
        """
        account, poll = self._account, self._poll
        async with self._service.database.transaction() as connection:
            await ledger.hold(connection, poll)
            if self._first_contact is None:
                if account.history == "from_now" and not maildrop.complete:
                    raise Broken(
                        f"{place(account.pop3)}: the list of mails is not whole, so it cannot be told which "
                        "mails are there already"
                    )
                if foreign:
                    await ledger.set_apart(connection, poll)
                self._first_contact = await ledger.begin(
                    connection, poll, history(maildrop, await ledger.known(connection, account.id))
                )
            known = await ledger.known(connection, account.id)
            plan = decide(maildrop, known, account, self._limit, poll)
            for record, rows in (
                (ledger.record_closed, plan.closed),
                (ledger.record_vanished, plan.vanished),
                (ledger.record_reappeared, plan.reappeared),
                (ledger.record_deleting, [row for _, row in plan.delete]),
            ):
                if rows:
                    await record(connection, rows)
        if plan.is_empty:
            met = replace(poll, first_contact_at=self._first_contact)
            self.quiet = Quiet(
                digest(listed, account, self._limit, met), quiet_until(maildrop, known, account, poll.now)
            )
        self.backlog = len(plan.fetch)
        self._suspects = set()
        self._lost_history = deque(plan.lost_history)
        self._renumbered = Renumbered.of(plan.missing)
        return plan

    async def _fetch(self, client: Pop3Client, plan: Plan, intake: Intake) -> int:
        """Fetch a session's share of the plan. Returns how many mails are done with."""
        left = len(plan.fetch)
        wants: list[Want] = []
        taken = 0
        while taken < left and len(wants) < SESSION_MAILS and not self._stops(client):
            chunk = plan.fetch[taken : taken + SESSION_MAILS - len(wants)]
            wants += await self._sift(client, chunk, intake)
            taken += len(chunk)
        sizes = await client.sizes()
        fitting = [want for want in wants if sizes.get(want.listed.number, 0) <= self._limit]
        large = [(want, sizes[want.listed.number]) for want in wants if sizes.get(want.listed.number, 0) > self._limit]
        plain = [want for want in fitting if want.tries < NOTICE_TRIES - 1]
        last_chance = [want for want in fitting if want.tries >= NOTICE_TRIES - 1]
        done = taken - len(wants)
        done += await self._retrieve(client, plain, sizes, intake, {})
        headers = await self._headers(client, [want for want, _ in large], intake)
        for want, octets in large:
            await self._skip_large(intake, want, octets, headers.get(want.listed.number))
        done += len(large)
        for want in last_chance:  # one by one: a mail that ends each session is blamed alone
            if self._stops(client):
                break
            headers = await self._headers(client, [want], intake)
            done += await self._retrieve(client, [want], sizes, intake, headers)
        self.backlog = left - done
        return done

    def _stops(self, client: Pop3Client) -> bool:
        return self._service.stopping.is_set() or client.half_spent

    # ------------------------------------------------------------------------------------------ mails

    async def _retrieve(
        self,
        client: Pop3Client,
        wants: Sequence[Want],
        sizes: dict[int, int],
        intake: Intake,
        headers: dict[int, bytes],
    ) -> int:
        """RETR these and commit them. Returns how many are done with: committed, skipped or known.

        :param headers: what TOP showed of them, for the notices.
        """
        by_number = {want.listed.number: want for want in wants}
        asked = [Wanted(number, sizes.get(number, 0)) for number in by_number]
        done = 0
        refused: list[tuple[Want, str]] = []
        try:
            async for got in client.retrieve(asked, self._limit, lambda: self._stops(client)):
                want = by_number.pop(got.number)
                done += 1
                if got.refusal is not None:
                    refused.append((want, got.refusal))
                elif got.body is None:
                    await self._skip_large(intake, want, got.octets, headers.get(got.number))
                elif not await self._is_old(want, got):
                    content = Content(got.body, got.octets, got.sha256)
                    met = want.row is None or want.row.state == "history"  # for the first time
                    known = self._renumbered.take(got.sha256, got.octets) if met else None
                    await intake.add(Mail(want, content, known))
                    del content
                del got  # or this mail would be held while the next one is read
        except Temporary as error:
            if client.reading in by_number:
                await self._blame(intake, by_number[client.reading], error, sizes, headers)
            raise
        await intake.close()
        for want, reply in refused:
            await intake.skip(
                want,
                f"the provider refuses to hand it out: {reply}",
                sizes.get(want.listed.number),
                headers.get(want.listed.number),
            )
        return done

    async def _blame(
        self, intake: Intake, want: Want, error: Exception, sizes: dict[int, int], headers: dict[int, bytes]
    ) -> None:
        """The session ended while this mail was read: keep the others, and do not let this one end every session."""
        try:
            await intake.close()
            number = want.listed.number
            await intake.skip(
                want, f"the session ended while it was read: {error}", sizes.get(number), headers.get(number)
            )
        except Temporary as away:
            log.warning("not committed", external=self._account.address, reason=str(away))

    async def _skip_large(self, intake: Intake, want: Want, octets: int, header: bytes | None) -> None:
        known = self._renumbered.take_skipped(octets) if want.row is None else None
        reason = f"it is larger than the {self._limit} octets that are allowed"
        await intake.skip_large(want, reason, octets, header, known)

    async def _headers(self, client: Pop3Client, wants: Sequence[Want], intake: Intake) -> dict[int, bytes]:
        """The headers of these mails by number, as far as TOP shows them."""
        by_number = {want.listed.number: want for want in wants}
        found: dict[int, bytes] = {}
        try:
            async for got in client.tops(list(by_number), HEADER_OCTETS):
                if got.body is not None:
                    found[got.number] = bytes(got.body)
        except Temporary as error:
            if client.reading in by_number:
                await self._blame(intake, by_number[client.reading], error, {}, {})
            raise
        return found

    # ------------------------------------------------------------------------------------------ renumbered history

    async def _sift(self, client: Pop3Client, wants: Sequence[Want], intake: Intake) -> list[Want]:
        """Those that are to be fetched: all but mails of the first contact that stand under new UIDLs now.

        Their bytes were never fetched, so age tells them apart: as many as vanished, if they came before we did.
        """
        unknown = [want for want in wants if want.row is None]
        if not self._lost_history or not unknown:
            return list(wants)
        headers = await self._headers(client, unknown, intake)
        old: dict[str, Known] = {}
        for want in unknown:
            header = headers.get(want.listed.number)
            if header is None:
                self._suspects.add(want.listed.number)  # no TOP: RETR will show
            elif self._lost_history and self._predates(header):
                old[want.listed.key] = self._lost_history.popleft()
        await self._record_old([(row, key) for key, row in old.items()])
        return [want for want in wants if want.listed.key not in old]

    async def _is_old(self, want: Want, got: Retrieved) -> bool:
        """The same for a mail that was fetched since the server knows no TOP."""
        if got.number not in self._suspects or not self._lost_history or got.body is None:
            return False
        head = bytes(memoryview(got.body)[:HEADER_OCTETS])
        if not self._predates(head[: header_end(head)]):
            return False
        await self._record_old([(self._lost_history.popleft(), want.listed.key)])
        return True

    def _predates(self, header: bytes) -> bool:
        received = notices.topmost_received(header)
        return received is not None and self._first_contact is not None and received < self._first_contact

    async def _record_old(self, pairs: Sequence[tuple[Known, str]]) -> None:
        if pairs:
            async with self._service.database.transaction() as connection:
                await ledger.hold(connection, self._poll)
                await ledger.record_renumbered_history(connection, pairs)
            log.info("renumbered mails of the first contact", external=self._account.address, mails=len(pairs))
