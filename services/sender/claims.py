"""The claims of this process: marks and results of claimed mails, many in one commit.

A mail needs two commits: one before its final dot, one after the provider's reply. One writer commits those of all
lanes together (shared/db/group_commit.py).
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Callable, Collection, Sequence

import structlog

from services.sender import outcomes
from services.sender.outcomes import PostCommit, ResultRecord
from services.sender.smtp_transaction import DeliveryResult
from shared.db.database import Connection, Database
from shared.db.group_commit import GroupCommit
from shared.errors import MAX_FAILURES, Temporary
from shared.model import External
from shared.store import maillog, relay_queue, submissions
from shared.store.relay_queue import Claimed, ClaimRequest, Mark, MarkOutcome, QueuedMail

CLAIM_SECONDS = 45.0
"""Limits a claim that is not renewed: seconds; long enough for a sender that is suspended or has lost its network. The
claims of a sender that provably ended are taken over at once (``dead_owners``)."""
RECORD_SECONDS = 3.0
"""Limits how long a stopping service tries to record a result while the database is unavailable: seconds."""
RELEASE_SECONDS = 2.0
"""Limits the transaction that releases claims: seconds; short, as other senders take over unreleased claims anyway."""

log = structlog.get_logger()


class ClaimLost(Exception):
    """Another sender has claimed the mail: this process must not send it."""


class AccountChanged(Exception):
    """The external account was changed, disabled or removed since the claim: the mail must not leave as it is."""


class Claims:
    """Holds, marks and ends the claims of this process."""

    def __init__(self, database: Database, owner: str, announce: Callable[[PostCommit], None]) -> None:
        """:param owner: unique to this process. :param announce: called after each commit. Must not raise."""
        self.claimed_ids: set[int] = set()  # mails that this process has claimed
        self.stopping = False  # no longer wait without limit for the database
        self._database = database
        self._owner = owner
        self._announce = announce
        self._writer: GroupCommit[Mark | ResultRecord, MarkOutcome | PostCommit | None] = GroupCommit(
            database,
            self._write,
            self._committed,
            lambda _: 1,
            is_single_statement=lambda batch: not any(record.needs_statements for record in _to_record(batch)),
            gather=True,
        )

    async def run(self) -> None:
        """Commit marks and results until cancelled; cancel only after the last result is recorded."""
        await self._writer.run()

    async def claim(
        self, connection: Connection, external_id: int, busy_lanes: int, prefetch: int, prefetch_octets: int
    ) -> Claimed:
        """Claim due mails of an account, as ``relay_queue.claim``. After the commit add them to ``claimed_ids``."""
        request = ClaimRequest(
            external_id, self._owner, CLAIM_SECONDS, busy_lanes, prefetch, prefetch_octets, self.claimed_ids
        )
        return await relay_queue.claim(connection, request)

    async def renew_leases(self) -> None:
        """Renew all claims of this process."""
        if self.claimed_ids:
            async with self._database.transaction() as connection:
                await relay_queue.renew_lease(connection, self.claimed_ids, self._owner, CLAIM_SECONDS)

    async def mark_sending(self, mail: QueuedMail, account_version: int) -> None:
        """Commit the state that precedes the final dot: ``sent_unanswered``. If this raises, send no dot.

        :param account_version: of the external account as the mail was built for it.
        :raises ClaimLost: another sender has the mail. :raises AccountChanged: the mail must be built again, or wait.
        :raises Temporary: the database is unavailable.
        """
        match await self._writer.commit(Mark(mail.id, account_version)):
            case "lost":
                raise ClaimLost
            case "account changed":
                raise AccountChanged

    async def record_result(self, external: External, mail: QueuedMail, result: DeliveryResult) -> None:
        """Record what the provider replied; retry while the database is unavailable."""
        deadline: float | None = None
        while True:
            try:
                after = await self._writer.commit(ResultRecord.from_result(external, mail, result, random.random()))
                break
            except Temporary as error:
                log.warning("database unavailable, retrying to record result", submission_id=mail.id, error=str(error))
                if self.stopping and deadline is None:
                    deadline = time.monotonic() + RECORD_SECONDS
                if deadline is not None and time.monotonic() > deadline:
                    return
                await asyncio.sleep(0.5)
            except Exception as error:  # do not send again: the provider may have accepted the mail
                await self.count_failure(mail, error, MAX_FAILURES)
                return
        self.claimed_ids.discard(mail.id)
        if after is None:
            log.warning("claim lost, result not recorded", submission_id=mail.id)

    async def _write(
        self, connection: Connection, batch: Sequence[Mark | ResultRecord]
    ) -> list[MarkOutcome | PostCommit | None]:
        """Write results, then marks. Return the outcome of each mark, and for each result what follows from it."""
        afters, outcome_of = await outcomes.record_results(
            connection,
            _to_record(batch),
            self._owner,
            [item for item in batch if isinstance(item, Mark)],
            CLAIM_SECONDS,
        )
        next_after = iter(afters)
        return [next(next_after) if isinstance(item, ResultRecord) else outcome_of(item) for item in batch]

    def _committed(self, results: Sequence[MarkOutcome | PostCommit | None]) -> None:
        for result in results:
            if isinstance(result, PostCommit):
                self._announce(result)

    async def release(self, mails: Collection[QueuedMail]) -> None:
        """Release these claims; if the database is unavailable, they expire."""
        await self._release([mail.id for mail in mails])

    async def release_all(self) -> None:
        """Release all claims on mails that were not sent."""
        await self._release(sorted(self.claimed_ids))

    async def _release(self, ids: Sequence[int]) -> None:
        if not ids:
            return
        self.claimed_ids.difference_update(ids)
        try:
            async with self._database.transaction(RELEASE_SECONDS) as connection:
                await relay_queue.release_claims(connection, ids, self._owner)
        except Temporary as error:
            log.warning("database unavailable, claims not released", mails=len(ids), error=str(error))

    async def count_failure(self, mail: QueuedMail, error: Exception, failures: int = 1) -> None:
        """Count failures of this software at a mail, and end its claim; the fifth parks the mail."""
        trace = "".join(traceback.format_exception(error))
        log.error("relaying mail failed", submission_id=mail.id, error=repr(error), traceback=trace)
        self.claimed_ids.discard(mail.id)
        try:
            await self._count(mail.id, trace, failures)
        except Temporary as unavailable:
            log.warning("database unavailable, failure not counted", submission_id=mail.id, error=str(unavailable))

    async def count_failure_of_unclaimed(self, submission_id: int, error: Exception) -> None:
        """Count a failure at a mail that nobody has claimed. :raises Temporary: the database is unavailable."""
        trace = "".join(traceback.format_exception(error))
        log.error("handling mail failed", submission_id=submission_id, error=repr(error), traceback=trace)
        await self._count(submission_id, trace, 1)

    async def park(self, submission_id: int, reason: str) -> None:
        """Park a mail that nobody has claimed. :raises Temporary: the database is unavailable."""
        log.error("mail parked", submission_id=submission_id, error=reason)
        await self._count(submission_id, reason, MAX_FAILURES)

    async def _count(self, submission_id: int, trace: str, failures: int) -> None:
        async with self._database.transaction() as connection:
            parked = await submissions.count_failure(connection, submission_id, "sender: relay", trace, failures)
            events = [maillog.MailEvent("parked", submission_id=submission_id, reply="sender: relay")] if parked else []
            await maillog.record_events(connection, events)
        maillog.announce(events)


def _to_record(batch: Sequence[Mark | ResultRecord]) -> list[ResultRecord]:
    return [item for item in batch if isinstance(item, ResultRecord)]
