"""Transfers the mails that one session is to fetch: read, commit, and a record of each mail that cannot be fetched.

A mail that a provider refuses, or that is too large, is counted for this mail alone. So is one during which the session
ends, but only as a suspicion until that recurs (``plan.count_failures``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from services.fetcher.committer import Committer, FetchedBytes
from services.fetcher.maildrop_identity import HEADER_OCTETS, RenumberedHistory, header_of
from services.fetcher.memory_budget import MemoryShare
from services.fetcher.plan import NOTICE_TRIES, FetchItem, Plan
from shared.errors import Temporary
from shared.model import Content, External
from shared.net.dial import host_port
from shared.provider.maildrop import MaildropSession
from shared.provider.retrieval import STEP_OCTETS, MailRequest
from shared.provider.session_errors import OutOfStep, ReplyTooLong, ServerBusy
from shared.runtime.process import Service

SESSION_MAILS = 500
"""Limit of mails in one session; then QUIT and log in again, so that deletions take effect and a lost connection costs
little."""
SESSION_SECONDS = 5.0
"""A session without deletions that is faster than this continues beyond SESSION_MAILS, as QUIT would only cost round
trips. New mail, which the next session finds first, waits no longer than this."""
MAX_SESSION_MAILS = 5_000
"""Limit of mails in such a longer session."""
MAX_REFUSED = 3
"""Refused mails in a row up to the end of a session from which on the provider, not the mails, is at fault."""
SIZE_TOLERANCE = 2
"""Providers guess sizes, some badly: a mail whose announced size exceeds this multiple of the limit is too large and is
not read."""
log = structlog.get_logger()


class RefusedMail(NamedTuple):
    """A mail that the provider did not hand out."""

    item: FetchItem
    reply: str
    temporary: bool  # the provider says that the refusal may pass
    octets: int | None  # None if unknown
    header: bytes | None  # None if unknown


class FetchSession:
    """The transfer of one session, from the plan to the last commit."""

    def __init__(
        self,
        service: Service,
        account: External,
        client: MaildropSession,
        committer: Committer,
        share: MemoryShare,
        renumbered: RenumberedHistory,
    ) -> None:
        self._service = service
        self._account = account
        self._client = client
        self._committer = committer
        self._share = share
        self._renumbered = renumbered
        self._limit = service.settings.max_message_bytes
        self._refused: list[RefusedMail] = []  # in a row, and not counted yet
        self._session_ends = 0.0

    async def run(self, plan: Plan) -> int:
        """Fetch one session's part of the plan. Returns how many mails are finished.

        :raises Temporary: as ``MaildropSession``, or the database is unavailable.
        """
        total = len(plan.fetch)
        deletes = bool(plan.delete) or self._account.delete_after_days == 0
        max_mails = SESSION_MAILS if deletes or self._renumbered.expects_history else MAX_SESSION_MAILS
        self._session_ends = time.monotonic() + SESSION_SECONDS
        items: list[FetchItem] = []
        examined = 0
        while examined < total and len(items) < max_mails and not self._stops():
            chunk = plan.fetch[examined : examined + max_mails - len(items)]
            headers = await self._headers(self._renumbered.unknown_mails(chunk))
            items += await self._renumbered.leave_out_preexisting(chunk, headers)
            examined += len(chunk)
        sizes = await self._client.fetch_sizes([item.mail.number for item in items])
        max_octets = SIZE_TOLERANCE * self._limit
        fitting = [item for item in items if sizes.get(item.mail.number, 0) <= max_octets]
        large = [(item, sizes[item.mail.number]) for item in items if sizes.get(item.mail.number, 0) > max_octets]
        plain = [item for item in fitting if item.tries < NOTICE_TRIES - 1]
        last_chance = [item for item in fitting if item.tries >= NOTICE_TRIES - 1]
        last_chance.sort(key=lambda item: item.next_try_at)  # each gets its turn, even if the first ends every session
        done = examined - len(items)
        done += await self._retrieve(plain, sizes, {})
        headers = await self._headers([item for item, _ in large])
        for item, octets in large:
            await self._skip_large(item, octets, headers.get(item.mail.number))
        done += len(large)
        for item in last_chance:  # one at a time: a mail that ends every session is counted alone
            if self._stops(done):
                break
            headers = await self._headers([item])
            done += await self._retrieve([item], sizes, headers)
        await self._count_all_refused()
        return done

    def _stops(self, done: int = 0) -> bool:
        """Whether to request no further mail in this session, which has fetched ``done`` mails."""
        long = done >= SESSION_MAILS and time.monotonic() > self._session_ends
        return long or self._service.stopping.is_set() or self._client.past_half_time

    # ------------------------------------------------------------------------------------------ mails

    async def _retrieve(self, items: Sequence[FetchItem], sizes: dict[int, int], headers: dict[int, bytes]) -> int:
        """Read these mails and commit them. Returns how many are finished: committed, skipped or known.

        :param headers: by number, as far as they are known, for the notices.
        """
        by_number = {item.mail.number: item for item in items}
        requests = [MailRequest(number, sizes.get(number, 0)) for number in by_number]
        done = 0

        def stop() -> bool:
            return self._stops(len(requests) - len(by_number))

        try:
            async for got in self._client.retrieve(requests, self._limit, stop, self._reserve_memory):
                # mails of one batch are returned together, and only its last one may have reserved memory
                reserved = self._share.finish_mail() if got.octets > STEP_OCTETS else 0
                item = by_number.pop(got.number)
                done += 1
                if got.refusal is not None:
                    octets = sizes.get(got.number)
                    header = headers.get(got.number)
                    self._refused.append(RefusedMail(item, got.refusal, got.temporary, octets, header))
                    continue
                await self._count_refused(self._refused)
                if got.body is None:
                    self._committer.lost_mail = True
                    await self._skip_large(item, got.octets, headers.get(got.number) or header_of(got.head))
                elif not await self._renumbered.is_preexisting(item, got):
                    content = Content(got.body, got.octets, got.sha256)
                    renumbered = self._renumbered.take_fetched(item, got)
                    junk = self._client.is_junk(got.number)
                    await self._committer.add(FetchedBytes(item, content, renumbered, reserved, junk))
                    reserved = 0
                    del content
                self._share.release(reserved)
                del got  # otherwise this mail stays in memory while the next one is read
        except Temporary as error:
            await self._end_early(by_number, error, sizes, headers)
            raise
        await self._committer.close()
        return done

    async def _reserve_memory(self, octets: int) -> None:
        """Wait for memory for a large mail; the mails read before are committed meanwhile."""
        if self._share.waits(octets):
            await self._committer.close()
        await self._share.reserve_octets(octets)

    async def _count_all_refused(self) -> None:
        """Count the refused mails of this session.

        :raises ServerBusy: the provider refused all mails at the end. One is counted nevertheless, so that its
            recipients get a notice in the end.
        """
        refused = self._refused
        if len(refused) < MAX_REFUSED:
            await self._count_refused(refused)
            return
        await self._count_refused(refused[:1])
        raise ServerBusy(
            f"{host_port(self._account.incoming)}: the provider refuses every mail now: {refused[-1].reply}"
        )

    async def _count_refused(self, refused: Sequence[RefusedMail]) -> None:
        for item, reply, temporary, octets, header in refused:
            reason = f"the provider refuses to hand it out: {reply}"
            await self._committer.skip(item, reason, octets, header, interrupted=temporary)
        self._refused = []

    async def _end_early(
        self, items: dict[int, FetchItem], error: Exception, sizes: dict[int, int], headers: dict[int, bytes]
    ) -> None:
        """Commit the mails that were read before the session ended; count the attempt for the mail that ended it.

        :param items: not read yet, by number.
        """
        try:
            await self._committer.close()
            number = self._client.reading
            if number not in items:
                return
            item, octets, header = items[number], sizes.get(number), headers.get(number)
            if isinstance(error, ReplyTooLong):
                await self._skip_large(item, error.octets, header)
            elif isinstance(error, OutOfStep):
                header = header or header_of(error.head)
                await self._committer.skip(item, error.reason, octets, header, least_tries=NOTICE_TRIES)
            else:
                reason = f"the session ended while it was read: {error}"
                await self._committer.skip(item, reason, octets, header, interrupted=True)
        except Temporary as unavailable:
            log.warning("fetched mails not committed", external=self._account.address, error=str(unavailable))

    async def _skip_large(self, item: FetchItem, octets: int, header: bytes | None) -> None:
        renumbered = self._renumbered.take_skipped(item, octets)
        reason = f"it is larger than the {self._limit} octets that are allowed"
        await self._committer.skip_large(item, reason, octets, header, renumbered)

    async def _headers(self, items: Sequence[FetchItem]) -> dict[int, bytes]:
        """Return the headers of these mails by number, as far as the provider shows them alone."""
        by_number = {item.mail.number: item for item in items}
        headers: dict[int, bytes] = {}
        try:
            async for got in self._client.fetch_headers(list(by_number), HEADER_OCTETS):
                if got.body is not None:
                    headers[got.number] = bytes(got.body)
        except Temporary as error:
            await self._end_early(by_number, error, {}, {})
            raise
        return headers
