"""The router's stage: one transaction and a constant number of queries for a batch of mails."""

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
from shared.store import accounts, blobs, inbound, maillog, sent_mail
from shared.store.inbound import FetchedMail, RoutingResult

LOOP_REASON = f"a mail loop: more than {MAX_HOPS} servers have passed it on (Received)"
BEGINNING_OCTETS = 8192
"""Of each mail so much is read at first."""
SLOW_SECONDS = 0.005
"""A strange header takes 0.2 s, and two hundred of them without a pause would end the connections."""


class RouterWorker:
    """Routes what is in state fetched."""

    name = "router"
    queue = topology.ROUTER
    batch = 200

    def __init__(self, database: Database, grace_seconds: float) -> None:
        self._database = database
        self._grace = grace_seconds

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        """Decide about these mails; those that are decided already are passed over."""
        async with self._database.transaction() as connection:
            mails = await inbound.load_fetched(connection, ids)
            if not mails:
                return []
            facts = await _load_facts(connection, mails)
            looping = [mail.id for mail in mails if facts[mail.id].hops > MAX_HOPS and not mail.requeued]
            if looping:
                await inbound.park_looping(connection, looping, inbound.LOOP, LOOP_REASON)
                mails = [mail for mail in mails if mail.id not in looping]
            external_ids = list({mail.external_id for mail in mails if mail.external_id is not None})
            externals = {external.id: external for external in await accounts.load_externals(connection, external_ids)}
            sharers = await accounts.load_sharers(connection, external_ids)
            asked = {message_id for fact in facts.values() for message_id in routing.referenced_ids(fact)}
            known = await sent_mail.find_sent(connection, sorted(asked))
            decisions = [_decide(mail, facts[mail.id], externals, sharers, known) for mail in mails]
            verdicts = [_result(mail, decision) for mail, decision in zip(mails, decisions, strict=True)]
            await inbound.write_decisions(connection, verdicts)
            await sent_mail.add_further(
                connection,
                {
                    (decision.copy_of, decision.further_id, mail.external_id)
                    for mail, decision in zip(mails, decisions, strict=True)
                    if decision.copy_of and decision.further_id and mail.external_id
                },
            )
            addresses = {local.id: local.address for people in sharers.values() for local in people}
            events = _events(mails, verdicts, externals, addresses)
            events += [maillog.MailEvent("parked", inbound_id=id_, reply=LOOP_REASON) for id_ in looping]
            await maillog.record_events(connection, events)
        maillog.announce(events)
        return publications.routed(
            (verdict.id, [addresses[local_id] for local_id, *_ in verdict.recipients]) for verdict in verdicts
        )

    async def count_failure(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        """Count faults of this mail; park it at the fifth."""
        async with self._database.transaction() as connection:
            parked = await inbound.count_failure(connection, row, origin, trace, failures)
            events = [maillog.MailEvent("parked", inbound_id=row, reply=origin)] if parked else []
            await maillog.record_events(connection, events)
        maillog.announce(events)

    async def sweep(self) -> list[Publication]:
        """Mails that wait for the router and whose message was lost."""
        async with self._database.transaction() as connection:
            await inbound.route_again(connection)
            late = await inbound.list_overdue(connection, "fetched", self._grace)
        return publications.fetched((row, external) for row, external, _ in late)


async def _load_facts(connection: Connection, mails: Sequence[FetchedMail]) -> dict[int, routing.HeaderFacts]:
    """The facts of each mail, by its id. Few mails have more header than BEGINNING_OCTETS, or tell in their body what
    they report on; of those as much is read as routing wants."""
    beginnings = await blobs.prefixes(connection, [mail.blob_id for mail in mails], BEGINNING_OCTETS)
    facts = {}
    longer = []
    for mail in mails:
        beginning = beginnings[mail.blob_id]
        facts[mail.id] = await _facts(beginning)
        if len(beginning) == BEGINNING_OCTETS and (
            facts[mail.id].is_notice or header_end(beginning) == BEGINNING_OCTETS
        ):
            longer.append(mail)
    if longer:
        heads = await blobs.heads(connection, [mail.blob_id for mail in longer])
        facts |= {mail.id: await _facts(heads[mail.blob_id]) for mail in longer}
    return facts


async def _facts(head: bytes) -> routing.HeaderFacts:
    began = time.monotonic()
    facts = routing.read_facts(head)
    if time.monotonic() - began > SLOW_SECONDS:
        await asyncio.sleep(0)
    return facts


def _decide(
    mail: FetchedMail,
    facts: routing.HeaderFacts,
    externals: Mapping[int, External],
    sharers: Mapping[int, Sequence[Local]],
    known: Mapping[str, Sequence[Sent]],
) -> routing.Decision:
    if mail.external_id is None:
        return routing.Decision((), 5, inbound.REMOVED, held=True)
    external = externals.get(mail.external_id)
    if external is None:
        return routing.Decision((), 5, "held: the external account was removed", held=True)
    return routing.decide(facts, external, sharers[external.id], known, mail.source, mail.author_id)


def _result(mail: FetchedMail, decision: routing.Decision) -> RoutingResult:
    recipients = tuple((recipient.local_id, recipient.rule, recipient.reason) for recipient in decision.recipients)
    return RoutingResult(mail.id, recipients, decision.rule if recipients else None, decision.reason, decision.own_copy)


def _events(
    mails: Sequence[FetchedMail],
    verdicts: Sequence[RoutingResult],
    externals: Mapping[int, External],
    addresses: Mapping[int, str],
) -> list[maillog.MailEvent]:
    events = []
    for mail, verdict in zip(mails, verdicts, strict=True):
        external = externals.get(mail.external_id or 0)
        address = external.address if external else None
        events.append(
            maillog.MailEvent(
                "routed" if verdict.recipients else "held",
                inbound_id=mail.id,
                submission_id=None,
                external=address,
                who=maillog.join_addresses([addresses[recipient[0]] for recipient in verdict.recipients]),
                rule=verdict.rule,
                reply=verdict.reason,
            )
        )
    return events
