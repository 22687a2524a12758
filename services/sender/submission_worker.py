"""The sender's stage: what was submitted is delivered inside, and queued for relaying. A constant number of queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.sender import outcomes
from shared.amqp import publications, topology
from shared.amqp.broker import Publication
from shared.db.database import Database
from shared.store import accounts, inbound, maillog, submissions
from shared.store.inbound import Arrival
from shared.store.submissions import OpenSubmission


class SubmissionWorker:
    """Hands over what is in state submitted."""

    name = "sender"
    queue = topology.SENDER
    batch = 200

    def __init__(self, database: Database, grace_seconds: float, wake: Callable[[int], None]) -> None:
        """:param wake: called with the id of each external account that has something to relay."""
        self._database = database
        self._grace = grace_seconds
        self._wake = wake

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        """Hand these submissions over; those that were handed over already are passed over."""
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
                    connection, sorted({a.external_id for a in arrivals if a.external_id is not None})
                )
            }
            await submissions.enqueue_for_relay(connection, [mail.id for mail in mails])
            repeated = await submissions.find_duplicates(connection, [mail.id for mail in mails])
            doubts = [
                maillog.MailEvent(
                    "uncertain",
                    submission_id=id_,
                    reply=f"handed in before as {earlier}: its client seems to have got no answer",
                )
                for id_, earlier in repeated.items()
            ]
            await maillog.record_events(connection, doubts)
            told = await outcomes.notify_deliveries(
                connection, {mail.id: mail.inside_recipients for mail in mails if mail.inside_recipients}
            )
        maillog.announce([*doubts, *told.events])
        for external_id in {mail.external_id for mail in mails}:
            self._wake(external_id)
        placed = list(zip(inbound_ids, arrivals, strict=True))
        return [
            *told.publications,
            *publications.fetched(
                (id_, externals.get(a.external_id, "")) for id_, a in placed if a.external_id is not None
            ),
            # Who was removed meanwhile has no address: the mailbox service then sends the mail back to the router.
            *publications.routed(
                (id_, [people.get(local_id, "removed") for local_id, _ in a.recipients])
                for id_, a in placed
                if a.external_id is None
            ),
        ]

    async def count_failure(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        """Count faults of this submission; park it at the fifth."""
        async with self._database.transaction() as connection:
            parked = await submissions.count_failure(connection, row, origin, trace, failures)
            events = [maillog.MailEvent("parked", submission_id=row, reply=origin)] if parked else []
            await maillog.record_events(connection, events)
        maillog.announce(events)

    async def sweep(self) -> list[Publication]:
        """Submissions that wait to be handed over and whose message was lost."""
        async with self._database.transaction() as connection:
            late = await submissions.list_overdue(connection, self._grace)
        return publications.submitted(late)


def inside_arrivals(mail: OpenSubmission) -> list[Arrival]:
    """What a submission puts inside: one mail for its local recipients, one for each account of ours that it names.

    Unrewritten: colleagues see each other's local addresses.
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
