"""Queue worker of the mailbox service: one transaction and a constant number of queries per batch."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import structlog

from shared.amqp import publications, topology
from shared.amqp.broker import Publication
from shared.db.database import Connection, Database
from shared.metrics import FETCH_TO_READABLE, READABLE_SECONDS
from shared.runtime.queue_worker import FailureCounter
from shared.store import folder_junk, folder_mails, inbound, maillog
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
        delivered, left_junk = await self._deliver_in_time(ids)
        return delivered + await self._move_out_of_junk(left_junk) if left_junk else delivered

    async def _deliver_in_time(self, ids: Sequence[int]) -> tuple[list[Publication], Sequence[int]]:
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
    ) -> tuple[list[Publication], Sequence[int]]:
        """Deliver in one transaction.

        :param locked: what to do if others have locked a mailbox: fail, wait for it, or leave its copies out.
        :return: what to publish; the mails whose copies are to be moved out of Junk.
        :raises _MailboxLocked: others have locked a mailbox; nothing is delivered.
        """
        async with self._database.transaction() as connection:
            found = await inbound.lock_routed(connection, ids)
            ours = await folder_mails.lock_recipients(connection, ids, wait=locked == "wait", with_junk=found.with_junk)
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
            have_junk = await folder_mails.deliver_copies(
                connection,
                [
                    Copy(
                        copy.local_ids,
                        copy.inbound_id,
                        copy.blob_id,
                        copy.octets,
                        copy.own_copy,
                        copy.junk and not copy.own_copy,
                    )
                    for copy in deliverable
                ],
                locked=True,
            )
            await inbound.record_delivered(connection, deliverable, returned, ids, unfinished)
            events = [event for copy in deliverable for event in _delivery_events(copy, have_junk)]
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
        return publications.fetched(for_router.items()) + publications.changed(people), found.left_junk

    async def _move_out_of_junk(self, ids: Sequence[int]) -> list[Publication]:
        """Move copies of these mails from Junk to INBOX, as the provider has moved the mails; publish the changes.

        A mailbox that is locked for long is left to the sweep, with the others of the batch.
        """
        try:
            async with asyncio.timeout(LOCK_SECONDS), self._database.transaction() as connection:
                moved = await folder_junk.move_out_of_junk(
                    connection, await inbound.finish_leaving_junk(connection, ids)
                )
                people: dict[int, list[str]] = {}
                for inbound_id, _, address in moved:
                    people.setdefault(inbound_id, []).append(address)
                events = [
                    maillog.MailEvent("not_junk", inbound_id=inbound_id, who=maillog.join_addresses(addresses))
                    for inbound_id, addresses in people.items()
                ]
                await maillog.record_events(connection, events)
        except TimeoutError:
            log.warning("mailboxes locked for long, moves out of Junk left to the sweep", mails=len(ids))
            return []
        maillog.announce(events)
        return publications.changed((local_id, address) for _, local_id, address in moved)

    async def sweep(self) -> list[Publication]:
        """Return publications for mails that are overdue for delivery: their message was lost."""
        async with self._database.transaction() as connection:
            overdue = await inbound.list_overdue(connection, "routed", self._grace)
            left_junk = await inbound.list_leaving_junk(connection, self._grace)
        return publications.routed([*((row, recipients) for row, _, recipients in overdue), *left_junk])


def _delivery_events(copy: RoutedMail, have_junk: Collection[int]) -> Iterator[maillog.MailEvent]:
    """Yield the events of the copies of one mail. :param have_junk: the people who get junk into Junk."""
    is_junk = copy.junk and not copy.own_copy
    into_junk = [
        address
        for local_id, address in zip(copy.local_ids, copy.addresses, strict=True)
        if is_junk and local_id in have_junk
    ]
    into_inbox = [address for address in copy.addresses if address not in into_junk]
    for addresses, place in ((into_inbox, ""), (into_junk, "; into Junk")):
        if addresses:
            yield maillog.MailEvent(
                "own_copy" if copy.own_copy else "delivered",
                inbound_id=copy.inbound_id,
                external=copy.external,
                who=maillog.join_addresses(addresses),
                rule=copy.rule,
                reply=f"{copy.reason}{place}",
                origin_id=copy.submission_id,
            )


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
