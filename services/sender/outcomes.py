"""What became of groups, written down in one transaction: recipients, events, further ids, the authors' notices."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from services.sender import dsn_report, retry_policy
from services.sender.dsn_report import Notice, Original, RecipientStatus
from services.sender.smtp_transaction import DeliveryResult, provider_message_ids
from shared.amqp import publications
from shared.amqp.broker import Publication
from shared.db.database import Connection
from shared.mime import dsn_options, headers
from shared.model import Content, EnvelopeRecipient, External
from shared.provider.smtp_client import Reply
from shared.store import accounts, blobs, inbound, maillog, poison, relay_queue, relay_status, sent_mail
from shared.store.inbound import Arrival
from shared.store.maillog import MailEvent
from shared.store.relay_queue import QueuedMail, RecipientResult, RelayResult

NO_ANSWER = "4.4.2"
"""RFC 3463: bad connection."""
DELIVERED = "2.1.5"
"""RFC 3463: destination address valid."""
EXPIRED = "4.4.7"
"""RFC 3463: delivery time expired."""
CANCELLED = "5.3.0"
"""RFC 3463: other or undefined mail system status."""
DUPLICATE_UNKNOWN = (
    "sent twice, and both times the connection ended before the provider's answer: it may have been delivered, or not"
)


@dataclass(frozen=True, slots=True)
class PostCommit:
    """What is to be told and published once the transaction is committed."""

    events: tuple[MailEvent, ...] = ()
    publications: tuple[Publication, ...] = ()

    def __add__(self, other: PostCommit) -> PostCommit:
        return PostCommit(self.events + other.events, self.publications + other.publications)


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """What the provider said about a claimed group, and all that is to be written down about it.

    further: rows for ``authors``, ids that the provider gave the mail. failed, relayed: whom the author is to be told
    about.
    """

    mail: QueuedMail
    result: RelayResult
    events: tuple[MailEvent, ...]
    message_ids: tuple[tuple[str, int, int, int], ...]
    failed: tuple[RecipientStatus, ...]
    relayed: tuple[RecipientStatus, ...]

    @classmethod
    def from_result(cls, external: External, group: QueuedMail, verdict: DeliveryResult, chance: float) -> ResultRecord:
        """Decide it. chance: from 0 to 1, spreads the next try."""
        at_once = verdict.retry_now or (verdict.unanswered and not group.uncertain)
        outcomes = verdict.outcomes
        if verdict.unanswered and group.uncertain:  # sent once more already: its author is told that nobody knows
            outcomes = tuple(
                replace(outcome, state="failed", reply=DUPLICATE_UNKNOWN) if outcome.state == "waiting" else outcome
                for outcome in outcomes
            )
        return cls(
            group,
            RelayResult(
                group.id,
                outcomes,
                0.0 if at_once else retry_policy.retry_delay(group.tries + 1, chance, interrupted=verdict.interrupted),
                verdict.count_try and not at_once,
                verdict.unanswered,
            ),
            _events(external, group, outcomes, at_once, verdict.unanswered),
            _new_message_ids(external, group, outcomes),
            _statuses(external, group, outcomes, "failed"),
            () if verdict.server_sends_notices else _statuses(external, group, outcomes, "relayed"),
        )

    @property
    def needs_statements(self) -> bool:
        """Whether it takes more than the one statement that most need."""
        return bool(self.message_ids or self.failed or self.relayed)


_EVENT_NAMES = {"relayed": "relayed", "failed": "failed", "waiting": "delayed"}


def _events(
    external: External, group: QueuedMail, outcomes: Sequence[RecipientResult], at_once: bool, unanswered: bool
) -> tuple[MailEvent, ...]:
    addresses = {waiting.position: waiting.address for waiting in group.recipients}
    events = tuple(
        MailEvent(
            _EVENT_NAMES[outcome.state],
            submission_id=group.id,
            external=external.address,
            who=addresses[outcome.position],
            reply=outcome.reply,
        )
        for outcome in outcomes
        if outcome.state != "waiting" or not at_once
    )
    return (*events, _uncertain_event(group, external.address, outcomes[0].reply)) if unanswered else events


def _new_message_ids(
    external: External, group: QueuedMail, outcomes: Sequence[RecipientResult]
) -> tuple[tuple[str, int, int, int], ...]:
    ours = {waiting.address.lower() for waiting in group.recipients} | {external.address.lower()}
    found = {
        id_ for outcome in outcomes if outcome.state == "relayed" for id_ in provider_message_ids(outcome.reply, ours)
    }
    return tuple((id_, group.external_id, group.author_id, group.id) for id_ in sorted(found))


def _statuses(
    external: External, group: QueuedMail, outcomes: Sequence[RecipientResult], state: Literal["failed", "relayed"]
) -> tuple[RecipientStatus, ...]:
    """Whom of those in this state the author is to be told about."""
    recipients = {waiting.position: waiting for waiting in group.recipients}
    return tuple(
        RecipientStatus(
            recipients[outcome.position].address,
            _status(outcome.reply, NO_ANSWER if outcome.reply == DUPLICATE_UNKNOWN else "5.0.0"),
            outcome.reply,
            external.smtp.host,
            recipients[outcome.position].dsn_params,
        )
        for outcome in outcomes
        if outcome.state == state and dsn_options.is_notice_wanted(recipients[outcome.position].dsn_params, state)
    )


async def record_results(
    connection: Connection, batch: Sequence[ResultRecord], owner: str, marks: Sequence[QueuedMail], seconds: float
) -> tuple[list[PostCommit | None], set[int]]:
    """Write down what the providers said, and which mails are about to get their final dot.

    It is one statement if none of the batch ``needs_more``.

    :param seconds: so long what is marked is held. :return: for each group that is settled what follows, None if its
        claim is lost and nothing was changed; and the ids of those that are marked.
    """
    held = await relay_queue.record_results(
        connection,
        owner,
        [settled.result for settled in batch],
        [event for settled in batch for event in settled.events],
        [group.id for group in marks],
        seconds,
    )
    further = [row for settled in batch if settled.mail.id in held for row in settled.message_ids]
    if further:
        await sent_mail.add_sent(connection, further)
    afters: list[PostCommit | None] = []
    for settled in batch:
        if settled.mail.id not in held:
            afters.append(None)
            continue
        after = PostCommit(settled.events)
        after += await _notify(connection, settled.mail, "failed", settled.failed)
        after += await _notify(connection, settled.mail, "relayed", settled.relayed)
        afters.append(after)
    return afters, held


async def recover_orphans(connection: Connection, dead_owners: Collection[str] = ()) -> PostCommit:
    """Take up what senders left that are gone: what they had not sent is queued as it was; what they had sent without
    an answer is sent once more, and marked; what had been sent once more already ends, and its author is told. Each may
    have ended its sender, so it is rehearsed before it is claimed again.

    :param gone: owners known to be so, whose claims have not run out yet.
    """
    orphans = await relay_queue.list_orphaned_claims(connection, dead_owners)
    if orphans:
        await poison.add_suspects(connection, relay_queue.STAGE, [group.id for group, _ in orphans])
    unsent = [group.id for group, unanswered in orphans if not unanswered]
    if unsent:
        await relay_queue.release_claims(connection, unsent)
    after = PostCommit()
    for group, unanswered in orphans:
        if unanswered:
            await relay_queue.send_again(connection, group.id)
            event = _uncertain_event(group, None, "the sender ended before the provider's reply came")
            await maillog.record_events(connection, [event])
            after += PostCommit((event,))
            if group.uncertain:
                abouts = [
                    RecipientStatus(w.address, NO_ANSWER, DUPLICATE_UNKNOWN, dsn_params=w.dsn_params)
                    for w in group.recipients
                ]
                after += await _fail_mail(connection, group, abouts)
    return after


async def expire_mails(connection: Connection) -> PostCommit:
    """End what could not be delivered for five days, but for paused accounts, and tell the authors; some at a time."""
    after = PostCommit()
    groups = await relay_queue.list_expired(connection, retry_policy.EXPIRY)
    if not groups:
        return after
    problems = await _load_problems(connection, groups)
    for group in groups:
        problem = problems.get(group.external_id)
        abouts = [
            RecipientStatus(
                w.address,
                EXPIRED,
                f"not delivered within five days; {_last_problem(w.reply, problem)}",
                dsn_params=w.dsn_params,
            )
            for w in group.recipients
        ]
        after += await _fail_mail(connection, group, abouts)
    return after


async def _fail_mail(connection: Connection, group: QueuedMail, abouts: Sequence[RecipientStatus]) -> PostCommit:
    """End a queued group without a further try; an About for each of its recipients, for the author's notice."""
    await relay_queue.expire(
        connection,
        group.id,
        [RecipientResult(w.position, "failed", about.reply) for w, about in zip(group.recipients, abouts, strict=True)],
    )
    events = [MailEvent("failed", submission_id=group.id, who=about.address, reply=about.reply) for about in abouts]
    await maillog.record_events(connection, events)
    return PostCommit(tuple(events)) + await _notify(connection, group, "failed", abouts)


async def notify_delays(connection: Connection) -> PostCommit:
    """Tell authors what has not been delivered for four hours, then daily; some at a time."""
    after = PostCommit()
    groups = await relay_queue.claim_delayed(connection, retry_policy.FIRST_NOTICE, retry_policy.NEXT_NOTICE)
    if not groups:
        return after
    problems = await _load_problems(connection, groups)
    for group in groups:
        problem = problems.get(group.external_id)
        abouts = [
            RecipientStatus(
                w.address, _status(w.reply or "", "4.4.1"), _last_problem(w.reply, problem), dsn_params=w.dsn_params
            )
            for w in group.recipients
        ]
        after += await _notify(connection, group, "delayed", abouts)
    return after


async def notify_cancelled(connection: Connection) -> PostCommit:
    """Tell authors what the operator ended; some at a time."""
    after = PostCommit()
    for group, reason in await relay_queue.claim_cancelled(connection):
        abouts = [RecipientStatus(w.address, CANCELLED, reason, dsn_params=w.dsn_params) for w in group.recipients]
        after += await _notify(connection, group, "failed", abouts)
    return after


async def notify_deliveries(
    connection: Connection, recipients_by_id: Mapping[int, Sequence[EnvelopeRecipient]]
) -> PostCommit:
    """Tell authors that their mail reached recipients inside, where they asked for that.

    :param inside: recipients by id of the submission.
    """
    wanted = {
        id_: [RecipientStatus(r.address, DELIVERED, "delivered", dsn_params=r.dsn_params) for r in recipients]
        for id_, recipients in recipients_by_id.items()
        if any(dsn_options.is_notice_wanted(r.dsn_params, "delivered") for r in recipients)
    }
    after = PostCommit()
    if wanted:
        for group in await relay_queue.load_queued_mails(connection, list(wanted)):
            after += await _notify(connection, group, "delivered", wanted[group.id])
    return after


async def _load_problems(connection: Connection, groups: Sequence[QueuedMail]) -> dict[int, str | None]:
    """What went wrong last with the accounts of these groups, by their ids."""
    states = await relay_status.load_status(connection, {group.external_id for group in groups})
    return {external_id: state.last_error for external_id, state in states.items()}


_REASONS: dict[dsn_options.Action, str] = {
    "failed": "a notice that a mail failed",
    "delayed": "a notice that a mail is delayed",
    "delivered": "a notice that a mail was delivered",
    "relayed": "a notice that a mail was handed on",
}


async def _notify(
    connection: Connection, group: QueuedMail, action: dsn_options.Action, abouts: Sequence[RecipientStatus]
) -> PostCommit:
    """Put a notice into the author's mailbox, about those whom the author wants to hear of. None for mail with a null
    sender (RFC 5321 4.5.5), so notices never answer notices, nor for an author whose account was removed."""
    abouts = [about for about in abouts if dsn_options.is_notice_wanted(about.dsn_params, action)]
    if not abouts or not group.envelope_from or not await accounts.load_locals(connection, [group.author_id]):
        return PostCommit()
    notice = await _compose(connection, group, action, abouts)
    [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(notice.body)])
    reason = _REASONS[action]
    [inbound_id] = await inbound.add_inbound(
        connection,
        [
            Arrival(
                "notice",
                blob_id,
                message_id=notice.message_id,
                submission_id=group.id,
                recipients=((group.author_id, reason),),
            )
        ],
    )
    event = MailEvent("noticed", inbound_id=inbound_id, submission_id=group.id, who=group.author_address, reply=reason)
    await maillog.record_events(connection, [event])
    return PostCommit((event,), tuple(publications.routed([(inbound_id, [group.author_address])])))


async def compose_dry_run(connection: Connection, group: QueuedMail) -> None:
    """Write the notice that the author would get if the mail failed; it goes nowhere."""
    abouts = [
        RecipientStatus(w.address, EXPIRED, _last_problem(w.reply, None), dsn_params=w.dsn_params)
        for w in group.recipients
    ]
    await _compose(connection, group, "failed", abouts)


async def _compose(
    connection: Connection, group: QueuedMail, action: dsn_options.Action, abouts: Sequence[RecipientStatus]
) -> Notice:
    now = datetime.datetime.now(datetime.UTC)
    head = (await blobs.heads(connection, [group.blob_id])).get(group.blob_id, b"")
    submitted_at = now - datetime.timedelta(seconds=group.age)
    # Of a larger mail the header is enough: a notice of 50 MB is of no use to anybody.
    whole = (
        head
        if action == "failed" and dsn_options.is_whole_wanted(group.dsn_params) and len(head) == group.octets
        else None
    )
    original = Original(
        group.author_address,
        head[: headers.header_end(head)],
        submitted_at,
        whole,
        dsn_options.envelope_id(group.dsn_params),
    )
    return dsn_report.build_report(action, original, abouts, now)


def _uncertain_event(group: QueuedMail, external: str | None, reason: str) -> MailEvent:
    return MailEvent(
        "uncertain",
        submission_id=group.id,
        external=external,
        who=", ".join(waiting.address for waiting in group.recipients)[:1000],
        reply=reason,
    )


def _status(reply: str, otherwise: str = "5.0.0") -> str:
    code, _, text = reply.partition(" ")
    return Reply(int(code), text).status if code.isascii() and code.isdigit() else otherwise


def _last_problem(reply: str | None, problem: str | None) -> str:
    if reply or problem:
        return f"the last problem was: {reply or problem}"
    return "the provider's mail server was never tried"
