"""Records the outcome of queued mails in one transaction: recipients, events, new Message-IDs, notices to authors."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from services.sender import dsn_report, retry_policy
from services.sender.dsn_report import Notice, Original, RecipientStatus
from services.sender.smtp_transaction import DeliveryResult, provider_message_ids
from shared.amqp import publications
from shared.amqp.broker import Publication
from shared.db.database import Connection
from shared.mime import dsn_options, headers, provider_ids
from shared.model import Content, EnvelopeRecipient, External
from shared.provider.smtp_client import Reply
from shared.store import (
    accounts,
    blobs,
    inbound,
    maillog,
    poison,
    provider_filings,
    relay_notices,
    relay_orphans,
    relay_queue,
    relay_usage,
    relays,
    sent_mail,
)
from shared.store.inbound import Arrival
from shared.store.maillog import MailEvent
from shared.store.provider_filings import FilingKind
from shared.store.relay_queue import Mark, MarkOutcome, QueuedMail, RecipientResult, RelayResult
from shared.store.relay_usage import Use
from shared.store.relays import RelayStatus

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
    """Events to announce and messages to publish after the transaction is committed."""

    events: tuple[MailEvent, ...] = ()
    publications: tuple[Publication, ...] = ()
    relayed_ages: tuple[float, ...] = ()  # of the mails that the provider has accepted: seconds since the submission

    def __add__(self, other: PostCommit) -> PostCommit:
        return PostCommit(
            self.events + other.events,
            self.publications + other.publications,
            self.relayed_ages + other.relayed_ages,
        )


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """The result of one try of a claimed mail, and all rows to write for it."""

    mail: QueuedMail
    result: RelayResult
    events: tuple[MailEvent, ...]
    message_ids: tuple[tuple[str, int, int, int], ...]  # rows of sent_mail: Message-IDs that the provider gave the mail
    failed: tuple[RecipientStatus, ...]  # failed recipients that a notice to the author lists
    relayed: tuple[RecipientStatus, ...]  # relayed recipients that a notice to the author lists
    filings: tuple[tuple[int, FilingKind, int], ...] = ()  # rows of provider_filings, if the provider has the mail now
    use: Use | None = None  # what counts in the limits of the relay

    @classmethod
    def from_result(cls, external: External, mail: QueuedMail, result: DeliveryResult, chance: float) -> ResultRecord:
        """Derive all rows from the provider's replies. chance: from 0 to 1, jitter of the next try."""
        passed_on = result.rejection is not None and len(external.relays) > 1  # the next relay may take it
        at_once = result.retry_now or (result.unanswered and not mail.uncertain) or passed_on
        at_once = at_once or (mail.is_part and not result.count_try and not result.unanswered)
        outcomes = result.outcomes
        if result.unanswered and mail.uncertain:  # the second time without a reply: fail it and notify the author
            outcomes = tuple(
                replace(outcome, state="failed", reply=DUPLICATE_UNKNOWN) if outcome.state == "waiting" else outcome
                for outcome in outcomes
            )
        return cls(
            mail,
            RelayResult(
                mail.id,
                outcomes,
                0.0 if at_once else retry_policy.retry_delay(mail.tries + 1, chance, interrupted=result.interrupted),
                result.count_try and not at_once,
                result.unanswered,
            ),
            _events(external, mail, outcomes, at_once and not passed_on, result.unanswered),
            _new_message_ids(external, mail, outcomes),
            _statuses(external, mail, outcomes, "failed"),
            () if result.server_sends_notices else _statuses(external, mail, outcomes, "relayed"),
            _filings(external, mail) if any(outcome.state == "relayed" for outcome in outcomes) else (),
            _use(external, mail, result),
        )

    @property
    def needs_statements(self) -> bool:
        """Whether the record needs more statements than the one that all records share."""
        return bool(self.message_ids or self.failed or self.relayed or self.filings or self.use)


def _filings(external: External, mail: QueuedMail) -> tuple[tuple[int, FilingKind, int], ...]:
    """Return what is to be done at the provider's IMAP server after a relay; no copy of mail with a null sender."""
    if external.imap is None:
        return ()
    wanted: dict[FilingKind, bool] = {
        "sent": external.imap.sent is not None and bool(mail.envelope_from),
        "answered": external.imap.answered,
    }
    return tuple((mail.id, kind, mail.external_id) for kind, is_wanted in wanted.items() if is_wanted)


def _use(external: External, mail: QueuedMail, result: DeliveryResult) -> Use | None:
    """Return what a result counts in the limits of the relay: the recipients that it has, or may have."""
    if not external.relay.has_limit:
        return None
    taken = {"relayed", "waiting"} if result.unanswered else {"relayed"}
    recipients = sum(outcome.state in taken for outcome in result.outcomes)
    return Use(mail.external_id, external.relay.place, recipients) if recipients else None


_EVENT_NAMES = {"relayed": "relayed", "failed": "failed", "waiting": "delayed"}


def _events(
    external: External, mail: QueuedMail, outcomes: Sequence[RecipientResult], at_once: bool, unanswered: bool
) -> tuple[MailEvent, ...]:
    addresses = {waiting.position: waiting.address for waiting in mail.recipients}
    relay = f" (by {external.smtp.host})" if len(external.relays) > 1 else ""
    events = tuple(
        MailEvent(
            _EVENT_NAMES[outcome.state],
            submission_id=mail.id,
            external=external.address,
            who=addresses[outcome.position],
            reply=f"{outcome.reply}{relay}",
        )
        for outcome in outcomes
        if outcome.state != "waiting" or not at_once
    )
    return (*events, _uncertain_event(mail, external.address, outcomes[0].reply)) if unanswered else events


def _new_message_ids(
    external: External, mail: QueuedMail, outcomes: Sequence[RecipientResult]
) -> tuple[tuple[str, int, int, int], ...]:
    addresses = {waiting.address.lower() for waiting in mail.recipients} | {external.address.lower()}
    message_ids = {
        provider_ids.sent_key(message_id)
        for outcome in outcomes
        if outcome.state == "relayed"
        for message_id in (
            *provider_message_ids(outcome.reply, addresses),
            *provider_ids.reply_tokens(outcome.reply),
        )
    }
    return tuple((message_id, mail.external_id, mail.author_id, mail.id) for message_id in sorted(message_ids))


def _statuses(
    external: External, mail: QueuedMail, outcomes: Sequence[RecipientResult], state: Literal["failed", "relayed"]
) -> tuple[RecipientStatus, ...]:
    """Return the recipients in this state that the author wants a notice about."""
    recipients = {waiting.position: waiting for waiting in mail.recipients}
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
    connection: Connection, batch: Sequence[ResultRecord], owner: str, marks: Sequence[Mark], seconds: float
) -> tuple[list[PostCommit | None], Callable[[Mark], MarkOutcome]]:
    """Write the results of tries, and mark the mails whose final dot is about to be sent.

    One statement suffices if no record ``needs_statements``.

    :param marks: mails to mark. :param seconds: lease of the marked mails. :return: for each record the announcements,
        None if its claim was lost and nothing was changed; and a function that gives the outcome of each mark.
    """
    recorded = await relay_queue.record_results(
        connection,
        owner,
        [record.result for record in batch],
        [event for record in batch for event in record.events],
        marks,
        seconds,
    )
    message_ids = [row for record in batch if record.mail.id in recorded.held for row in record.message_ids]
    if message_ids:
        await sent_mail.add_sent(connection, message_ids)
    filings = [row for record in batch if record.mail.id in recorded.held for row in record.filings]
    if filings:
        await provider_filings.add_filings(connection, filings)
    await relay_usage.add_uses(
        connection, [record.use for record in batch if record.use is not None and record.mail.id in recorded.held]
    )
    afters: list[PostCommit | None] = []
    for record in batch:
        age = recorded.held.get(record.mail.id)
        if age is None:
            afters.append(None)
            continue
        accepted = any(outcome.state == "relayed" for outcome in record.result.outcomes)
        after = PostCommit(record.events, relayed_ages=(age,) if accepted else ())
        after += await _notify(connection, record.mail, "failed", record.failed)
        after += await _notify(connection, record.mail, "relayed", record.relayed)
        afters.append(after)
    return afters, recorded.outcome


async def recover_orphans(
    connection: Connection, ids: Collection[int], dead_owners: Collection[str] = ()
) -> PostCommit:
    """Recover those of these claims that have expired or belong to dead senders.

    Mail that was not sent is queued again. Mail that was sent without a reply is queued once more and marked uncertain;
    the second time it fails, and the author is notified. Each of these mails may have crashed its sender, so it is
    checked alone before it may be claimed again (``poison_check``).

    :param dead_owners: senders that have provably ended although their claims have not expired.
    """
    orphans = await relay_orphans.lock_orphaned_claims(connection, ids, dead_owners)
    if orphans:
        await poison.add_suspects(connection, relay_queue.STAGE, [mail.id for mail, _ in orphans])
    unsent = [mail.id for mail, unanswered in orphans if not unanswered]
    if unsent:
        await relay_queue.release_claims(connection, unsent)
    after = PostCommit()
    for mail, unanswered in orphans:
        if unanswered:
            await relay_orphans.send_again(connection, mail.id)
            if mail.relay is not None:
                await relay_usage.add_uses(connection, [Use(mail.external_id, mail.relay, len(mail.recipients))])
            event = _uncertain_event(mail, None, "the sender ended before the provider's reply came")
            await maillog.record_events(connection, [event])
            after += PostCommit((event,))
            if mail.uncertain:
                statuses = [
                    RecipientStatus(w.address, NO_ANSWER, DUPLICATE_UNKNOWN, dsn_params=w.dsn_params)
                    for w in mail.recipients
                ]
                after += await _fail_mail(connection, mail, statuses)
    return after


async def expire_mails(connection: Connection, ids: Collection[int]) -> PostCommit:
    """Fail those of these mails that are older than five days, and notify the authors."""
    after = PostCommit()
    mails = await relay_notices.lock_expired(connection, retry_policy.EXPIRY, ids)
    problems = await _load_problems(connection, mails)
    for mail in mails:
        problem = problems.get(mail.external_id)
        statuses = [
            RecipientStatus(
                w.address,
                EXPIRED,
                f"not delivered within five days; {_last_problem(w.reply, problem)}",
                dsn_params=w.dsn_params,
            )
            for w in mail.recipients
        ]
        after += await _fail_mail(connection, mail, statuses)
    return after


async def _fail_mail(connection: Connection, mail: QueuedMail, statuses: Sequence[RecipientStatus]) -> PostCommit:
    """Fail a queued mail without another try, and notify its author. statuses: one for each of its recipients."""
    await relay_notices.expire(
        connection,
        mail.id,
        [
            RecipientResult(w.position, "failed", status.reply)
            for w, status in zip(mail.recipients, statuses, strict=True)
        ],
    )
    events = [MailEvent("failed", submission_id=mail.id, who=status.address, reply=status.reply) for status in statuses]
    await maillog.record_events(connection, events)
    return PostCommit(tuple(events)) + await _notify(connection, mail, "failed", statuses)


async def notify_delays(connection: Connection, ids: Collection[int]) -> PostCommit:
    """Notify the authors of those of these mails that are delayed: after four hours, then daily."""
    after = PostCommit()
    mails = await relay_notices.claim_delayed(connection, retry_policy.FIRST_NOTICE, retry_policy.NEXT_NOTICE, ids)
    problems = await _load_problems(connection, mails)
    for mail in mails:
        problem = problems.get(mail.external_id)
        statuses = [
            RecipientStatus(
                w.address, _status(w.reply or "", "4.4.1"), _last_problem(w.reply, problem), dsn_params=w.dsn_params
            )
            for w in mail.recipients
        ]
        after += await _notify(connection, mail, "delayed", statuses)
    return after


async def notify_cancelled(connection: Connection, ids: Collection[int]) -> PostCommit:
    """Notify the authors of those of these mails that an administrator cancelled."""
    after = PostCommit()
    for mail, reason in await relay_notices.claim_cancelled(connection, ids):
        statuses = [RecipientStatus(w.address, CANCELLED, reason, dsn_params=w.dsn_params) for w in mail.recipients]
        after += await _notify(connection, mail, "failed", statuses)
    return after


async def notify_deliveries(
    connection: Connection, recipients_by_id: Mapping[int, Sequence[EnvelopeRecipient]]
) -> PostCommit:
    """Notify authors that their mail was delivered to local accounts, where they requested that (RFC 3461).

    :param recipients_by_id: local recipients by id of the submission.
    """
    requested = {
        submission_id: [RecipientStatus(r.address, DELIVERED, "delivered", dsn_params=r.dsn_params) for r in recipients]
        for submission_id, recipients in recipients_by_id.items()
        if any(dsn_options.is_notice_wanted(r.dsn_params, "delivered") for r in recipients)
    }
    after = PostCommit()
    if requested:
        for mail in await relay_queue.load_queued_mails(connection, list(requested)):
            after += await _notify(connection, mail, "delivered", requested[mail.id])
    return after


async def _load_problems(connection: Connection, mails: Sequence[QueuedMail]) -> dict[int, str | None]:
    """Load the last error of each account of these mails, by account id."""
    if not mails:
        return {}
    states = await relays.load_status(connection, {mail.external_id for mail in mails})
    return {external_id: _problem_of(found) for external_id, found in states.items()}


def _problem_of(found: Sequence[RelayStatus]) -> str | None:
    """Return the last errors of an account's relays, with their hosts if there are several."""
    if len(found) == 1:
        return found[0].last_error
    return "; ".join(f"{state.host}: {state.last_error}" for state in found if state.last_error) or None


_REASONS: dict[dsn_options.Action, str] = {
    "failed": "a notice that a mail failed",
    "delayed": "a notice that a mail is delayed",
    "delivered": "a notice that a mail was delivered",
    "relayed": "a notice that a mail was handed on",
}


async def _notify(
    connection: Connection, mail: QueuedMail, action: dsn_options.Action, statuses: Sequence[RecipientStatus]
) -> PostCommit:
    """Write a notice into the author's mailbox, about the recipients that its NOTIFY parameters allow (RFC 3461).

    None for mail with a null reverse-path (RFC 5321 4.5.5), so that no notice follows a notice, and none for an author
    whose account was removed.
    """
    statuses = [status for status in statuses if dsn_options.is_notice_wanted(status.dsn_params, action)]
    if not statuses or not mail.envelope_from:
        return PostCommit()
    author = await accounts.load_locals(connection, [mail.author_id])
    if not author:
        return PostCommit()
    notice = await _compose(connection, mail, action, statuses, author[0].language)
    [blob_id] = await blobs.store_blobs(connection, [Content.from_bytes(notice.body)])
    reason = _REASONS[action]
    [inbound_id] = await inbound.add_inbound(
        connection,
        [
            Arrival(
                "notice",
                blob_id,
                message_id=notice.message_id,
                submission_id=mail.id,
                recipients=((mail.author_id, reason),),
            )
        ],
    )
    event = MailEvent("noticed", inbound_id=inbound_id, submission_id=mail.id, who=mail.author_address, reply=reason)
    await maillog.record_events(connection, [event])
    return PostCommit((event,), tuple(publications.routed([(inbound_id, [mail.author_address])])))


async def compose_dry_run(connection: Connection, mail: QueuedMail) -> None:
    """Compose the notice that the author would get if the mail failed, and drop it: a test for a poison message."""
    statuses = [
        RecipientStatus(w.address, EXPIRED, _last_problem(w.reply, None), dsn_params=w.dsn_params)
        for w in mail.recipients
    ]
    await _compose(connection, mail, "failed", statuses)


async def _compose(
    connection: Connection,
    mail: QueuedMail,
    action: dsn_options.Action,
    statuses: Sequence[RecipientStatus],
    language: str | None = None,
) -> Notice:
    now = datetime.datetime.now(datetime.UTC)
    head = (await blobs.heads(connection, [mail.blob_id])).get(mail.blob_id, b"")
    submitted_at = mail.submitted_at.astimezone(datetime.UTC)
    # For a mail that is larger than its head, only the header is returned: a notice of 50 MB helps nobody.
    full_message = (
        head
        if action == "failed" and dsn_options.is_whole_wanted(mail.dsn_params) and len(head) == mail.octets
        else None
    )
    original = Original(
        mail.author_address,
        head[: headers.header_end(head)],
        submitted_at,
        full_message,
        dsn_options.envelope_id(mail.dsn_params),
    )
    return dsn_report.build_report(action, original, statuses, now, language)


def _uncertain_event(mail: QueuedMail, external: str | None, reason: str) -> MailEvent:
    return MailEvent(
        "uncertain",
        submission_id=mail.id,
        external=external,
        who=", ".join(waiting.address for waiting in mail.recipients)[:1000],
        reply=reason,
    )


def _status(reply: str, otherwise: str = "5.0.0") -> str:
    code, _, text = reply.partition(" ")
    return Reply(int(code), text).status if code.isascii() and code.isdigit() else otherwise


def _last_problem(reply: str | None, problem: str | None) -> str:
    if reply or problem:
        return f"the last problem was: {reply or problem}"
    return "the provider's mail server was never tried"
