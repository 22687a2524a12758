"""Queue worker of the sender: delivers submissions to inside recipients and enqueues the rest for relay.

Each batch takes one transaction and a constant number of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.sender import outcomes
from shared.amqp import publications, topology
from shared.amqp.broker import Publication
from shared.db.database import Database
from shared.runtime.queue_worker import FailureCounter
from shared.store import accounts, inbound, maillog, submissions
from shared.store.inbound import Arrival
from shared.store.submissions import OpenSubmission


class SubmissionWorker:
    """Processes submissions in state submitted."""

    name = "sender"
    queue = topology.SENDER
    batch = 200

    def __init__(self, database: Database, grace_seconds: float, wake: Callable[[int], None]) -> None:
        """:param wake: called with the id of each external account that has something to relay."""
        self._database = database
        self._grace = grace_seconds
        self.count_failure = FailureCounter(database, submissions.count_failure, "submission_id")
        self._wake = wake

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        """Deliver these submissions inside and enqueue them for relay; skip those that are already processed."""
        async with self._database.transaction() as connection:
            mails = await submissions.load_submitted(connection, ids)
            if not mails:
                return []
            arrivals = [arrival for mail in mails for arrival in inside_arrivals(mail)]
            inbound_ids = await inbound.add_inbound(connection, arrivals)
            people = {
                local.id: local.address
                for local in await accounts.load_locals(
                    connection, sorted({local_id for arrival in arrivals for local_id, _ in arrival.recipients})
                )
            }
            externals = {
                external.id: external.address
                for external in await accounts.load_externals(
                    connection, sorted({arrival.external_id for arrival in arrivals if arrival.external_id is not None})
                )
            }
            await submissions.enqueue_for_relay(connection, [mail.id for mail in mails])
            earlier_ids = await submissions.find_duplicates(connection, [mail.id for mail in mails])
            duplicates = [
                maillog.MailEvent(
                    "uncertain",
                    submission_id=submission_id,
                    reply=f"submitted before as {earlier}: the client probably received no reply",
                )
                for submission_id, earlier in earlier_ids.items()
            ]
            await maillog.record_events(connection, duplicates)
            notices = await outcomes.notify_deliveries(
                connection, {mail.id: mail.inside_recipients for mail in mails if mail.inside_recipients}
            )
        maillog.announce([*duplicates, *notices.events])
        for external_id in {mail.external_id for mail in mails}:
            self._wake(external_id)
        stored = list(zip(inbound_ids, arrivals, strict=True))
        return [
            *notices.publications,
            *publications.fetched(
                (inbound_id, externals.get(arrival.external_id, ""))
                for inbound_id, arrival in stored
                if arrival.external_id is not None
            ),
            # A user who was removed meanwhile has no address: the mailbox service returns the mail to the router.
            *publications.routed(
                (inbound_id, [people.get(local_id, "removed") for local_id, _ in arrival.recipients])
                for inbound_id, arrival in stored
                if arrival.external_id is None
            ),
        ]

    async def sweep(self) -> list[Publication]:
        """Return publications for submissions that are overdue: their message was lost."""
        async with self._database.transaction() as connection:
            overdue = await submissions.list_overdue(connection, self._grace)
        return publications.submitted(overdue)


def inside_arrivals(mail: OpenSubmission) -> list[Arrival]:
    """Return the inside mails of a submission: one for its local recipients, one per external account it is sent to.

    Their headers are not rewritten: colleagues see each other's local addresses.
    """
    people = {
        recipient.target_id: f"sent to {recipient.address}"
        for recipient in mail.inside_recipients
        if recipient.kind == "local" and recipient.target_id is not None
    }
    arrivals = []
    if people:
        arrivals.append(
            Arrival(
                "local",
                mail.blob_id,
                message_id=mail.message_id,
                author_id=mail.author_id,
                submission_id=mail.id,
                recipients=tuple(people.items()),
            )
        )
    for external_id in dict.fromkeys(r.target_id for r in mail.inside_recipients if r.kind == "external"):
        arrivals.append(
            Arrival(
                "submitted",
                mail.blob_id,
                external_id=external_id,
                message_id=mail.message_id,
                author_id=mail.author_id,
                submission_id=mail.id,
            )
        )
    return arrivals
