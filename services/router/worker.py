"""Queue worker of the router: one transaction and a constant number of queries per batch.

A batch has a fixed budget of header octets. The facts of a mail are reduced before the next header is read. Mails with
long headers that exceed the budget go back to the end of the queue, so they delay other mails by one batch at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from services.router.deferred_mails import DeferredMails
from services.router.header_reader import HeaderReader
from services.router.junk_headers import JunkRules
from shared import routing
from shared.amqp import publications, topology
from shared.amqp.broker import Publication
from shared.db.database import Connection, Database
from shared.mime.headers import MAX_HOPS
from shared.model import External, Local, Sent
from shared.runtime.parsing import Parsing
from shared.runtime.queue_worker import FailureCounter
from shared.store import accounts, blobs, inbound, maillog, reply_tags, sent_mail
from shared.store.inbound import FetchedMail, RoutingResult

LOOP_REASON = f"mail loop: more than {MAX_HOPS} servers have relayed the mail (Received fields)"
COMPARED_MAILS = 8
"""Limits the mails whose bodies are compared at a time: mails; with the submissions they are 4 MiB."""

log = structlog.get_logger()


class RouterWorker:
    """Routes mails in state fetched."""

    name = "router"
    queue = topology.ROUTER
    batch = 200

    def __init__(self, database: Database, grace_seconds: float, junk_rules: JunkRules | None = None) -> None:
        """:param junk_rules: which mail is junk; None: the router finds none."""
        self._junk_rules = junk_rules or {}
        self._database = database
        self._grace = grace_seconds
        self._deferred = DeferredMails()
        self.count_failure = FailureCounter(database, inbound.count_failure, "inbound_id")

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        """Decide the recipients of these mails; skip mails that are already routed, defer long headers."""
        now, later = self._deferred.divide(ids)
        routed, deferred = await self._route(now)
        self._deferred.record(now, deferred)
        if deferred:
            log.info("long headers deferred", mails=len(deferred), first_id=deferred[0][0])
        return [*routed, *publications.fetched([*deferred, *later])]

    async def _route(self, ids: Sequence[int]) -> tuple[list[Publication], list[tuple[int, str]]]:
        """Route mails in one transaction. :return: what to publish; mails to defer, with the account's address."""
        async with self._database.transaction() as connection:
            mails = await inbound.load_fetched(connection, ids)
            if not mails:
                return [], []
            external_ids = list({mail.external_id for mail in mails if mail.external_id is not None})
            externals = {external.id: external for external in await accounts.load_externals(connection, external_ids)}
            sharers = await accounts.load_sharers(connection, external_ids)
            parsing = Parsing()
            reader = HeaderReader(connection, externals, parsing, self._junk_rules)
            facts = await reader.read(mails)
            deferred = [(mail.id, _address(mail, externals) or "") for mail in mails if mail.id not in facts]
            mails = [mail for mail in mails if mail.id in facts]
            looping = [mail for mail in mails if facts[mail.id].hops > MAX_HOPS and not mail.requeued]
            if looping:
                await inbound.park_looping(connection, [mail.id for mail in looping], inbound.LOOP, LOOP_REASON)
            mails = [mail for mail in mails if mail not in looping]
            probes = await _take_probes(connection, mails, facts)
            mails = [mail for mail in mails if mail.id not in probes]
            referenced = {message_id for mail in mails for message_id in routing.referenced_ids(facts[mail.id])}
            sent = await sent_mail.find_sent(connection, referenced)
            has_tags = any(facts[mail.id].to.tags or facts[mail.id].cc.tags for mail in mails)
            tag_keys = await reply_tags.load_keys(connection) if has_tags else []
            own_copies = await _confirm_own_copies(connection, _own_copies(mails, facts, externals, sharers, sent))
            decisions = [
                own_copies[mail.id].decision
                if mail.id in own_copies
                else await parsing.run(0, _decide, mail, facts[mail.id], externals, sharers, sent, tag_keys)
                for mail in mails
            ]
            results = [
                _result(mail, decision, mail.id in reader.junk) for mail, decision in zip(mails, decisions, strict=True)
            ]
            await inbound.write_decisions(connection, results)
            await sent_mail.add_further(
                connection,
                {
                    (own_copies[mail.id].copy_of, further_id, mail.external_id)
                    for mail in mails
                    if mail.id in own_copies and (further_id := own_copies[mail.id].further_id) and mail.external_id
                },
            )
            addresses = {local.id: local.address for people in sharers.values() for local in people}
            events = _events(mails, results, externals, addresses)
            events += [
                maillog.MailEvent(
                    "discarded", inbound_id=mail_id, external=_address_of(external_id, externals), reply=probe.reason
                )
                for mail_id, (external_id, probe) in probes.items()
            ]
            events += [
                maillog.MailEvent("parked", inbound_id=mail.id, reply=LOOP_REASON, origin_id=mail.submission_id)
                for mail in looping
            ]
            await maillog.record_events(connection, events)
        maillog.announce(events)
        routed = publications.routed(
            (result.id, [addresses[local_id] for local_id, *_ in result.recipients]) for result in results
        )
        return routed, deferred

    async def sweep(self) -> list[Publication]:
        """Return publications for mails that are overdue for routing: their message was lost."""
        async with self._database.transaction() as connection:
            await inbound.route_again(connection)
            overdue = await inbound.list_overdue(connection, "fetched", self._grace)
        return publications.fetched((row, external) for row, external, _ in overdue)


async def _take_probes(
    connection: Connection, mails: Sequence[FetchedMail], facts: Mapping[int, routing.HeaderFacts]
) -> dict[int, tuple[int, routing.ProbeMail]]:
    """Discard the probe mails for reply tags and the reports on them, and record what they say.

    :return: by id of the mail, each with the id of its external account.
    """
    named = {mail.id: routing.probes_named(facts[mail.id]) for mail in mails if mail.source == "fetched"}
    known = await reply_tags.find_probes(connection, {message_id for ids in named.values() for message_id in ids})
    found: dict[int, tuple[int, routing.ProbeMail]] = {}
    for mail in mails:
        for message_id in named.get(mail.id, ()):
            if mail.external_id is not None and (mail.external_id, message_id) in known:
                probe = known[mail.external_id, message_id]
                found[mail.id] = (
                    mail.external_id,
                    routing.read_probe(facts[mail.id], message_id, None if probe is None else probe.tag),
                )
                break
    if found:
        await inbound.discard_probes(connection, {mail_id: probe.reason for mail_id, (_, probe) in found.items()})
        await reply_tags.record_results(
            connection, [(external_id, probe.message_id, probe.result) for external_id, probe in found.values()]
        )
    return found


def _own_copies(
    mails: Sequence[FetchedMail],
    facts: Mapping[int, routing.HeaderFacts],
    externals: Mapping[int, External],
    sharers: Mapping[int, Sequence[Local]],
    sent: Mapping[str, Sequence[Sent]],
) -> dict[FetchedMail, routing.OwnCopy]:
    found = {}
    for mail in mails:
        external = externals.get(mail.external_id or 0)
        if external is not None and mail.source == "fetched":
            own_copy = routing.find_own_copy(facts[mail.id], external, sharers[external.id], sent)
            if own_copy is not None:
                found[mail] = own_copy
    return found


async def _confirm_own_copies(
    connection: Connection, candidates: Mapping[FetchedMail, routing.OwnCopy]
) -> dict[int, routing.OwnCopy]:
    """Return those whose body is the one that was relayed, by the id of the mail."""
    confirmed = {}
    mails = list(candidates)
    for start in range(0, len(mails), COMPARED_MAILS):
        part = mails[start : start + COMPARED_MAILS]
        blob_ids = {mail.blob_id for mail in part} | {candidates[mail].blob_id for mail in part}
        heads = await blobs.heads(connection, sorted(blob_ids))
        for mail in part:
            submission = heads.get(candidates[mail].blob_id)
            if submission is not None and routing.has_same_body(heads[mail.blob_id], submission):
                confirmed[mail.id] = candidates[mail]
    return confirmed


def _decide(
    mail: FetchedMail,
    facts: routing.HeaderFacts,
    externals: Mapping[int, External],
    sharers: Mapping[int, Sequence[Local]],
    sent: Mapping[str, Sequence[Sent]],
    tag_keys: Sequence[bytes],
) -> routing.Decision:
    if mail.external_id is None:
        return routing.Decision((), 5, inbound.REMOVED, held=True)
    external = externals.get(mail.external_id)
    if external is None:
        return routing.Decision((), 5, "held: the external account was removed", held=True)
    return routing.decide(facts, external, sharers[external.id], sent, mail.source, mail.author_id, tag_keys)


def _result(mail: FetchedMail, decision: routing.Decision, junk: bool) -> RoutingResult:
    recipients = tuple((recipient.local_id, recipient.rule, recipient.reason) for recipient in decision.recipients)
    found_by = decision.found_by if recipients and mail.source == "fetched" else None
    rule = decision.rule if recipients else None
    return RoutingResult(mail.id, recipients, rule, decision.reason, decision.own_copy, found_by, junk)


def _address(mail: FetchedMail, externals: Mapping[int, External]) -> str | None:
    return _address_of(mail.external_id, externals)


def _address_of(external_id: int | None, externals: Mapping[int, External]) -> str | None:
    external = externals.get(external_id or 0)
    return external.address if external else None


def _events(
    mails: Sequence[FetchedMail],
    results: Sequence[RoutingResult],
    externals: Mapping[int, External],
    addresses: Mapping[int, str],
) -> list[maillog.MailEvent]:
    events = []
    for mail, result in zip(mails, results, strict=True):
        events.append(
            maillog.MailEvent(
                "routed" if result.recipients else "held",
                inbound_id=mail.id,
                external=_address(mail, externals),
                who=maillog.join_addresses([addresses[recipient[0]] for recipient in result.recipients]),
                rule=result.rule,
                reply=result.reason,
                origin_id=mail.submission_id,
            )
        )
    return events
