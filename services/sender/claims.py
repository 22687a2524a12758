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
from typing import Any

import structlog

from services.sender import outcomes
from services.sender.outcomes import PostCommit, ResultRecord
from services.sender.smtp_transaction import DeliveryResult
from shared.db.database import Connection, Database
from shared.db.errors import DatabaseCorrupted
from shared.db.group_commit import GroupCommit
from shared.errors import MAX_FAILURES, Temporary
from shared.model import External
from shared.store import maillog, poison, relay_queue, submissions
from shared.store.relay_queue import Claimed, ClaimRequest, Mark, MarkOutcome, QueuedMail

CLAIM_SECONDS = 45.0
"""Limits a claim that is not renewed: seconds; long enough for a sender that is suspended or has lost its network. The
claims of a sender that provably ended are taken over at once (``dead_owners``)."""
RECORD_AGAIN_SECONDS = 0.5
"""Pause between two tries to record a result: seconds; small beside the time after which a claim may be taken over."""
WRITE_SECONDS = 10.0
"""Limits a commit of marks and results: seconds; it takes milliseconds, unless another transaction has locked a row."""
RELEASE_SECONDS = 2.0
"""Limits the transaction that releases claims: seconds; short, as it is repeated until it succeeds."""

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
        self._unrecorded: dict[int, float] = {}  # mails whose results could not be recorded yet, since when
        self._last_write = time.monotonic()  # when this process last committed
        self._unreleased: set[int] = set()  # claims that could not be released yet; none of these mails was sent
        self._database = database
        self._owner = owner
        self._announce = announce
        self._writer = self._create_writer(gather=True)
        self._writer_of_failed = self._create_writer(max_items=1)  # a result that failed may be the cause: it is alone

    def _create_writer(self, **options: Any) -> GroupCommit[Mark | ResultRecord, MarkOutcome | PostCommit | None]:
        return GroupCommit(
            self._database,
            self._write,
            self._committed,
            lambda _: 1,
            is_single_statement=lambda batch: not any(record.needs_statements for record in _to_record(batch)),
            **options,
        )

    @property
    def is_recording_blocked(self) -> bool:
        """Whether results wait for the database, so that no other mail should be sent.

        It is not the database's fault where something else was committed since: then one result alone is the cause.
        """
        return bool(self._unrecorded) and self._last_write < max(self._unrecorded.values())

    async def run(self) -> None:
        """Commit marks and results until cancelled; cancel only after the last result is recorded."""
        await asyncio.gather(self._writer.run(), self._writer_of_failed.run())

    async def claim(
        self,
        connection: Connection,
        external_id: int,
        position: int,
        busy_lanes: int,
        prefetch: int,
        prefetch_octets: int,
    ) -> Claimed:
        """Claim due mails of an account for the relay of this position, as ``relay_queue.claim``. After the commit add
        them to ``claimed_ids``."""
        request = ClaimRequest(
            external_id, self._owner, CLAIM_SECONDS, busy_lanes, prefetch, prefetch_octets, self.claimed_ids, position
        )
        return await relay_queue.claim(connection, request)

    async def renew_leases(self) -> None:
        """Renew all claims of this process, and release those that could not be released before."""
        await self._release(self._unreleased - self.claimed_ids, unsent=True)
        if self.claimed_ids:
            async with self._database.transaction() as connection:
                await relay_queue.renew_lease(connection, self.claimed_ids, self._owner, CLAIM_SECONDS)
            self._last_write = time.monotonic()

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
        """Record what the provider replied, and retry until it is recorded.

        Only the end of this process loses the result: then the mail is sent once more. The claim is renewed meanwhile.
        """
        try:
            while True:
                try:
                    writer = self._writer_of_failed if mail.id in self._unrecorded else self._writer
                    after = await writer.commit(ResultRecord.from_result(external, mail, result, random.random()))
                    break
                except Exception as error:  # never send again: the provider may have accepted the mail
                    if not isinstance(error, Temporary) and await self._park(mail.id, error):
                        self.claimed_ids.discard(mail.id)
                        return
                    if mail.id not in self._unrecorded:
                        log.warning("result not recorded, retrying", submission_id=mail.id, error=str(error))
                        self._unrecorded[mail.id] = time.monotonic()
                    await asyncio.sleep(RECORD_AGAIN_SECONDS)
        finally:
            self._unrecorded.pop(mail.id, None)
        self.claimed_ids.discard(mail.id)
        if after is None:
            log.warning("claim lost, result not recorded", submission_id=mail.id)

    async def _park(self, submission_id: int, error: Exception) -> bool:
        """Park a mail whose result cannot be recorded. :return: whether it is parked, which needs the database."""
        try:
            await self._count(submission_id, _trace(error), MAX_FAILURES, self._owner)
        except Exception as unavailable:  # also an error of the database that is not known as temporary
            log.warning("mail not parked, retrying", submission_id=submission_id, error=repr(unavailable))
            return False
        log.error("mail parked", submission_id=submission_id, error=repr(error))
        return True

    async def _write(
        self, connection: Connection, batch: Sequence[Mark | ResultRecord]
    ) -> list[MarkOutcome | PostCommit | None]:
        """Write results, then marks. Return the outcome of each mark, and for each result what follows from it."""
        async with asyncio.timeout(WRITE_SECONDS):
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
        self._last_write = time.monotonic()
        for result in results:
            if isinstance(result, PostCommit):
                self._announce(result)

    async def release(self, mails: Collection[QueuedMail]) -> None:
        """Release the claims of mails that were not sent; while the database is unavailable, retry later."""
        await self._release([mail.id for mail in mails], unsent=True)

    async def release_within(self, connection: Connection, mails: Collection[QueuedMail]) -> None:
        """Do the same in the caller's transaction, which calls ``forget`` after its commit."""
        await relay_queue.release_claims(connection, [mail.id for mail in mails], self._owner, unsent=True)

    def forget(self, mails: Collection[QueuedMail]) -> None:
        """Note that the claims of these mails are released."""
        self.claimed_ids.difference_update(mail.id for mail in mails)

    async def release_all(self) -> None:
        """Release all claims on mails that were not sent; those that were sent without an answer stay as they are."""
        await self._release(self._unreleased, unsent=True)
        await self._release(self.claimed_ids, unsent=False)

    async def _release(self, ids: Collection[int], *, unsent: bool) -> None:
        if not ids:
            return
        ids = sorted(ids)
        self.claimed_ids.difference_update(ids)
        try:
            async with self._database.transaction(RELEASE_SECONDS) as connection:
                await relay_queue.release_claims(connection, ids, self._owner, unsent=unsent)
        except Exception as error:  # also an error of the database that is not known as temporary
            log.warning("claims not released, retrying", mails=len(ids), error=str(error))
            if unsent:
                self._unreleased.update(ids)
        else:
            self._unreleased.difference_update(ids)

    async def count_failure(self, mail: QueuedMail, error: Exception) -> None:
        """Count a failure of this software at a claimed mail, and end its claim; the fifth parks the mail."""
        if isinstance(error, DatabaseCorrupted):
            await self._isolate(mail.id, error)
            await self.release([mail])
            return
        trace = _trace(error)
        log.error("relaying mail failed", submission_id=mail.id, error=repr(error), traceback=trace)
        try:
            await self._count(mail.id, trace, 1, self._owner)
        except Exception as unavailable:  # also an error of the database that is not known as temporary
            log.warning("failure not counted", submission_id=mail.id, error=repr(unavailable))
            await self.release([mail])
        else:
            self.claimed_ids.discard(mail.id)

    async def count_failure_of_unclaimed(self, submission_id: int, error: Exception, failures: int = 1) -> None:
        """Count failures at a mail that nobody has claimed. :raises Temporary: the database is unavailable."""
        if isinstance(error, DatabaseCorrupted):
            await self._isolate(submission_id, error)
            return
        trace = _trace(error)
        log.error("handling mail failed", submission_id=submission_id, error=repr(error), traceback=trace)
        await self._count(submission_id, trace, failures, None)

    async def _isolate(self, submission_id: int, error: Exception) -> None:
        """Leave a mail that PostgreSQL cannot read out of the claims, until a dry run can (``poison_check``)."""
        log.warning("mail isolated, its data is corrupted", submission_id=submission_id, error=str(error))
        try:
            async with self._database.transaction() as connection:
                await poison.isolate(connection, relay_queue.STAGE, submission_id, 0)
        except Exception as unavailable:  # also an error of the database that is not known as temporary
            log.warning("mail not isolated", submission_id=submission_id, error=repr(unavailable))

    async def park(self, submission_id: int, reason: str) -> None:
        """Park a mail that nobody has claimed. :raises Temporary: the database is unavailable."""
        log.error("mail parked", submission_id=submission_id, error=reason)
        await self._count(submission_id, reason, MAX_FAILURES, None)

    async def _count(self, submission_id: int, trace: str, failures: int, owner: str | None) -> None:
        async with self._database.transaction() as connection:
            parked = await submissions.count_failure(
                connection, submission_id, "sender: relay", trace, failures, owner=owner
            )
            events = [maillog.MailEvent("parked", submission_id=submission_id, reply="sender: relay")] if parked else []
            await maillog.record_events(connection, events)
        maillog.announce(events)


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _to_record(batch: Sequence[Mark | ResultRecord]) -> list[ResultRecord]:
    return [item for item in batch if isinstance(item, ResultRecord)]
