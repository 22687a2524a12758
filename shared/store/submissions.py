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
from shared.store import accounts, blobs, maillog, poison, relay_status, sent_mail


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
    password_hash: str | None = None  # of the login that submitted it; None: do not check
    event: maillog.MailEvent | None = None  # for its history
    dsn_params: str | None = None  # requested notifications (shared/mime/dsn_options.py)


# One statement with one part for each table. As a transaction of five inserts in a pipeline it needs two more round
# trips, and for a single mail twice the processor time. The parts that write see the rows of ``new`` and not each
# other's; foreign keys are checked at the end of the statement.
_RECORD = f"""
    with
    -- The given submissions whose login is still valid, with their new ids.
    new as materialized (
        select place, nextval('mail_ids') as id, nextval(pg_get_serial_sequence('blobs', 'id')) as blob_id,
               given.author_id, given.external_id, octets, sha256, head, envelope_from, message_id, body_8bit, smtputf8,
               dsn_params, recipients, traced, traced_external, traced_who, traced_reply
        from rows from (
            json_to_recordset(%s) as (
                author_id bigint, external_id bigint, octets bigint, envelope_from text, message_id text,
                body_8bit bool, smtputf8 bool, dsn_params text, recipients json, password_hash text,
                traced bool, traced_external text, traced_who text, traced_reply text),
            unnest(%b::bytea[]), unnest(%b::bytea[])
        ) with ordinality as given (
            author_id, external_id, octets, envelope_from, message_id, body_8bit, smtputf8, dsn_params, recipients,
            password_hash, traced, traced_external, traced_who, traced_reply, sha256, head, place)
        where password_hash is null
            or {accounts.LOGIN_IS_VALID.format(id="given.author_id", password_hash="given.password_hash")}),
    -- Their bytes.
    new_blobs as ({blobs.FROM_NEW}),
    -- The submissions themselves.
    new_submissions as (
        insert into submissions
            (id, author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8, dsn_params, state)
        select id, author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8, dsn_params,
            'submitted'
        from new),
    -- Their recipients.
    new_recipients as (
        insert into submission_recipients (submission_id, position, address, kind, target_id, dsn_params)
        select new.id, r.position - 1, r.address, r.kind, r.target_id, r.dsn_params
        from new, rows from (json_to_recordset(new.recipients)
                as (address text, kind text, target_id bigint, dsn_params text))
            with ordinality as r (address, kind, target_id, dsn_params, position)),
    -- The authors of their Message-IDs.
    new_authors as ({sent_mail.FROM_NEW}),
    -- Their events.
    new_events as ({maillog.SUBMITTED_FROM_NEW})
    select place, id, blob_id from new"""


async def record_submissions(connection: Connection, submissions: Sequence[Submission]) -> list[int | None]:
    """Store bytes, envelopes, authors and events; each submission is then ``submitted``. :return: their ids, in order.

    None in place of an id: nothing is stored, because the author was disabled or removed, or has another password. The
    author of a Message-ID is recorded here, before the mail can leave, so that no answer arrives earlier. A known
    Message-ID keeps its first author. If every mail ``fits_one_statement``, this is one statement; otherwise it needs a
    transaction.
    """
    if not submissions:
        return []
    contents = [submission.content for submission in submissions]
    cursor = await connection.execute(
        _RECORD,
        (
            json.dumps([_given(submission) for submission in submissions]),
            [content.sha256 for content in contents],
            [blobs.head(content) for content in contents],
        ),
    )
    stored = {int(row[0]) - 1: (int(row[1]), int(row[2])) for row in await cursor.fetchall()}
    await blobs.store_chunks(
        connection, [blob_id for _, blob_id in stored.values()], [contents[place] for place in stored]
    )
    return [stored[place][0] if place in stored else None for place in range(len(submissions))]


def fits_one_statement(submission: Submission) -> bool:
    """Return whether one statement of ``record_submissions`` stores the whole submission."""
    return blobs.is_whole(submission.content)


def _given(submission: Submission) -> dict[str, object]:
    """Return the submission as ``_RECORD`` reads it, without the bytes."""
    event = submission.event
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
        ],
        "password_hash": submission.password_hash,
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
    await relay_status.ensure_rows(connection, ids)


async def find_duplicates(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Find the submissions that their author submitted before, with the same bytes and a common recipient: a client
    that got no answer tries again. :return: each with the id of the other one.

    Their commits may be in another order than their ids, so one that was handed over already counts too. The clock may
    have been set between them, so their times are not compared.
    """
    cursor = await connection.execute(
        """select s.id, max(e.id) from submissions s join blobs m on m.id = s.blob_id
               join submissions e on e.message_id = s.message_id and e.author_id = s.author_id
                   and (e.id < s.id or e.state <> 'submitted' and e.id <> all(%(ids)s::bigint[]))
               join blobs em on em.id = e.blob_id and em.sha256 = m.sha256
           where s.id = any(%(ids)s::bigint[]) and exists (
               select from submission_recipients r join submission_recipients er using (address)
               where r.submission_id = s.id and er.submission_id = e.id)
           group by s.id""",
        {"ids": array_literal(ids)},
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
    connection: Connection, submission_id: int, origin: str, traceback: str, failures: int = 1
) -> bool:
    """Count failures of ours on this submission and end its claim. :return: whether it is parked now."""
    cursor = await connection.execute(
        """update submissions set failures = failures + %s, error = %s, origin = %s, state_at = now(),
               claim_owner = null, claim_expires = null, next_try_at = now() + interval '1 minute',
               uncertain = uncertain or state = 'sent_unanswered',
               state = case when failures + %s >= %s then 'parked' when state = 'submitted' then 'submitted'
                            else 'queued' end
           where id = %s and state in ('submitted', 'queued', 'claimed', 'sent_unanswered') returning state""",
        (failures, storable(traceback), origin, failures, MAX_FAILURES, submission_id),
    )
    row = await cursor.fetchone()
    return row is not None and row[0] == "parked"
