"""Recovers the claims of other senders: at once if they have provably ended, otherwise when nobody renews them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import structlog

from services.sender import outcomes
from services.sender.batches import run_in_halves
from services.sender.outcomes import PostCommit
from shared.db.database import Database
from shared.runtime.liveness import FOLDER, find_dead, forget_dead
from shared.runtime.process import Service
from shared.store import relay_orphans

UNRENEWED_SECONDS = 12.0
"""Time that an expired claim must stay unrenewed while the database accepts writes: seconds; more than two renewals of
its owner. After a database failure, or a change of its clock, living owners renew their claims within this time."""

log = structlog.get_logger()


class ExpiredClaims:
    """Watches expired claims: the owner of one that is renewed was only cut off."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[datetime.datetime, float]] = {}  # mail to end of its lease, and when first seen

    def find_unrenewed(self, expired: Mapping[int, datetime.datetime], now: float) -> list[int]:
        """Note one check. :param expired: mail to the end of its lease. :param now: seconds of a steady clock.

        :return: the mails whose claims have stayed as they are for ``UNRENEWED_SECONDS``.
        """
        known = self._since
        self._since = {}
        for mail_id, end in expired.items():
            known_end, since = known.get(mail_id, (end, now))
            self._since[mail_id] = end, since if known_end == end else now
        return [mail_id for mail_id, (_, since) in self._since.items() if now - since >= UNRENEWED_SECONDS]

    def forget(self) -> None:
        """Start again: the database was unavailable, so that no owner could renew."""
        self._since.clear()


class OrphanRecovery:
    """Recovers claims beside the same work of other senders."""

    def __init__(self, service: Service) -> None:
        self._service = service.name
        self._folder = service.settings.data / FOLDER
        self._database: Database = service.database
        self._expired = ExpiredClaims()

    async def recover_expired(self) -> list[PostCommit]:
        """Recover the claims that nobody renews. :raises Temporary: the database is unavailable, or read-only."""
        try:
            async with self._database.transaction() as connection:
                expired = await relay_orphans.list_expired_claims(connection)
        except Exception:
            self._expired.forget()
            raise
        return await self._recover(self._expired.find_unrenewed(expired, time.monotonic()), ())

    async def recover_dead(self) -> list[PostCommit]:
        """Recover the claims of senders that have provably ended. :raises Temporary: the database is unavailable."""
        dead = find_dead(self._folder, self._service)
        if not dead:
            return []
        async with self._database.statement() as connection:
            ids = await relay_orphans.list_claims_of(connection, dead)
        if ids:
            log.warning("senders died, recovering their claims", owners=dead, mails=len(ids))
        recovered = await self._recover(ids, dead)
        forget_dead(self._folder, dead)
        return recovered

    async def _recover(self, ids: Sequence[int], dead_owners: Collection[str]) -> list[PostCommit]:
        return await run_in_halves(self._database, ids, partial(self._recover_some, dead_owners), _log_fault)

    async def _recover_some(self, dead_owners: Collection[str], ids: Sequence[int]) -> PostCommit:
        async with self._database.transaction() as connection:
            return await outcomes.recover_orphans(connection, ids, dead_owners)


async def _log_fault(submission_id: int, error: Exception) -> None:
    log.error("claim not recovered", submission_id=submission_id, error=repr(error))
