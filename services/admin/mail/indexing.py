"""Indexing of new mail for the console: search terms, mails to everyone, their answers, unknown names.

The service admin indexes some hundred mails at a time, after they are delivered; the path of a mail never waits for it.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.admin.mail import answer_notices, header_summary, search_index
from services.admin.mail.answer_notices import Answered, AnswerNotice
from services.admin.mail.search_index import NewMail
from shared import routing
from shared.db.database import Connection
from shared.model import External, Local
from shared.store import accounts

MAX_NOTICE_AGE = datetime.timedelta(days=1)
"""Age of an answer that the sharers are notified of, at most: building the index again notifies nobody of old mail."""


@dataclass(frozen=True, slots=True)
class IndexedBatch:
    """The result of one pass."""

    mails: int = 0
    notes: tuple[AnswerNotice, ...] = ()
    """Notices of answers; the caller announces them after the commit."""


class Indexer(Protocol):
    """Records one kind of fact about each new mail."""

    async def index(self, mail: NewMail) -> None:
        """Record what there is to record about this mail."""


async def index_next(connection: Connection) -> IndexedBatch:
    """Index the next mails in the caller's transaction; nothing if another process does it at the moment."""
    last_id = await search_index.lock_progress(connection)
    mails = [] if last_id is None else await search_index.load_new_mails(connection, last_id)
    if not mails:
        return IndexedBatch()
    externals = {external.id: external for external in await accounts.load_externals(connection)}
    used = {mail.external_id for mail in mails if mail.external_id is not None} & set(externals)
    sharers = await accounts.load_sharers(connection, list(used))
    notifier = AnswerNotifier(connection, externals)
    indexers: tuple[Indexer, ...] = (
        AnswerIndexer(connection, notifier.notify),
        UnknownNameIndexer(connection, externals, sharers),
        SharedMailIndexer(connection, externals),
    )
    await search_index.write_terms(connection, mails)  # first: notices quote sender and subject from the index
    for mail in mails:
        for indexer in indexers:
            await indexer.index(mail)
    await search_index.save_progress(connection, mails[-1].id)
    return IndexedBatch(len(mails), tuple(notifier.notices))


class AnswerIndexer:
    """Finds the mails to everyone that a submission is the first answer to."""

    def __init__(self, connection: Connection, on_answer: Callable[[int, NewMail], Awaitable[None]]) -> None:
        """:param on_answer: called with the id of the mail to everyone and its answer."""
        self._connection = connection
        self._on_answer = on_answer

    async def index(self, mail: NewMail) -> None:
        """Mark the mails that this submission answers (In-Reply-To, and the last one of References)."""
        if not mail.sent:
            return
        facts = routing.read_facts(mail.head)
        message_ids = list(dict.fromkeys((*facts.in_reply_to, *facts.references[-1:])))
        if not message_ids:
            return
        for shared_id in await search_index.mark_answered(self._connection, mail, message_ids):
            await self._on_answer(shared_id, mail)


class AnswerNotifier:
    """Notifies the other sharers of an answer, if their external account is set so."""

    def __init__(self, connection: Connection, externals: Mapping[int, External]) -> None:
        self.notices: list[AnswerNotice] = []
        self._connection = connection
        self._externals = externals

    async def notify(self, shared_id: int, answer: NewMail) -> None:
        """Deliver a notice to all sharers except the author of the answer."""
        if answer.author_id is None or answer.at < datetime.datetime.now(datetime.UTC) - MAX_NOTICE_AGE:
            return
        external_id, message_id, sender, subject, at = await search_index.load_shared_mail(self._connection, shared_id)
        external = self._externals.get(external_id)
        people = await accounts.load_locals(self._connection, [answer.author_id])
        if external is None or not external.answer_notes or not people:
            return
        sharers = await accounts.load_sharers(self._connection, [external_id])
        answered = Answered(
            external.address,
            message_id,
            sender,
            subject,
            at,
            people[0],
            header_summary.read_summary(answer.head),
            answer.at,
        )
        self.notices += await answer_notices.send_notice(self._connection, answered, sharers[external_id])


class UnknownNameIndexer:
    """Counts names that mails are addressed to and that no sharer has."""

    def __init__(
        self, connection: Connection, externals: Mapping[int, External], sharers: Mapping[int, list[Local]]
    ) -> None:
        self._connection = connection
        self._externals = externals
        self._sharers = sharers

    async def index(self, mail: NewMail) -> None:
        """Count the unknown names of a mail that arrived for an external account."""
        external = None if mail.sent or mail.external_id is None else self._externals.get(mail.external_id)
        if external is None:
            return
        for name in routing.unknown_names(routing.read_facts(mail.head), external, self._sharers[external.id]):
            await search_index.count_unknown_name(self._connection, mail, external.id, name)


class SharedMailIndexer:
    """Records the mails that went to everyone who shares their external account (rule 5)."""

    def __init__(self, connection: Connection, externals: Mapping[int, External]) -> None:
        self._connection = connection
        self._externals = externals

    async def index(self, mail: NewMail) -> None:
        """Record the mail, so that its answer can be found by its Message-ID."""
        if not mail.sent and mail.external_id in self._externals and mail.rule == 5 and mail.message_id:
            await search_index.add_shared_mail(self._connection, mail)
