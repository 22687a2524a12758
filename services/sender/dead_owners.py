"""Periodic work of the sender: due retries, claims, dead senders, delay notices, expiry, limits."""

from __future__ import annotations

import asyncio

import structlog

from services.sender import outcomes, poison_check
from services.sender.delivery import OutboundDelivery
from shared.db import liveness
from shared.db.liveness import DeadOwnerDetector, hold_liveness_lock
from shared.runtime.periodic import run_periodically
from shared.runtime.process import Service
from shared.store import account_changes, relay_queue, relay_status

DUE_SECONDS = 1.0
"""Interval of the checks for due accounts and for suspects: adds at most so much to the delay of a mail."""
RENEW_SECONDS = 5.0
"""Interval of lease renewal: well below the lifetime of a claim (``claims.CLAIM_SECONDS``)."""
NOTIFY_SECONDS = 10.0
"""Interval of notices and expiry: small beside the hours after which they are due."""
LIFT_SECONDS = 3600.0
"""Interval after which learnt limits of a provider are tried again."""

log = structlog.get_logger()


class SenderBackground:
    """The periodic tasks. Each is safe beside the same task of another sender."""

    def __init__(self, service: Service, delivery: OutboundDelivery) -> None:
        self._service = service
        self._database = service.database
        self._delivery = delivery
        self._dead_owners = DeadOwnerDetector()

    async def schedule_due(self) -> None:
        """Schedule the accounts that have due mail."""
        async with self._database.statement() as connection:
            due = await relay_queue.list_due_accounts(connection)
        for external_id in due:
            self._delivery.schedule(external_id)

    async def renew_leases(self) -> None:
        """Renew the claims of this process, recover the expired claims of others, and release idle resources."""
        await self._delivery.claims.renew_leases()
        async with self._database.transaction() as connection:
            fixed = await relay_queue.fix_clock_jump(connection) + await relay_status.fix_clock_jump(connection)
            recovered = await outcomes.recover_orphans(connection)
        if fixed:
            log.warning("database clock jumped back, times fixed", mails=fixed)
        self._delivery.announce(recovered)
        await self._delivery.release_idle()

    async def take_over_dead_senders(self) -> None:
        """Recover the claims of senders that died."""
        async with self._database.statement() as connection:
            dead = self._dead_owners.dead(await relay_queue.list_dead_owners(connection, self._service.owner))
        if dead:
            log.warning("senders died, recovering their claims", owners=dead)
            async with self._database.transaction() as connection:
                recovered = await outcomes.recover_orphans(connection, dead)
            self._delivery.announce(recovered)
            await self.check_suspects()

    async def check_suspects(self) -> None:
        """Do a dry run of each mail that a dead sender had claimed, one at a time; then it may be claimed again."""
        checked = False
        while not self._service.stopping.is_set():
            async with self._service.exclusive:
                if not await poison_check.check_next(self._database, self._delivery.claims):
                    break
            checked = True
        if checked:
            await self.schedule_due()

    async def notify_authors(self) -> None:
        """Expire mail that is older than five days; notify authors of delays, and of mail that the operator ended."""
        for work in (outcomes.expire_mails, outcomes.notify_delays, outcomes.notify_cancelled):
            async with self._database.transaction() as connection:
                notices = await work(connection)
            self._delivery.announce(notices)

    async def lift_limits(self) -> None:
        """Lift learnt limits: of connections for limited accounts, and of sizes that were refused long ago."""
        async with self._database.transaction() as connection:
            await relay_status.lift_limits(connection)
            await account_changes.forget_refused(connection)


async def run_background(service: Service, delivery: OutboundDelivery) -> None:
    """Run the periodic tasks until the service is to stop, then wait until the claimed mails are finished."""
    background = SenderBackground(service, delivery)
    until_finished = [
        asyncio.create_task(hold_liveness_lock(service.database, service.owner), name="liveness lock"),
        asyncio.create_task(delivery.claims.run(), name="claims"),
        asyncio.create_task(
            run_periodically(RENEW_SECONDS, background.renew_leases, "lease renewal failed"), name="lease renewal"
        ),
    ]
    until_stop = [
        (DUE_SECONDS, background.schedule_due, "due account check failed", 0.0),
        (liveness.CHECK_SECONDS, background.take_over_dead_senders, "dead sender takeover failed", 0.0),
        (DUE_SECONDS, background.check_suspects, "suspect check failed", 0.0),
        (NOTIFY_SECONDS, background.notify_authors, "author notification failed", 0.0),
        (LIFT_SECONDS, background.lift_limits, "limit lift failed", LIFT_SECONDS),
    ]
    try:
        await asyncio.gather(
            *(
                run_periodically(seconds, work, event, first_pause=first_pause, wait_for_stop=service.wait_for_stop)
                for seconds, work, event, first_pause in until_stop
            )
        )
        await delivery.stop()
    finally:  # claims are renewed until the last mail is finished
        for task in until_finished:
            task.cancel()
        await asyncio.gather(*until_finished, return_exceptions=True)
