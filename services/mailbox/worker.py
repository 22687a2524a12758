"""The mailbox service's stage: one transaction and a constant number of queries for a batch of mails."""

from __future__ import annotations

from collections.abc import Sequence

from shared.amqp import publications, topology
from shared.amqp.broker import Publication
from shared.db.database import Database
from shared.store import inbound, maildrops, maillog
from shared.store.maildrops import Copy


class MailboxWorker:
    """Delivers what is in state routed."""

    name = "mailbox"
    queue = topology.MAILBOX
    batch = 200

    def __init__(self, database: Database, grace_seconds: float) -> None:
        self._database = database
        self._grace = grace_seconds

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        """Deliver the copies of these mails that are not delivered yet."""
        async with self._database.transaction() as connection:
            copies = await inbound.load_routed(connection, ids)
            here = [copy for copy in copies if not copy.gone]
            gone = [copy for copy in copies if copy.gone]
            await maildrops.deliver(
                connection,
                [Copy(copy.local_ids, copy.inbound_id, copy.blob_id, copy.octets, copy.own_copy) for copy in here],
            )
            await inbound.record_delivered(connection, here, gone, ids)
            events = [
                maillog.MailEvent(
                    "own_copy" if copy.own_copy else "delivered",
                    inbound_id=copy.inbound_id,
                    external=copy.external,
                    who=maillog.join_addresses(copy.addresses),
                    rule=copy.rule,
                    reply=copy.reason,
                )
                for copy in here
            ]
            events += [
                maillog.MailEvent(
                    "returned",
                    inbound_id=copy.inbound_id,
                    external=copy.external,
                    who=address,
                    reply="the account was removed or disabled before the delivery",
                )
                for copy in gone
                for address in copy.addresses
            ]
            await maillog.record_events(connection, events)
        maillog.announce(events)
        back = {copy.inbound_id: copy.external for copy in gone if copy.external is not None}
        return publications.fetched(back.items())

    async def count_failure(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        """Count faults of this mail; park it at the fifth."""
        async with self._database.transaction() as connection:
            parked = await inbound.count_failure(connection, row, origin, trace, failures)
            events = [maillog.MailEvent("parked", inbound_id=row, reply=origin)] if parked else []
            await maillog.record_events(connection, events)
        maillog.announce(events)

    async def sweep(self) -> list[Publication]:
        """Mails that wait for their delivery and whose message was lost."""
        async with self._database.transaction() as connection:
            late = await inbound.list_overdue(connection, "routed", self._grace)
        return publications.routed((row, recipients) for row, _, recipients in late)
