"""What the sender does by the clock: due retries, claims, notices of delay, the five days, the gauges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.sender import outcomes, poison_check
from services.sender.delivery import OutboundDelivery
from shared.db import liveness
from shared.db.liveness import DeadOwnerDetector, hold_liveness_lock
from shared.errors import Temporary
from shared.runtime.process import Service
from shared.store import account_changes, relay_queue, relay_status

LOOK_SECONDS = 1.0
HOLD_SECONDS = 5.0
TELL_SECONDS = 10.0
LIFT_SECONDS = 3600.0

log = structlog.get_logger()


class SenderBackground:
    """The repeated work; each part is safe beside another sender's."""

    def __init__(self, service: Service, relaying: OutboundDelivery) -> None:
        self._service = service
        self._database = service.database
        self._delivery = relaying
        self._dead_owners = DeadOwnerDetector()

    async def schedule_due(self) -> None:
        """Wake the accounts that have something due."""
        async with self._database.statement() as connection:
            due = await relay_queue.list_due_accounts(connection)
        for external_id in due:
            self._delivery.schedule(external_id)

    async def renew_leases(self) -> None:
        """Renew the own claims, then take up those that ran out; give back what lies idle."""
        await self._delivery.claims.renew_leases()
        async with self._database.transaction() as connection:
            mended = await relay_queue.fix_clock_jump(connection) + await relay_status.fix_clock_jump(connection)
            after = await outcomes.recover_orphans(connection)
        if mended:
            log.warning("the clock was set back", mails=mended)
        self._delivery.announce(after)
        await self._delivery.release_idle()

    async def take_over_dead_senders(self) -> None:
        """Take up what senders held that died."""
        async with self._database.statement() as connection:
            gone = self._dead_owners.dead(await relay_queue.list_dead_owners(connection, self._service.owner))
        if gone:
            log.warning("senders are gone", owners=gone)
            async with self._database.transaction() as connection:
                after = await outcomes.recover_orphans(connection, gone)
            self._delivery.announce(after)
            await self.check_suspects()

    async def check_suspects(self) -> None:
        """Rehearse what dead senders held, one mail after the other; then it may be claimed."""
        rehearsed = False
        while not self._service.stopping.is_set():
            async with self._service.exclusive:
                if not await poison_check.check_next(self._database, self._delivery.claims):
                    break
            rehearsed = True
        if rehearsed:
            await self.schedule_due()

    async def notify_authors(self) -> None:
        """Give up what is older than five days; tell authors what is late, and what the operator ended."""
        for work in (outcomes.expire_mails, outcomes.notify_delays, outcomes.notify_cancelled):
            async with self._database.transaction() as connection:
                after = await work(connection)
            self._delivery.announce(after)

    async def lift_limits(self) -> None:
        """Try all the connections of accounts that were limited, and sizes that were refused long ago."""
        async with self._database.transaction() as connection:
            await relay_status.lift_limits(connection)
            await account_changes.forget_refused(connection)


async def run_background(service: Service, delivery: OutboundDelivery) -> None:
    """Do it all until the service is to stop, then let the mails in hand be finished."""
    upkeep = SenderBackground(service, delivery)
    staying = asyncio.create_task(hold_liveness_lock(service.database, service.owner), name="presence")
    writer = asyncio.create_task(delivery.claims.run(), name="claims")
    holder = asyncio.create_task(_every(service, HOLD_SECONDS, upkeep.renew_leases, until_cancelled=True))
    try:
        await asyncio.gather(
            _every(service, LOOK_SECONDS, upkeep.schedule_due),
            _every(service, liveness.CHECK_SECONDS, upkeep.take_over_dead_senders),
            _every(service, LOOK_SECONDS, upkeep.check_suspects),
            _every(service, TELL_SECONDS, upkeep.notify_authors),
            _every(service, LIFT_SECONDS, upkeep.lift_limits, first=LIFT_SECONDS),
        )
        await delivery.stop()
    finally:  # claims are renewed until the last mail is settled
        for task in (holder, writer, staying):
            task.cancel()
        await asyncio.gather(holder, writer, staying, return_exceptions=True)


async def _every(
    service: Service,
    seconds: float,
    work: Callable[[], Awaitable[None]],
    first: float = 0.0,
    until_cancelled: bool = False,
) -> None:
    pause = first
    while True:
        if until_cancelled:
            await asyncio.sleep(pause)
        elif await service.wait_for_stop(pause):
            return
        pause = seconds
        try:
            await work()
        except Temporary as error:
            log.warning("waiting", stage="upkeep", work=work.__name__, reason=str(error))
        except Exception:  # the next time may go well, and nobody else does this work
            log.exception("upkeep failed", work=work.__name__)
