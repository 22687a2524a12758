"""Submissions of local accounts: their record, and their way to the sender.

It owns the tables submissions and submission_recipients together with shared/store/relay_queue.py (the queue to the
providers) and shared/store/submissions_admin.py (the operator). Times are by the database's clock. Addresses are stored
as written and compared in lower case.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from shared.db.arrays import array_literal
from shared.db.database import Connection, storable
from shared.errors import MAX_FAILURES
from shared.model import Content, EnvelopeRecipient
from shared.store import accounts, blobs, folder_edits, maillog, poison, sent_mail

MAX_REASON = 1000
"""Longest reason in a notice about refused recipients: characters; each has its own in its row."""


REPEATED_LIMIT = 20
"""Submissions with the same author and Message-ID that one is compared with, before it and after it."""


@dataclass(frozen=True, slots=True)
class RefusedRecipient:
    """A recipient that was accepted at RCPT and has no account any more. Its author gets a failure notice."""

    address: str
    reply: str  # the reason
    dsn_params: str | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """A mail as submitted by a mail client."""

    author_id: int
    external_id: int
    content: Content
    envelope_from: str  # '' for <>
    message_id: str  # Message-ID without its brackets
    body_8bit: bool
    smtputf8: bool
    recipients: tuple[EnvelopeRecipient, ...]
    password_hash: str | None = None  # of the login that submitted it; None: check no account
    event: maillog.MailEvent | None = None  # for its history
    dsn_params: str | None = None  # requested notifications (shared/mime/dsn_options.py)
    accounts_version: str = ""  # of the accounts by which the envelope was checked
    refused: tuple[RefusedRecipient, ...] = ()


# One statement with one part for each table. As a transaction of five inserts in a pipeline it needs two more round
# trips, and for a single mail twice the processor time. The parts that write see the rows of ``new`` and not each
# other's; foreign keys are checked at the end of the statement.
_RECORD = f"""
    with
    -- Authors and local recipients that are enabled. They stay so until the commit.
    people as materialized ({accounts.LOCK_ENABLED}),
    -- The folder Sent of the authors that nobody else changes now.
    sent as materialized ({folder_edits.LOCK_SENT}),
    given as (
        select * from rows from (
            json_to_recordset(%s) as (
                author_id bigint, external_id bigint, octets bigint, envelope_from text, message_id text,
                body_8bit bool, smtputf8 bool, dsn_params text, recipients json, local_ids bigint[],
                password_hash text, accounts_version text, cancelled text,
                traced bool, traced_external text, traced_who text, traced_reply text),
            unnest(%b::bytea[]), unnest(%b::bytea[])
        ) with ordinality as given (
            author_id, external_id, octets, envelope_from, message_id, body_8bit, smtputf8, dsn_params, recipients,
            local_ids, password_hash, accounts_version, cancelled, traced, traced_external, traced_who, traced_reply,
            sha256, head, place)),
    -- The given submissions whose envelope was checked by the accounts as they are, with their new ids.
    new as materialized (
        select given.*, nextval('mail_ids') as id, nextval(pg_get_serial_sequence('blobs', 'id')) as blob_id
        from given left join people on people.id = author_id
        where (given.envelope_from = '' or author_id in (select local_id from sent))
            and (given.password_hash is null
                or given.password_hash = people.password_hash and given.external_id = people.external_id
                    and given.accounts_version = (select version::text from accounts_version)
                    and given.local_ids <@ array(select id from people))),
    -- Their bytes.
    new_blobs as ({blobs.FROM_NEW}),
    -- The submissions themselves.
    new_submissions as (
        insert into submissions (id, author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8,
            dsn_params, cancelled, state)
        select id, author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8, dsn_params,
            cancelled, 'submitted'
        from new),
    -- Their recipients. Only a refused one has a state.
    new_recipients as (
        insert into submission_recipients
            (submission_id, position, address, kind, target_id, dsn_params, state, reply, settled_at)
        select new.id, r.position - 1, r.address, r.kind, r.target_id, r.dsn_params, coalesce(r.state, 'waiting'),
            r.reply, case when r.state is not null then now() end
        from new, rows from (json_to_recordset(new.recipients)
                as (address text, kind text, target_id bigint, dsn_params text, state text, reply text))
            with ordinality as r (address, kind, target_id, dsn_params, state, reply, position)),
    -- The authors of their Message-IDs.
    new_authors as ({sent_mail.FROM_NEW}),
    -- A copy of each in its author's folder Sent.
    {folder_edits.FILE_NEW},
    -- Their events.
    new_events as ({maillog.SUBMITTED_FROM_NEW})
    select place, id, blob_id from new"""


async def record_submissions(connection: Connection, submissions: Sequence[Submission]) -> list[int | None]:
    """Store bytes, envelopes, authors, events, and a copy in Sent; each submission is then ``submitted``.

    :return: their ids, in order. None in place of an id: nothing is stored, because the accounts have changed since the
        envelope was checked, or the author, a local recipient, or the folder Sent is being changed now.

    The author and the local recipients are locked until the commit, so what was checked is still true then. An external
    account with an enabled sharer cannot be removed.

    The author of a Message-ID is recorded here, before the mail can leave, so that no answer arrives earlier. A known
    Message-ID keeps its first author. If every mail ``fits_one_statement``, this is one statement; otherwise it needs a
    transaction.
    """
    if not submissions:
        return []
    contents = [submission.content for submission in submissions]
    people = {local_id for submission in submissions for local_id in (submission.author_id, *_local_ids(submission))}
    cursor = await connection.execute(
        _RECORD,
        (
            array_literal(people),
            array_literal({submission.author_id for submission in submissions if submission.envelope_from}),
            json.dumps([_given(submission) for submission in submissions]),
            [content.sha256 for content in contents],
            [blobs.head(content) for content in contents],
        ),
    )
    stored = {int(row[0]) - 1: (int(row[1]), int(row[2])) for row in await cursor.fetchall()}
    await blobs.store_chunks(
        connection, [blob_id for _, blob_id in stored.values()], [contents[place] for place in stored]
    )
    await maillog.record_events(
        connection,
        [event for place, (stored_id, _) in stored.items() for event in refusal_events(submissions[place], stored_id)],
    )
    return [stored[place][0] if place in stored else None for place in range(len(submissions))]


def fits_one_statement(submission: Submission) -> bool:
    """Return whether one statement of ``record_submissions`` stores the whole submission."""
    return blobs.is_whole(submission.content) and not submission.refused


def refusal_events(submission: Submission, submission_id: int) -> list[maillog.MailEvent]:
    """Return the events of the refused recipients of a stored submission."""
    return [
        maillog.MailEvent("cancelled", submission_id=submission_id, who=refused.address, reply=refused.reply)
        for refused in submission.refused
    ]


def _local_ids(submission: Submission) -> list[int]:
    """Return the local accounts that the mail is delivered to."""
    return [r.target_id for r in submission.recipients if r.kind == "local" and r.target_id is not None]


def _given(submission: Submission) -> dict[str, object]:
    """Return the submission as ``_RECORD`` reads it, without the bytes."""
    event = submission.event
    reasons = "; ".join(dict.fromkeys(refused.reply for refused in submission.refused))
    return {
        "author_id": submission.author_id,
        "external_id": submission.external_id,
        "octets": submission.content.octets,
        "envelope_from": submission.envelope_from,
        "message_id": submission.message_id,
        "body_8bit": submission.body_8bit,
        "smtputf8": submission.smtputf8,
        "dsn_params": submission.dsn_params,
        "recipients": [
            {
                "address": recipient.address,
                "kind": recipient.kind,
                "target_id": recipient.target_id,
                "dsn_params": recipient.dsn_params,
            }
            for recipient in submission.recipients
        ]
        + [
            # ``local`` is never relayed, also if the operator sends the mail again.
            {
                "address": refused.address,
                "kind": "local",
                "dsn_params": refused.dsn_params,
                "state": "cancelled",
                "reply": refused.reply,
            }
            for refused in submission.refused
        ],
        "local_ids": _local_ids(submission),
        "password_hash": submission.password_hash,
        "accounts_version": submission.accounts_version,
        "cancelled": reasons[:MAX_REASON] or None,
        "traced": event is not None,
        "traced_external": event and event.external and storable(event.external),
        "traced_who": event and event.who and storable(event.who),
        "traced_reply": event and event.reply and storable(event.reply),
    }


# ------------------------------------------------------------------------------------------------ for the sender


@dataclass(frozen=True, slots=True)
class OpenSubmission:
    """A locked submission in state ``submitted``, with the waiting recipients that are delivered inside."""

    id: int
    author_id: int
    external_id: int
    blob_id: int
    message_id: str
    inside_recipients: tuple[EnvelopeRecipient, ...]


async def load_submitted(connection: Connection, ids: Sequence[int]) -> list[OpenSubmission]:
    """Load and lock those of these submissions that are still ``submitted``."""
    cursor = await connection.execute(
        """select id, author_id, external_id, blob_id, message_id from submissions
           where id = any(%s) and state = 'submitted' order by id for update""",
        (list(ids),),
    )
    rows = await cursor.fetchall()
    cursor = await connection.execute(
        """select submission_id, address, kind, target_id, dsn_params from submission_recipients
           where submission_id = any(%s) and kind <> 'relay' and state = 'waiting' order by submission_id, position""",
        ([row[0] for row in rows],),
    )
    inside: dict[int, list[EnvelopeRecipient]] = {}
    for submission_id, address, kind, target_id, dsn_params in await cursor.fetchall():
        inside.setdefault(submission_id, []).append(EnvelopeRecipient(address, kind, target_id, dsn_params))
    return [OpenSubmission(*(*row, tuple(inside.get(row[0], ())))) for row in rows]


async def enqueue_for_relay(connection: Connection, ids: Sequence[int]) -> None:
    """Record that the recipients inside are delivered, and queue the mails that have recipients to relay."""
    await connection.execute(
        """update submission_recipients set state = 'delivered', settled_at = now()
           where submission_id = any(%s) and kind <> 'relay' and state = 'waiting'""",
        (list(ids),),
    )
    await connection.execute(
        """update submissions s set state_at = now(), next_try_at = now(), state = case when exists (
               select from submission_recipients r where r.submission_id = s.id and r.state = 'waiting')
               then 'queued' else 'done' end
           where id = any(%s) and state = 'submitted'""",
        (list(ids),),
    )


async def find_duplicates(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Find the submissions that their author submitted before, with the same bytes and a common recipient: a client
    that got no answer tries again. :return: each with the id of the other one.

    Their commits may be in another order than their ids, so one that was handed over already counts too. The clock may
    have been set between them, so their times are not compared. A script may give all its mails one Message-ID: the
    nearest REPEATED_LIMIT on each side are compared. Each comparison is a subquery for one row: no plan makes a join of
    whole tables of it.
    """
    cursor = await connection.execute(
        """select s.id, max(e.id) from submissions s join blobs m on m.id = s.blob_id
               cross join lateral (
                   (select id, blob_id from submissions before
                    where before.message_id = s.message_id and before.author_id = s.author_id and before.id < s.id
                    order by before.id desc limit %(limit)s)
                   union all
                   select id, blob_id from (
                       select id, blob_id, state from submissions later
                       where later.message_id = s.message_id and later.author_id = s.author_id and later.id > s.id
                       order by later.id limit %(limit)s) later
                   where state <> 'submitted' and id <> all(%(ids)s::bigint[])) e
           where s.id = any(%(ids)s::bigint[])
               and (select em.sha256 from blobs em where em.id = e.blob_id) = m.sha256
               and (select er.address from submission_recipients r join submission_recipients er using (address)
                    where r.submission_id = s.id and er.submission_id = e.id limit 1) is not null
           group by s.id""",
        {"ids": array_literal(ids), "limit": REPEATED_LIMIT},
    )
    return {int(row[0]): int(row[1]) for row in await cursor.fetchall()}


async def list_overdue(connection: Connection, grace: float, limit: int = 1000) -> list[tuple[int, str]]:
    """List the submissions that have waited longer than ``grace`` seconds: (id, address of the external account).

    The sweep is recorded; the next sweep returns them only after another ``grace`` seconds.
    """
    cursor = await connection.execute(
        f"""with late as (
               select id from submissions
               where state = 'submitted' and state_at < now() - make_interval(secs => %(grace)s)
                 and (swept_at is null or swept_at < now() - make_interval(secs => %(grace)s) or swept_at > now())
                 and {poison.NOT_POISON.format(id="id", stage="sender")}
               order by id limit %(limit)s for update skip locked)
           update submissions s set swept_at = now() from late, external_accounts e
           where s.id = late.id and e.id = s.external_id returning s.id, e.address""",
        {"grace": grace, "limit": limit},
    )
    return sorted((int(row[0]), str(row[1])) for row in await cursor.fetchall())


async def count_failure(
    connection: Connection,
    submission_id: int,
    origin: str,
    traceback: str,
    failures: int = 1,
    *,
    owner: str | None = None,
) -> bool:
    """Count failures of ours on this submission and end its claim. :return: whether it is parked now.

    :param owner: of the claim, None if the caller has not claimed it. Nothing is changed while another owner has it.
    """
    cursor = await connection.execute(
        """update submissions set failures = failures + %s, error = %s, origin = %s, state_at = now(),
               claim_owner = null, claim_expires = null, next_try_at = now() + interval '1 minute',
               uncertain = uncertain or state = 'sent_unanswered',
               state = case when failures + %s >= %s then 'parked' when state = 'submitted' then 'submitted'
                            else 'queued' end
           where id = %s and state in ('submitted', 'queued', 'claimed', 'sent_unanswered')
               and claim_owner is not distinct from %s::text
           returning state""",
        (failures, storable(traceback), origin, failures, MAX_FAILURES, submission_id, owner),
    )
    row = await cursor.fetchone()
    return row is not None and row[0] == "parked"
