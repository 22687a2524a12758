"""The groups that this process has claimed: what it writes down about them, many in one commit.

A mail needs two commits on its way out: one before its final dot, one for the provider's answer. Both kinds go through
one writer, which commits whatever has queued from all lanes together (shared/db/group_commit.py).
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
from shared.store.relay_queue import Claimed, QueuedMail

CLAIM_SECONDS = 45.0
"""A claim lasts so long without being renewed, where its sender seems to be at work still: stopped, or cut off."""
RECORD_SECONDS = 3.0
"""While stopping, the database gets so long to take what the provider said."""
RELEASE_SECONDS = 2.0
"""The claims of a process that ends are taken up soon, also if the database is too slow for this."""

log = structlog.get_logger()


class ClaimLost(Exception):
    """Another sender has taken the group: it must not be sent here."""


class Claims:
    """in_hand: ids of the groups that this process holds. stopping: the database is not waited for for ever."""

    def __init__(self, database: Database, owner: str, tell: Callable[[PostCommit], None]) -> None:
        """:param owner: unique to this process. :param tell: told what is committed. Must not raise."""
        self.claimed: set[int] = set()
        self.stopping = False
        self._database = database
        self._owner = owner
        self._announce = tell
        self._writer: GroupCommit[QueuedMail | ResultRecord, bool | PostCommit | None] = GroupCommit(
            database,
            self._write,
            self._committed,
            lambda _: 1,
            is_single_statement=lambda batch: not any(settled.needs_statements for settled in _to_record(batch)),
            gather=True,
        )

    async def run(self) -> None:
        """Write for ever; cancel when everything is settled."""
        await self._writer.run()

    async def claim(
        self, connection: Connection, external: External, busy: int, ahead: int, ahead_octets: int
    ) -> Claimed:
        """Claim due groups of an account, as ``relays.claim``; after the commit they are to be put into ``in_hand``."""
        return await relay_queue.claim(
            connection,
            external.id,
            self._owner,
            external.smtp_connections,
            CLAIM_SECONDS,
            busy=busy,
            ahead=ahead,
            ahead_octets=ahead_octets,
            in_hand=self.claimed,
        )

    async def renew_leases(self) -> None:
        """Hold everything in hand for another while."""
        if self.claimed:
            async with self._database.transaction() as connection:
                await relay_queue.renew_lease(connection, self.claimed, self._owner, CLAIM_SECONDS)

    async def mark_sending(self, group: QueuedMail) -> None:
        """Commit that the final dot is about to go out.

        :raises ClaimLost: it must not. :raises Temporary: the database is away; it must not either.
        """
        if not await self._writer.commit(group):
            raise ClaimLost

    async def record_result(self, external: External, group: QueuedMail, verdict: DeliveryResult) -> None:
        """Write down what the provider said, whatever it takes."""
        deadline: float | None = None
        while True:
            try:
                after = await self._writer.commit(ResultRecord.from_result(external, group, verdict, random.random()))
                break
            except Temporary as error:
                log.warning("waiting to settle", submission_id=group.id, reason=str(error))
                if self.stopping and deadline is None:
                    deadline = time.monotonic() + RECORD_SECONDS
                if deadline is not None and time.monotonic() > deadline:
                    return
                await asyncio.sleep(0.5)
            except Exception as error:  # sending again does not help, but repeats what the provider has taken
                await self.count_failure(group, error, MAX_FAILURES)
                return
        self.claimed.discard(group.id)
        if after is None:
            log.warning("claim lost", submission_id=group.id)

    async def _write(
        self, connection: Connection, batch: Sequence[QueuedMail | ResultRecord]
    ) -> list[bool | PostCommit | None]:
        """Settle, then mark; a result for each: whether it is marked, or what follows from settling it."""
        afters, held = await outcomes.record_results(
            connection,
            _to_record(batch),
            self._owner,
            [item for item in batch if isinstance(item, QueuedMail)],
            CLAIM_SECONDS,
        )
        following = iter(afters)
        return [next(following) if isinstance(item, ResultRecord) else item.id in held for item in batch]

    def _committed(self, results: Sequence[bool | PostCommit | None]) -> None:
        for result in results:
            if isinstance(result, PostCommit):
                self._announce(result)

    async def release(self, groups: Collection[QueuedMail]) -> None:
        """Release claims if that is possible now; else they run out."""
        await self._release([group.id for group in groups])

    async def release_all(self) -> None:
        """Release everything in hand that was not sent."""
        await self._release(sorted(self.claimed))

    async def _release(self, ids: Sequence[int]) -> None:
        if not ids:
            return
        self.claimed.difference_update(ids)
        try:
            async with self._database.transaction(RELEASE_SECONDS) as connection:
                await relay_queue.release_claims(connection, ids, self._owner)
        except Temporary as error:
            log.warning("claims left to run out", mails=len(ids), reason=str(error))

    async def count_failure(self, group: QueuedMail, error: Exception, failures: int = 1) -> None:
        """Count faults of ours on a mail; its claim ends."""
        trace = "".join(traceback.format_exception(error))
        log.error("mail failed", stage="relay", id=group.id, reason=repr(error), traceback=trace)
        self.claimed.discard(group.id)
        try:
            await self._count(group.id, trace, failures)
        except Temporary as unavailable:
            log.warning("fault not counted", submission_id=group.id, reason=str(unavailable))

    async def park(self, id_: int, reason: str) -> None:
        """Park a mail that nobody holds. :raises Temporary: the database is away."""
        log.error("mail parked", stage="relay", id=id_, reason=reason)
        await self._count(id_, reason, MAX_FAILURES)

    async def _count(self, id_: int, trace: str, failures: int) -> None:
        async with self._database.transaction() as connection:
            parked = await submissions.count_failure(connection, id_, "sender: relay", trace, failures)
            events = [maillog.MailEvent("parked", submission_id=id_, reply="sender: relay")] if parked else []
            await maillog.record_events(connection, events)
        maillog.announce(events)


def _to_record(batch: Sequence[QueuedMail | ResultRecord]) -> list[ResultRecord]:
    return [item for item in batch if isinstance(item, ResultRecord)]
