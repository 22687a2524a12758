"""Polls one account: sessions of some hundred mails, each planned from the provider's current list and the ledger.

``_session_as`` guarantees the order: commit bytes and ledger, then delete, then QUIT. By POP3, Gmail marks every mail
that was read as fetched at QUIT and no longer lists it: if a mail that was read could not be stored, the session ends
without QUIT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from services.fetcher.committer import Committer
from services.fetcher.fetch_session import FetchSession
from services.fetcher.maildrop_identity import RenumberedHistory, ReusedUidls
from services.fetcher.memory_budget import MemoryShare, OverflowBudget
from services.fetcher.plan import (
    Plan,
    ProviderList,
    UnchangedList,
    decide,
    keys_to_compare,
    plan_digest,
    preexisting_keys,
    unchanged_until,
)
from services.fetcher.provider_session import open_maildrop
from shared.model import External, LedgerEntry, Poll
from shared.net.dial import Unreachable, host_port
from shared.provider.credentials import Credential, Credentials
from shared.provider.maildrop import MaildropSession
from shared.provider.oauth import Unauthorized
from shared.provider.retrieval import ListReply
from shared.provider.session_errors import LoginRefused, OutOfStep, ProtocolError
from shared.runtime.parsing import Parsing
from shared.runtime.process import Service
from shared.store import polls, uidl_ledger

MAX_OUT_OF_STEP = 20
"""Limit of sessions in one poll that end out of step, each at one mail: more logins at once may lock the account."""
_ROW_OCTETS = 16
"""Octets that each mail and each row of the ledger counts for where a thread is chosen: some hundreds need none."""
INCOMPLETE_POLLS = 3
"""Failed polls after which a first contact takes place with an incomplete list: a delivery that is under way ends."""

log = structlog.get_logger()


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
        # For a server that fails with commands sent ahead, or cuts mails short: one mail at a time.
        self._alone = poll.failures > 0 and poll.last_error_kind == ProtocolError.kind
        self._out_of_step = 0  # sessions that ended so
        self._parsing = Parsing()
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
        finally:
            self._share.close()
        if self.complaints:
            raise ProtocolError(
                "; ".join(f"{host_port(self._account.incoming)}: {text}" for text in dict.fromkeys(self.complaints))
            )

    async def _session(self) -> bool:
        """Log in, fetch, delete, QUIT; after a session out of step the next one fetches mail by mail. Returns whether
        mail is left to fetch."""
        try:
            more = await self._authorized_session()
        except OutOfStep as error:
            self._out_of_step += 1
            in_vain = self._alone and not self.transferring
            if in_vain or self.login_delay or self._service.stopping.is_set() or self._out_of_step >= MAX_OUT_OF_STEP:
                raise  # the next poll continues mail by mail
            log.warning("session out of step, fetching mail by mail", external=self._account.address, error=str(error))
            self._alone, self.transferring = True, False
            return True
        self._alone = False
        return more

    async def _authorized_session(self) -> bool:
        credential = await self._credential()
        try:
            return await self._session_as(credential)
        except LoginRefused:
            if not credential.token:
                raise
            self._credentials.discard_token(
                self._account, credential
            )  # the provider may have revoked the token before it expired
            return await self._session_as(await self._credential())

    async def _session_as(self, credential: Credential) -> bool:
        account = self._account
        async with open_maildrop(account, self._service.settings.allow_private_upstream) as client:
            await client.login(credential)
            self.login_delay = client.login_delay or self.login_delay
            # without pipelining, a session that ends early may lose the mails that it has read, and so does each retry
            if self._alone or (self._first_after_failure and not client.pipelining):
                client.fetch_alone()
            state = await client.fetch_state()
            reply = None if self._is_known_state(state) else await client.fetch_list_reply()
            if reply is None or self._is_unchanged(reply.digest, state):
                self.backlog = 0
                await client.quit()
                return False
            maildrop, problem = await asyncio.to_thread(_read_list, reply)
            if not maildrop.complete:
                self.complaints.append(f"the list of mails is incomplete: {problem}")
            identity = ReusedUidls(self._service.database, client, account, self._poll, self._limit)
            reused = await identity.find_reused_uidls(maildrop)
            plan = await self._compare(maildrop, reused, reply.digest, state)
            del reply, maildrop, reused  # they may be of a million mails
            self.transferring = bool(plan.fetch or plan.delete)
            committer = Committer(self._service, account, self._poll, self._share)
            handled = 0
            if plan.fetch:
                try:
                    renumbered = RenumberedHistory(self._service.database, account, self._poll, plan)
                    session = FetchSession(self._service, account, client, committer, self._share, renumbered)
                    handled = await session.run(plan)
                    self.backlog = len(plan.fetch) - handled
                finally:
                    await committer.abandon()
            if not committer.lost_mail:
                numbers = [mail.number for mail, _ in plan.delete] + [item.mail.number for item in committer.deleting]
                await self._finish(client, numbers)
            self.transferring = False
            return handled > 0 and self.backlog != 0

    async def _finish(self, client: MaildropSession, numbers: Sequence[int]) -> None:
        """Delete these mails, then QUIT; by POP3 that deletes them.

        :raises Temporary: the connection ended; the mails may be deleted or not.
        """
        if numbers:
            undeleted = await client.delete(numbers)
            if undeleted.numbers:
                self.complaints.append(
                    f"the provider refuses to delete {len(undeleted.numbers)} mails ({undeleted.reason})"
                )
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

    @property
    def _was_incomplete_before(self) -> bool:
        """Whether count and list of the mails disagree permanently: the list then counts as the whole maildrop."""
        return self._poll.failures >= INCOMPLETE_POLLS and self._poll.last_error_kind == ProtocolError.kind

    @property
    def _first_after_failure(self) -> bool:
        """Whether the last poll failed, and no session has ended well since."""
        return self._poll.failures > 0 and self.backlog is None

    def _quiet_list(self) -> UnchangedList | None:
        """Return the list with which a session had nothing to do, if neither ledger nor time has changed since.

        None after the first session of a poll, which may have changed the ledger.
        """
        poll = self._poll
        if self.backlog is not None or poll.quiet_list is None or poll.quiet_until is None:
            return None
        if poll.first_contact_at is None or poll.now >= poll.quiet_until:
            return None
        return UnchangedList(poll.quiet_list, poll.quiet_until, poll.quiet_state)

    def _is_known_state(self, state: bytes | None) -> bool:
        """Whether the maildrop's state shows that it has the list with which a session had nothing to do."""
        self.unchanged, quiet = None, self._quiet_list()
        if state is None or quiet is None or quiet.state != self._digest(state):
            return False
        self.unchanged = quiet
        return True

    def _is_unchanged(self, listed: bytes, state: bytes | None) -> bool:
        """Whether this is the list with which a session had nothing to do.

        :param state: of the maildrop before it was listed.
        """
        quiet = self._quiet_list()
        if quiet is None or quiet.digest != self._digest(listed):
            return False
        self.unchanged = replace(quiet, state=self._digest(state) if state else None)
        return True

    def _digest(self, listed: bytes) -> bytes:
        return plan_digest(listed, self._account, self._limit, self._poll)

    async def _compare(
        self, maildrop: ProviderList, reused: Sequence[LedgerEntry], listed: bytes, state: bytes | None
    ) -> Plan:
        """Plan the session and record the state changes that the list shows.

        :param reused: rows whose UIDLs identify other mails now. :param listed: digest of the list.
        :param state: digest of the maildrop's state before it was listed.
        """
        account = self._account
        async with self._service.database.transaction() as connection:
            await polls.renew_lease(connection, self._poll)
            if reused:
                await uidl_ledger.detach_uidls(connection, reused)
            if self._poll.first_contact_at is None:
                if account.history == "from_now" and not maildrop.complete and not self._was_incomplete_before:
                    raise ProtocolError(
                        f"{host_port(account.incoming)}: the list of mails is incomplete, so the mails from before the "
                        "first contact are unknown"
                    )
                keys = preexisting_keys(maildrop, await uidl_ledger.load_entries(connection, account.id))
                first_contact_at = await uidl_ledger.record_first_contact(connection, self._poll, keys)
                self._poll = replace(self._poll, first_contact_at=first_contact_at)
            known = await uidl_ledger.load_entries(connection, account.id)
            decision = decide, maildrop, known, account, self._limit, self._poll
            plan = await self._parsing.run(_ROW_OCTETS * (len(maildrop.mails) + len(known)), *decision)
            if keys := keys_to_compare(plan, maildrop):
                plan = replace(plan, deleted=tuple(await uidl_ledger.load_closed(connection, account.id, keys)))
            for record, rows in (
                (uidl_ledger.record_closed, plan.closed),
                (uidl_ledger.record_vanished, plan.vanished),
                (uidl_ledger.record_reappeared, plan.reappeared),
                (uidl_ledger.record_deleting, [row for _, row in plan.delete]),
            ):
                if rows:
                    await record(connection, rows)
        if plan.is_empty:
            self.unchanged = UnchangedList(
                self._digest(listed),
                unchanged_until(maildrop, known, account, self._poll.now),
                self._digest(state) if state else None,
            )
        self.backlog = len(plan.fetch)
        return plan


def _read_list(reply: ListReply) -> tuple[ProviderList, str]:
    """Return the list, and why it is incomplete."""
    listing = reply.parse()
    return ProviderList.of(listing.mails, listing.complete), listing.problem
