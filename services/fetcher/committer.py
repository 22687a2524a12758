"""Commits what was fetched: bytes, ledger, inbound rows and trace in one transaction, then the envelopes.

Mails are gathered into batches bounded by number and octets. While one batch is being committed the next one is being
read. A batch that fails for another reason than the database's absence is committed mail by mail, and the one at fault
is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.fetcher import failure_notices
from services.fetcher.memory_budget import MemoryShare
from services.fetcher.plan import MAX_TRIES, NOTICE_TRIES, FetchItem, is_deletion_due, next_try
from shared.amqp import publications
from shared.errors import Temporary
from shared.mime.headers import header_end, message_ids, values
from shared.model import Content, External, LedgerEntry, Poll
from shared.runtime.process import Service
from shared.store import blobs, inbound, maillog, polls, uidl_ledger
from shared.store.blobs import HEAD_OCTETS
from shared.store.maillog import MailEvent

BATCH_MAILS = 200
BATCH_OCTETS = 4 * 1024 * 1024

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FetchedBytes:
    """A mail that was read. renumbered: the vanished mail that it is, if its bytes are known.

    room: octets of the budget that it takes until it is committed.
    """

    want: FetchItem
    content: Content
    renumbered: LedgerEntry | None
    room: int = 0

    def header(self) -> bytes:
        """Its header, or as much of it as the first 256 KiB hold."""
        head = bytes(memoryview(self.content.body)[:HEAD_OCTETS])
        return head[: header_end(head)]


class Committer:
    """What one session commits. deleting: mails that are to be deleted upstream at once, now that they are committed.

    lost: a mail was read, and is not kept: the provider has to go on listing it.
    """

    def __init__(self, service: Service, account: External, poll: Poll, share: MemoryShare) -> None:
        self._service = service
        self._account = account
        self._poll = poll
        self._share = share
        self._mails: list[FetchedBytes] = []
        self._octets = 0
        self._committing: asyncio.Task[None] | None = None
        self.deleting: list[FetchItem] = []
        self.lost = False

    async def add(self, mail: FetchedBytes) -> None:
        """Take a mail; a full batch is committed behind, a big one before this returns."""
        self._mails.append(mail)
        self._octets += mail.content.octets
        if len(self._mails) >= BATCH_MAILS or self._octets >= BATCH_OCTETS:
            await self._commit_behind()
            if mail.content.octets >= BATCH_OCTETS:
                await self._finish()  # or two big ones would be held at a time

    async def close(self) -> None:
        """Commit the rest; when this returns all that was added is committed or skipped."""
        await self._commit_behind()
        await self._finish()

    async def abandon(self) -> None:
        """Forget what is not being committed yet, and wait for what is."""
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
            self._share.free(sum(mail.room for mail in mails))

    async def _commit_all(self, mails: list[FetchedBytes]) -> None:
        try:
            await self._store(mails)
        except Temporary:
            raise
        except Exception as error:  # whatever it is: one of these mails may be at fault, the others are not
            log.warning(
                "batch failed, going mail by mail", external=self._account.address, mails=len(mails), reason=repr(error)
            )
            for mail in mails:
                await self._store_one(mail)

    async def _store_one(self, mail: FetchedBytes) -> None:
        try:
            await self._store([mail])
        except Temporary:
            raise
        except Exception as error:  # whatever is wrong with this mail, it stays at the provider, and the next ones come
            log.exception("mail cannot be stored", external=self._account.address, uidl=mail.want.mail.key)
            self.lost = True
            await self.skip(
                mail.want, f"it could not be stored ({type(error).__name__})", mail.content.octets, mail.header()
            )

    async def _store(self, mails: Sequence[FetchedBytes]) -> None:
        new = [mail for mail in mails if mail.renumbered is None]
        known = [mail for mail in mails if mail.renumbered is not None]
        deleting = [
            mail.want
            for mail in new
            if not mail.want.mail.repeated
            and is_deletion_due(mail.want.was_history, self._poll.now, self._account, self._poll.now)
        ]
        at_once = {want.mail.key for want in deleting}
        async with self._service.database.transaction() as connection:
            await polls.renew_lease(connection, self._poll)
            stored = await blobs.store_blobs(connection, [mail.content for mail in new])
            arrived = await inbound.add_inbound(
                connection,
                [
                    inbound.Arrival("fetched", blob_id, self._account.id, self._message_id(mail))
                    for mail, blob_id in zip(new, stored, strict=True)
                ],
            )
            entries = [
                _entry(mail, inbound_id, mail.want.mail.key in at_once)
                for mail, inbound_id in zip(new, arrived, strict=True)
            ]
            entries += [_entry(mail, None, False) for mail in known]
            await uidl_ledger.record_fetched(connection, self._account.id, entries)
            events = [MailEvent("fetched", inbound_id, external=self._account.address) for inbound_id in arrived]
            events += [
                MailEvent(
                    "renumbered",
                    external=self._account.address,
                    reply=f"UIDL {mail.renumbered.key} is {mail.want.mail.key} now",
                )
                for mail in known
                if mail.renumbered is not None
            ]
            await maillog.record_events(connection, events)
        maillog.announce(events)
        self._service.broker.publish_behind(publications.fetched((id_, self._account.address) for id_ in arrived))
        self.deleting += deleting

    def _message_id(self, mail: FetchedBytes) -> str | None:
        """None also where looking may be deadly: the router, which looks next, parks the one mail that is to blame."""
        return None if self._poll.kills_process else _message_id(mail.header())

    async def skip_large(
        self, want: FetchItem, reason: str, octets: int, header: bytes | None, renumbered: LedgerEntry | None
    ) -> None:
        """Leave a mail upstream until the size limit grows, write that down and tell its recipients once.

        :param renumbered: the vanished row of this mail, if it was skipped under another UIDL before.
        """
        row = renumbered or want.row
        told = renumbered is not None or (
            row is not None and row.state == "skipped" and (row.next_try_at is None or row.tries >= NOTICE_TRIES)
        )
        await self._skip(
            uidl_ledger.SkippedNow(row.id if row else None, want.mail.key, octets, reason, 0, None), header, not told
        )

    async def skip(self, want: FetchItem, reason: str, octets: int | None, header: bytes | None) -> None:
        """Leave a mail upstream for now, write that down, and tell its recipients when it seems to stay so.

        :param header: of the mail, if the provider showed it.
        """
        tries = min(want.tries + 1, MAX_TRIES)
        await self._skip(
            uidl_ledger.SkippedNow(
                want.row.id if want.row else None,
                want.mail.key,
                octets,
                reason,
                tries,
                next_try(tries, self._poll.now),
            ),
            header,
            tries == NOTICE_TRIES,
        )

    async def _skip(self, skipped: uidl_ledger.SkippedNow, header: bytes | None, told: bool) -> None:
        address, reason = self._account.address, skipped.reason
        events: list[MailEvent] = []
        async with self._service.database.transaction() as connection:
            await polls.renew_lease(connection, self._poll)
            await uidl_ledger.record_skipped(connection, self._account.id, skipped)
            if told:
                notice, message_id = failure_notices.compose_notice(
                    address, header, skipped.octets, reason, self._poll.now
                )
                [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(notice)])
                [inbound_id] = await inbound.add_inbound(
                    connection, [inbound.Arrival("notice", blob_id, self._account.id, message_id)]
                )
                events.append(MailEvent("skipped", inbound_id, external=address, reply=reason))
                await maillog.record_events(connection, events)
        maillog.announce(events)
        log.warning("mail not fetched", external=address, uidl=skipped.key, reason=reason, tries=skipped.tries)
        self._service.broker.publish_behind(
            publications.fetched((event.inbound_id, address) for event in events if event.inbound_id)
        )


def _entry(mail: FetchedBytes, inbound_id: int | None, deleting: bool) -> uidl_ledger.FetchedNow:
    """What the ledger is to say of a mail: the row under its UIDL, or that of the UIDL which it had before."""
    content, key = mail.content, mail.want.mail.key
    row = mail.want.row.id if mail.want.row else None
    if mail.renumbered is None:
        return uidl_ledger.FetchedNow(row, key, content.octets, content.sha256, inbound_id, deleting)
    return uidl_ledger.FetchedNow(mail.renumbered.id, key, content.octets, content.sha256, None, False, superseded=row)


def _message_id(header: bytes) -> str | None:
    found = [id_ for value in values(header, "message-id") for id_ in message_ids(value)]
    # PostgreSQL takes neither NUL nor lone surrogates
    return found[0].replace("\0", "").encode("utf-8", "replace").decode() if found else None
