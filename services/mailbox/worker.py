"""Queue worker of the mailbox service: one transaction and a constant number of queries per batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import structlog

from shared.amqp import publications, topology
from shared.amqp.broker import Publication
from shared.db.database import Connection, Database
from shared.metrics import FETCH_TO_READABLE, READABLE_SECONDS
from shared.runtime.queue_worker import FailureCounter
from shared.store import folder_mails, inbound, maillog
from shared.store.folder_mails import Copy
from shared.store.inbound import RoutedMail

LOCK_SECONDS = 1.0
"""Time limit of a delivery that waits for locked mailboxes: seconds; other people's mail waits with it."""

log = structlog.get_logger()


class _MailboxLocked(Exception):
    """Others have locked a mailbox now."""


class MailboxWorker:
    """Delivers mails in state routed."""

    name = "mailbox"
    queue = topology.MAILBOX
    batch = 200

    def __init__(self, database: Database, grace_seconds: float) -> None:
        self._database = database
        self._grace = grace_seconds
        self.count_failure = FailureCounter(database, inbound.count_failure, "inbound_id")

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        """Deliver the undelivered copies of these mails.

        Another delivery locks a mailbox for some milliseconds, the hand-over of a large mailbox for minutes. So a
        locked mailbox is waited for, but not long: then the copies for other people are delivered, and the rest is left
        to the sweep.
        """
        try:
            return await self._deliver(ids, "nobody waits")
        except _MailboxLocked:
            pass
        try:
            async with asyncio.timeout(LOCK_SECONDS):
                return await self._deliver(ids, "wait")
        except TimeoutError:
            return await self._deliver(ids, "leave out")

    async def _deliver(
        self, ids: Sequence[int], locked: Literal["nobody waits", "wait", "leave out"]
    ) -> list[Publication]:
        """Deliver in one transaction.

        :param locked: what to do if others have locked a mailbox: fail, wait for it, or leave its copies out.
        :raises _MailboxLocked: others have locked a mailbox; nothing is delivered.
        """
        async with self._database.transaction() as connection:
            await inbound.lock_routed(connection, ids)
            ours = await folder_mails.lock_recipients(connection, ids, wait=locked == "wait")
            copies = await inbound.load_routed(connection, ids)
            unfinished: set[int] = set()
            if locked != "wait":
                unfinished = {copy.inbound_id for copy in copies if not ours.issuperset(copy.local_ids)}
                if unfinished and locked == "nobody waits":
                    raise _MailboxLocked
                if unfinished:
                    log.warning("mailboxes locked for long, copies left to the sweep", mails=len(unfinished))
                    # The router decides again on a mail of which a copy is returned, so that waits for the others.
                    left_out = {copy.inbound_id for copy in copies if copy.gone} & unfinished
                    ids = [row for row in ids if row not in left_out]
                    copies = [
                        part
                        for copy in copies
                        if copy.inbound_id not in left_out and (part := copy.only_for(ours)) is not None
                    ]
            deliverable = [copy for copy in copies if not copy.gone]
            returned = [copy for copy in copies if copy.gone]
            await folder_mails.deliver_copies(
                connection,
                [
                    Copy(copy.local_ids, copy.inbound_id, copy.blob_id, copy.octets, copy.own_copy)
                    for copy in deliverable
                ],
                locked=True,
            )
            await inbound.record_delivered(connection, deliverable, returned, ids, unfinished)
            events = [
                maillog.MailEvent(
                    "own_copy" if copy.own_copy else "delivered",
                    inbound_id=copy.inbound_id,
                    external=copy.external,
                    who=maillog.join_addresses(copy.addresses),
                    rule=copy.rule,
                    reply=copy.reason,
                    origin_id=copy.submission_id,
                )
                for copy in deliverable
            ]
            events += [
                maillog.MailEvent(
                    "returned",
                    inbound_id=copy.inbound_id,
                    external=copy.external,
                    who=address,
                    reply="the account was removed or disabled before the delivery",
                    origin_id=copy.submission_id,
                )
                for copy in returned
                for address in copy.addresses
            ]
            await maillog.record_events(connection, events)
            ages = await _ages(connection, deliverable, returned)
        maillog.announce(events)
        for age in ages:
            FETCH_TO_READABLE.observe(age)
        for_router = {copy.inbound_id: copy.external for copy in returned if copy.external is not None}
        people = [pair for copy in deliverable for pair in zip(copy.local_ids, copy.addresses, strict=True)]
        return publications.fetched(for_router.items()) + publications.changed(people)

    async def sweep(self) -> list[Publication]:
        """Return publications for mails that are overdue for delivery: their message was lost."""
        async with self._database.transaction() as connection:
            overdue = await inbound.list_overdue(connection, "routed", self._grace)
        return publications.routed((row, recipients) for row, _, recipients in overdue)


async def _ages(connection: Connection, delivered: Sequence[RoutedMail], returned: Sequence[RoutedMail]) -> list[float]:
    """Return for how many seconds each of these fetched mails was on its way; each counts once, when it is complete.

    Left out are own copies, which nobody reads, and mails that were on hold: they waited for an account, not for us.
    """
    unfinished = {copy.inbound_id for copy in returned}
    ages = {
        copy.inbound_id: copy.age
        for copy in delivered
        if copy.source == "fetched" and not copy.own_copy and copy.inbound_id not in unfinished
    }
    if late := [inbound_id for inbound_id, age in ages.items() if age > READABLE_SECONDS]:
        for inbound_id in await maillog.find_held(connection, late):
            del ages[inbound_id]
    return list(ages.values())
