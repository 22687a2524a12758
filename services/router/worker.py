"""Queue worker of the router: one transaction and a constant number of queries per batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from shared import routing
from shared.amqp import publications, topology
from shared.amqp.broker import Publication
from shared.db.database import Connection, Database
from shared.mime.headers import MAX_HOPS, header_end
from shared.model import External, Local, Sent
from shared.runtime.queue_worker import FailureCounter, Handled
from shared.store import accounts, blobs, inbound, maillog, sent_mail
from shared.store.inbound import FetchedMail, RoutingResult

LOOP_REASON = f"mail loop: more than {MAX_HOPS} servers have relayed the mail (Received fields)"
PREFIX_OCTETS = 8192
"""Size of the first read of a mail: octets; few headers are longer."""
SLOW_SECONDS = 0.005
"""Parse time of one header after which other tasks get a turn: seconds. An unusual header takes 0.2 s, and 200 of them
without a pause would let the connections time out."""


class RouterWorker:
    """Routes mails in state fetched."""

    name = "router"
    queue = topology.ROUTER
    batch = 200

    def __init__(self, database: Database, grace_seconds: float) -> None:
        self._database = database
        self._grace = grace_seconds
        self.count_failure = FailureCounter(database, inbound.count_failure, "inbound_id")

    async def handle(self, ids: Sequence[int]) -> Handled:
        """Decide the recipients of these mails; skip mails that are already routed."""
        async with self._database.transaction() as connection:
            mails = await inbound.load_fetched(connection, ids)
            if not mails:
                return Handled()
            facts = await _load_facts(connection, mails)
            looping = [mail.id for mail in mails if facts[mail.id].hops > MAX_HOPS and not mail.requeued]
            if looping:
                await inbound.park_looping(connection, looping, inbound.LOOP, LOOP_REASON)
                mails = [mail for mail in mails if mail.id not in looping]
            external_ids = list({mail.external_id for mail in mails if mail.external_id is not None})
            externals = {external.id: external for external in await accounts.load_externals(connection, external_ids)}
            sharers = await accounts.load_sharers(connection, external_ids)
            referenced = {message_id for fact in facts.values() for message_id in routing.referenced_ids(fact)}
            sent = await sent_mail.find_sent(connection, sorted(referenced))
            decisions = [_decide(mail, facts[mail.id], externals, sharers, sent) for mail in mails]
            results = [_result(mail, decision) for mail, decision in zip(mails, decisions, strict=True)]
            await inbound.write_decisions(connection, results)
            await sent_mail.add_further(
                connection,
                {
                    (decision.copy_of, decision.further_id, mail.external_id)
                    for mail, decision in zip(mails, decisions, strict=True)
                    if decision.copy_of and decision.further_id and mail.external_id
                },
            )
            addresses = {local.id: local.address for people in sharers.values() for local in people}
            events = _events(mails, results, externals, addresses)
            events += [maillog.MailEvent("parked", inbound_id=mail_id, reply=LOOP_REASON) for mail_id in looping]
            await maillog.record_events(connection, events)
        maillog.announce(events)
        return Handled(
            publications.routed(
                (result.id, [addresses[local_id] for local_id, *_ in result.recipients]) for result in results
            )
        )

    async def sweep(self) -> list[Publication]:
        """Return publications for mails that are overdue for routing: their message was lost."""
        async with self._database.transaction() as connection:
            await inbound.route_again(connection)
            overdue = await inbound.list_overdue(connection, "fetched", self._grace)
        return publications.fetched((row, external) for row, external, _ in overdue)


async def _load_facts(connection: Connection, mails: Sequence[FetchedMail]) -> dict[int, routing.HeaderFacts]:
    """Read the facts of each mail, by its id.

    A second, longer read follows for mails whose header exceeds PREFIX_OCTETS, and for notices, whose body names the
    mail that they report on.
    """
    prefixes = await blobs.prefixes(connection, [mail.blob_id for mail in mails], PREFIX_OCTETS)
    facts = {}
    longer = []
    for mail in mails:
        prefix = prefixes[mail.blob_id]
        facts[mail.id] = await _facts(prefix)
        if len(prefix) == PREFIX_OCTETS and (facts[mail.id].is_notice or header_end(prefix) == PREFIX_OCTETS):
            longer.append(mail)
    if longer:
        heads = await blobs.heads(connection, [mail.blob_id for mail in longer])
        facts |= {mail.id: await _facts(heads[mail.blob_id]) for mail in longer}
    return facts


async def _facts(head: bytes) -> routing.HeaderFacts:
    started = time.monotonic()
    facts = routing.read_facts(head)
    if time.monotonic() - started > SLOW_SECONDS:
        await asyncio.sleep(0)
    return facts


def _decide(
    mail: FetchedMail,
    facts: routing.HeaderFacts,
    externals: Mapping[int, External],
    sharers: Mapping[int, Sequence[Local]],
    sent: Mapping[str, Sequence[Sent]],
) -> routing.Decision:
    if mail.external_id is None:
        return routing.Decision((), 5, inbound.REMOVED, held=True)
    external = externals.get(mail.external_id)
    if external is None:
        return routing.Decision((), 5, "held: the external account was removed", held=True)
    return routing.decide(facts, external, sharers[external.id], sent, mail.source, mail.author_id)


def _result(mail: FetchedMail, decision: routing.Decision) -> RoutingResult:
    recipients = tuple((recipient.local_id, recipient.rule, recipient.reason) for recipient in decision.recipients)
    return RoutingResult(mail.id, recipients, decision.rule if recipients else None, decision.reason, decision.own_copy)


def _events(
    mails: Sequence[FetchedMail],
    results: Sequence[RoutingResult],
    externals: Mapping[int, External],
    addresses: Mapping[int, str],
) -> list[maillog.MailEvent]:
    events = []
    for mail, result in zip(mails, results, strict=True):
        external = externals.get(mail.external_id or 0)
        address = external.address if external else None
        events.append(
            maillog.MailEvent(
                "routed" if result.recipients else "held",
                inbound_id=mail.id,
                submission_id=None,
                external=address,
                who=maillog.join_addresses([addresses[recipient[0]] for recipient in result.recipients]),
                rule=result.rule,
                reply=result.reason,
            )
        )
    return events
