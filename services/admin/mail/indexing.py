"""Indexing of new mail for the console: search terms, mails to everyone, their answers, unknown names.

The service admin indexes some dozen mails at a time, after they are delivered; the path of a mail never waits for it.

Outsiders write the headers, so a batch is limited by its octets, by the time to read them, and by the time of its
transaction. What was read in time is committed, so the index always moves on. A batch that fails is halved, down to the
mail at fault. That mail is recorded as not indexed, and skipped.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from services.admin.mail import answer_notices, header_summary, search_index, unknown_names
from services.admin.mail.answer_notices import Answered, AnswerNotice
from services.admin.mail.search_index import NewMail, ReadMail
from shared import routing
from shared.db.database import Connection, Database
from shared.languages.translation import SOURCE
from shared.model import External, Local
from shared.store import accounts, inbound, submissions_admin

BATCH = 64
"""Mails that are indexed in one transaction, at most; their heads are 2 MiB together."""
READ_SECONDS = 1.0
"""Time after which no further header of a batch is read: seconds; a header takes a few milliseconds."""
BATCH_SECONDS = 20.0
"""Time limit of the transaction of a batch: seconds; a batch that takes longer is halved."""
MAX_TRIES = 3
"""Failures of a mail that is indexed alone, after which it is skipped."""
MAX_NOTICE_AGE = datetime.timedelta(days=1)
"""Largest age of an answer for which sharers get a note: a rebuild of the index sends no notes about old mail."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class IndexedBatch:
    """The result of one pass."""

    mails: int = 0
    notes: tuple[AnswerNotice, ...] = ()
    """Notices of answers; the caller announces them after the commit."""


class SearchIndexer:
    """Indexes batches, one after the other, and halves those that fail."""

    def __init__(self, database: Database, language: str = SOURCE) -> None:
        """:param language: of notices to people who have chosen none."""
        self._database = database
        self._language = language
        self._size = BATCH
        self._failures = 0  # of the next mail, alone

    async def index_next(self) -> IndexedBatch:
        """Index and commit the next batch. :raises Temporary: the database is unavailable, or too slow for the batch.
        :raises Exception: a mail of the batch is at fault; the next batch is smaller, or skips the mail."""
        try:
            async with self._database.transaction(BATCH_SECONDS) as connection:
                batch = await index_next(connection, self._size, self._language)
        except Exception as error:
            if await self._database.ready():
                await self._isolate(error)
            raise
        self._size, self._failures = min(BATCH, self._size * 2), 0
        return batch

    async def _isolate(self, error: Exception) -> None:
        """Halve the next batch; skip its mail if it is one mail that has failed often."""
        if self._size > 1:
            self._size //= 2
            return
        self._failures += 1
        if self._failures < MAX_TRIES:
            return
        async with self._database.transaction(BATCH_SECONDS) as connection:
            last_id = await search_index.lock_progress(connection)
            mails = [] if last_id is None else await search_index.load_new_mails(connection, last_id, 1)
            origins = await inbound.load_origins(connection, [mail.id for mail in mails])
            for mail in mails:
                await search_index.write_unread(connection, mail)
                await search_index.save_progress(connection, mail.id)
        self._failures = 0
        lines = [{"id": mail.id, "trace_id": origins.get(mail.id, mail.id)} for mail in mails]
        log.error("mail not indexed", error=repr(error), lines=lines)


async def index_next(connection: Connection, size: int = BATCH, language: str = SOURCE) -> IndexedBatch:
    """Index the next mails in the caller's transaction; nothing if another process does it at the moment.

    :param size: limit of the batch: mails. :param language: of notices to people who have chosen none.
    """
    last_id = await search_index.lock_progress(connection)
    mails = [] if last_id is None else await search_index.load_new_mails(connection, last_id, size)
    if not mails:
        return IndexedBatch()
    used = {mail.external_id for mail in mails if mail.external_id is not None}
    externals = {external.id: external for external in await accounts.load_externals(connection, sorted(used))}
    sharers = await accounts.load_sharers(connection, list(externals))
    recipients = await submissions_admin.list_recipients(connection, [mail.id for mail in mails if mail.sent])
    read = await asyncio.to_thread(read_mails, mails, externals, sharers, recipients)
    await search_index.write_terms(connection, read)  # first: notices quote sender and subject from the index
    notes: list[AnswerNotice] = []
    for mail, summary, _, _, answers in read:
        if mail.sent and answers:
            answered = await search_index.mark_answered(connection, mail, answers)
            notes += await _notify_of_answer(connection, mail, summary, answered, language)
        elif not mail.sent and mail.external_id in externals and mail.rule == 5 and mail.message_id:
            await search_index.add_shared_mail(connection, mail)
    await unknown_names.count_names(connection, read)
    await search_index.save_progress(connection, read[-1].mail.id)
    return IndexedBatch(len(read), tuple(notes))


def read_mails(
    mails: Sequence[NewMail],
    externals: Mapping[int, External],
    sharers: Mapping[int, Sequence[Local]],
    recipients: Mapping[int, Sequence[str]],
) -> list[ReadMail]:
    """Read the headers of these mails in order, until ``READ_SECONDS`` have passed, but at least one.

    :param recipients: the addresses of the envelope of each submission: Bcc is not in the header.

    It runs in a thread, so the event loop is not blocked.
    """
    until = time.monotonic() + READ_SECONDS
    read: list[ReadMail] = []
    for mail in mails:
        external = None if mail.sent or mail.external_id is None else externals.get(mail.external_id)
        summary = header_summary.read_summary(mail.head)
        names: list[str] = []
        if external is not None:
            names = routing.unknown_names(routing.read_facts(mail.head, external), sharers[external.id])
        ids = [mail.message_id] if mail.message_id else []
        terms = search_index.index_terms(summary, ids, recipients.get(mail.id, ()))
        read.append(ReadMail(mail, summary, terms, names, routing.answered_ids(mail.head) if mail.sent else []))
        if time.monotonic() > until:
            break
    return read


async def _notify_of_answer(
    connection: Connection,
    answer: NewMail,
    summary: header_summary.HeaderSummary,
    answered: Sequence[int],
    language: str,
) -> list[AnswerNotice]:
    """Deliver a notice to all sharers except the author of the answer, if their external account is set so.

    :param answered: ids of mails to everyone. Several of one account have the same Message-ID: one notice is enough.
    """
    if answer.author_id is None or answer.at < datetime.datetime.now(datetime.UTC) - MAX_NOTICE_AGE:
        return []
    people = await accounts.load_locals(connection, [answer.author_id])
    notes: list[AnswerNotice] = []
    notified: set[int] = set()
    for shared_id in sorted(answered):
        external_id, message_id, sender, subject, at = await search_index.load_shared_mail(connection, shared_id)
        externals = await accounts.load_externals(connection, [external_id])
        if external_id in notified or not people or not externals or not externals[0].answer_notes:
            continue
        notified.add(external_id)
        sharers = await accounts.load_sharers(connection, [external_id])
        facts = Answered(externals[0].address, message_id, sender, subject, at, people[0], summary, answer.at)
        notes += await answer_notices.send_notice(connection, facts, sharers[external_id], language)
    return notes
