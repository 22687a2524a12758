"""Commits fetched mails: bytes, ledger, inbound rows and trace in one transaction; then publishes them.

Mails are collected into batches limited by number and octets. The next batch is read while the previous one is being
committed. A batch that fails for any reason other than an unavailable database, or that takes too long, is committed in
halves, down to the mail at fault: that is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.fetcher import failure_notices
from services.fetcher.memory_budget import MemoryShare
from services.fetcher.plan import NOTICE_TRIES, FetchItem, count_failures, is_deletion_due, next_try
from shared.amqp import publications
from shared.db.database import Connection
from shared.errors import Temporary
from shared.mime.headers import header_end, iterate_values, message_ids
from shared.model import Content, External, LedgerEntry, Poll
from shared.runtime.process import Service
from shared.store import accounts, blobs, inbound, maillog, polls, uidl_ledger
from shared.store.blobs import HEAD_OCTETS
from shared.store.maillog import MailEvent

BATCH_MAILS = 200
"""Limit of mails in one transaction: bounds its duration."""
BATCH_OCTETS = 4 * 1024 * 1024
"""Limit of mail bytes after which a batch is committed: bounds memory; one mail may be larger."""
BATCH_SECONDS = 10.0
"""Time limit of the transaction of a batch: seconds. A full batch takes a hundredth of it."""
MAIL_SECONDS = 60.0
"""Time limit of the transaction of a single mail: seconds. A mail of 50 MB to a slow disk takes a quarter of it."""

log = structlog.get_logger()


class _OutOfTime(Temporary):
    """The transaction took too long, and was rolled back."""


@dataclass(frozen=True, slots=True)
class FetchedBytes:
    """A mail that was read."""

    item: FetchItem
    content: Content
    renumbered: LedgerEntry | None  # row of the vanished or deleted mail with the same bytes, if known
    reserved: int = 0  # octets of the memory budget, released after the commit
    junk: bool = False  # it is in the provider's junk folder

    def header(self) -> bytes:
        """Return the header, or its part in the first 256 KiB."""
        head = bytes(memoryview(self.content.body)[:HEAD_OCTETS])
        return head[: header_end(head)]


class Committer:
    """Commits the mails of one session."""

    def __init__(self, service: Service, account: External, poll: Poll, share: MemoryShare) -> None:
        self._service = service
        self._account = account
        self._poll = poll
        self._share = share
        self._mails: list[FetchedBytes] = []
        self._octets = 0
        self._committing: asyncio.Task[None] | None = None
        self.deleting: list[FetchItem] = []  # committed mails to delete upstream in this session
        self.lost_mail = False  # a mail was read and not stored: the provider has to keep listing it

    async def add(self, mail: FetchedBytes) -> None:
        """Add a mail. A full batch is committed in the background; a batch with a large mail before this returns."""
        self._mails.append(mail)
        self._octets += mail.content.octets
        if len(self._mails) >= BATCH_MAILS or self._octets >= BATCH_OCTETS:
            await self._commit_behind()
            if mail.content.octets >= BATCH_OCTETS:
                await self._finish()  # otherwise two large mails would be in memory

    async def close(self) -> None:
        """Commit the rest. When this returns, every added mail is committed or skipped."""
        await self._commit_behind()
        await self._finish()

    async def abandon(self) -> None:
        """Drop the current batch, cancel the running commit and wait for its end."""
        self._mails = []
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)

    async def _commit_behind(self) -> None:
        await self._finish()
        if self._mails:
            mails, self._mails, self._octets = self._mails, [], 0
            self._committing = asyncio.create_task(self._commit(mails))

    async def _finish(self) -> None:
        if self._committing is not None:
            task, self._committing = self._committing, None
            await task

    async def _commit(self, mails: list[FetchedBytes]) -> None:
        try:
            await self._commit_all(mails)
        finally:
            self._share.release(sum(mail.reserved for mail in mails))

    async def _commit_all(self, mails: Sequence[FetchedBytes]) -> None:
        try:
            await self._store(mails)
        except Temporary as error:
            if not isinstance(error, _OutOfTime) or not await self._service.database.ready():
                raise
            await self._divide(mails, error)
        except Exception as error:  # one of these mails causes a fault of ours, the others do not
            await self._divide(mails, error)

    async def _divide(self, mails: Sequence[FetchedBytes], error: Exception) -> None:
        """Commit the halves of a batch that failed; skip a single mail: it stays at the provider, the others go on."""
        if len(mails) > 1:
            log.warning(
                "batch failed, storing halves", external=self._account.address, mails=len(mails), error=repr(error)
            )
            middle = len(mails) // 2
            await self._commit_all(mails[:middle])
            await self._commit_all(mails[middle:])
            return
        [mail] = mails
        log.error(
            "mail not stored",
            external=self._account.address,
            uidl=mail.item.mail.key,
            error=repr(error),
            exc_info=error,
        )
        self.lost_mail = True
        why = f"within {MAIL_SECONDS:g} s" if isinstance(error, _OutOfTime) else f"({type(error).__name__})"
        await self.skip(
            mail.item,
            f"it could not be stored {why}",
            mail.content.octets,
            mail.header(),
            interrupted=isinstance(error, _OutOfTime),
        )

    async def _store(self, mails: Sequence[FetchedBytes]) -> None:
        """Commit these mails and publish them.

        :raises Temporary: the database is unavailable; ``_OutOfTime`` if nothing is committed.
        """
        seconds = BATCH_SECONDS if len(mails) > 1 else MAIL_SECONDS
        written = False
        try:
            async with self._service.database.transaction(seconds) as connection:
                arrived, left_junk, deleting, events = await self._write(connection, mails)
                written = True  # a time-out from here on leaves open whether the mails are committed
        except Temporary as error:
            if written or not isinstance(error.__cause__, TimeoutError):
                raise
            raise _OutOfTime(str(error)) from error
        maillog.announce(events)
        self._service.broker.publish_behind(
            publications.fetched((inbound_id, self._account.address) for inbound_id in arrived)
            + publications.routed(left_junk)
        )
        self.deleting += deleting

    async def _write(
        self, connection: Connection, mails: Sequence[FetchedBytes]
    ) -> tuple[list[int], list[tuple[int, tuple[str, ...]]], list[FetchItem], list[MailEvent]]:
        """Write bytes, mails, ledger and trace.

        Returns the inbound ids, the mails that left the provider's junk folder with their recipients, what to delete
        upstream, and the events.
        """
        new = [mail for mail in mails if mail.renumbered is None]
        known = [mail for mail in mails if mail.renumbered is not None]
        deleting = [
            mail.item
            for mail in new
            if not mail.item.mail.repeated
            and is_deletion_due(mail.item.was_history, self._poll.now, self._account, self._poll.now)
        ]
        at_once = {item.mail.key for item in deleting}
        await polls.renew_lease(connection, self._poll)
        stored = await blobs.store_blobs(connection, [mail.content for mail in new])
        arrived = await inbound.add_inbound(
            connection,
            [
                inbound.Arrival("fetched", blob_id, self._account.id, self._message_id(mail), junk=mail.junk)
                for mail, blob_id in zip(new, stored, strict=True)
            ],
        )
        entries = [
            _entry(mail, inbound_id, mail.item.mail.key in at_once)
            for mail, inbound_id in zip(new, arrived, strict=True)
        ]
        entries += [_entry(mail, None, False) for mail in known]
        await uidl_ledger.record_fetched(connection, self._account.id, entries)
        events = [MailEvent("fetched", inbound_id, external=self._account.address) for inbound_id in arrived]
        events += [
            MailEvent(
                "renumbered",
                external=self._account.address,
                reply=f"UIDL {mail.renumbered.key} is {mail.item.mail.key} now"
                if mail.renumbered.key != mail.item.mail.key
                else f"UIDL {mail.item.mail.key}, which was deleted, is listed again",
            )
            for mail in known
            if mail.renumbered is not None
        ]
        await maillog.record_events(connection, events)
        out_of_junk = [mail.renumbered.id for mail in known if mail.renumbered is not None and not mail.junk]
        left_junk = await inbound.leave_junk(connection, out_of_junk) if out_of_junk else []
        return arrived, left_junk, deleting, events

    def _message_id(self, mail: FetchedBytes) -> str | None:
        """Parse the Message-ID. None where parsing may crash the process: the router, which parses next, isolates and
        parks the poison message."""
        return None if self._poll.kills_process else _message_id(mail.header())

    async def skip_large(
        self, item: FetchItem, reason: str, octets: int, header: bytes | None, renumbered: LedgerEntry | None
    ) -> None:
        """Record that a mail stays upstream until the size limit grows; send its recipients one notice.

        :param renumbered: the vanished row of this mail, if it was skipped under another UIDL before.
        """
        row = renumbered or item.row
        notified = renumbered is not None or (
            row is not None and row.state == "skipped" and (row.next_try_at is None or row.tries >= NOTICE_TRIES)
        )
        await self._skip(
            uidl_ledger.SkippedNow(row.id if row else None, item.mail.key, octets, reason, 0, None),
            header,
            not notified,
        )

    async def skip(
        self,
        item: FetchItem,
        reason: str,
        octets: int | None,
        header: bytes | None,
        *,
        interrupted: bool = False,
        least_tries: int = 1,
    ) -> None:
        """Record a failed attempt; the mail stays upstream. Send its recipients a notice at attempt NOTICE_TRIES.

        :param header: of the mail, if the provider sent it. :param interrupted, least_tries: as ``count_failures``.
        """
        tries = count_failures(item, self._poll.now, interrupted=interrupted, least=least_tries)
        await self._skip(
            uidl_ledger.SkippedNow(
                item.row.id if item.row else None,
                item.mail.key,
                octets,
                reason,
                tries,
                next_try(tries, self._poll.now),
            ),
            header,
            item.tries < NOTICE_TRIES <= tries,
        )

    async def _skip(self, skipped: uidl_ledger.SkippedNow, header: bytes | None, with_notice: bool) -> None:
        address, reason = self._account.address, skipped.reason
        events: list[MailEvent] = []
        async with self._service.database.transaction() as connection:
            await polls.renew_lease(connection, self._poll)
            await uidl_ledger.record_skipped(connection, self._account.id, skipped)
            if with_notice:
                languages = await accounts.list_languages(connection, self._account.id, self._service.settings.language)
                notice, message_id = failure_notices.compose_notice(
                    address, header, skipped.octets, reason, self._poll.now, languages
                )
                [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(notice)])
                [inbound_id] = await inbound.add_inbound(
                    connection, [inbound.Arrival("notice", blob_id, self._account.id, message_id)]
                )
                events.append(MailEvent("skipped", inbound_id, external=address, reply=reason))
                await maillog.record_events(connection, events)
        maillog.announce(events)
        log.warning("mail not fetched", external=address, uidl=skipped.key, error=reason, tries=skipped.tries)
        self._service.broker.publish_behind(
            publications.fetched((event.inbound_id, address) for event in events if event.inbound_id)
        )


def _entry(mail: FetchedBytes, inbound_id: int | None, deleting: bool) -> uidl_ledger.FetchedNow:
    """Return the ledger change for a mail: of the row under its UIDL, or of the row under its old UIDL."""
    content, key = mail.content, mail.item.mail.key
    row = mail.item.row.id if mail.item.row else None
    if mail.renumbered is None:
        return uidl_ledger.FetchedNow(row, key, content.octets, content.sha256, inbound_id, deleting)
    return uidl_ledger.FetchedNow(mail.renumbered.id, key, content.octets, content.sha256, None, False, superseded=row)


def _message_id(header: bytes) -> str | None:
    fields = (value for name, value in iterate_values(header) if name == "message-id")
    found = next((message_id for value in fields for message_id in message_ids(value, 1)), None)
    # PostgreSQL accepts neither NUL nor lone surrogates
    return found.replace("\0", "").encode("utf-8", "replace").decode() if found else None
