"""Queue worker of the mailbox service: one transaction and a constant number of queries per batch."""

from __future__ import annotations

from collections.abc import Sequence

from shared.amqp import publications, topology
from shared.amqp.broker import Publication
from shared.db.database import Database
from shared.runtime.queue_worker import FailureCounter, Handled
from shared.store import inbound, maildrops, maillog
from shared.store.maildrops import Copy


class MailboxWorker:
    """Delivers mails in state routed."""

    name = "mailbox"
    queue = topology.MAILBOX
    batch = 200

    def __init__(self, database: Database, grace_seconds: float) -> None:
        self._database = database
        self._grace = grace_seconds
        self.count_failure = FailureCounter(database, inbound.count_failure, "inbound_id")

    async def handle(self, ids: Sequence[int]) -> Handled:
        """Deliver the undelivered copies of these mails."""
        async with self._database.transaction() as connection:
            await inbound.lock_routed(connection, ids)
            await maildrops.lock_recipients(connection, ids)
            copies = await inbound.load_routed(connection, ids)
            deliverable = [copy for copy in copies if not copy.gone]
            returned = [copy for copy in copies if copy.gone]
            await maildrops.deliver_copies(
                connection,
                [
                    Copy(copy.local_ids, copy.inbound_id, copy.blob_id, copy.octets, copy.own_copy)
                    for copy in deliverable
                ],
                locked=True,
            )
            await inbound.record_delivered(connection, deliverable, returned, ids)
            events = [
                maillog.MailEvent(
                    "own_copy" if copy.own_copy else "delivered",
                    inbound_id=copy.inbound_id,
                    external=copy.external,
                    who=maillog.join_addresses(copy.addresses),
                    rule=copy.rule,
                    reply=copy.reason,
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
                )
                for copy in returned
                for address in copy.addresses
            ]
            await maillog.record_events(connection, events)
        maillog.announce(events)
        for_router = {copy.inbound_id: copy.external for copy in returned if copy.external is not None}
        return Handled(publications.fetched(for_router.items()))

    async def sweep(self) -> list[Publication]:
        """Return publications for mails that are overdue for delivery: their message was lost."""
        async with self._database.transaction() as connection:
            overdue = await inbound.list_overdue(connection, "routed", self._grace)
        return publications.routed((row, recipients) for row, _, recipients in overdue)
