"""Periodic work of the sender: due retries, leases, dead senders, delay notices, expiry, limits, access tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog

from services.sender import outcomes, poison_check, retry_policy
from services.sender.account_status import ERRORS, KINDS
from services.sender.batches import run_in_halves
from services.sender.claims import CLAIM_SECONDS
from services.sender.dead_owners import OrphanRecovery
from services.sender.delivery import OutboundDelivery
from services.sender.outcomes import PostCommit
from services.sender.provider_filing import ProviderFiling
from shared.db.database import Connection
from shared.provider.credentials import RENEWAL_SECONDS
from shared.runtime.liveness import CHECK_SECONDS, FOLDER, hold_process_lock
from shared.runtime.periodic import run_periodically
from shared.runtime.process import Service
from shared.runtime.tasks import cancel_tasks
from shared.store import accounts, relay_notices, relay_queue, relays

DUE_SECONDS = 1.0
"""Interval of the checks for due accounts and for suspects: adds at most so much to the delay of a mail."""
RENEW_SECONDS = 5.0
"""Interval of lease renewal: well below the lifetime of a claim (``claims.CLAIM_SECONDS``)."""
NOTIFY_SECONDS = 10.0
"""Interval of notices and expiry: small beside the hours after which they are due."""
SHOW_SECONDS = 15.0
"""Interval after which a new account appears in the metrics: the usual interval of a scrape."""
FILE_SECONDS = 2.0
"""Interval of the search for work at the providers' IMAP servers."""
LIFT_SECONDS = 3600.0
"""Interval after which learnt limits of a provider are tried again."""

log = structlog.get_logger()


class SenderBackground:
    """The periodic tasks. Each is safe beside the same task of another sender."""

    def __init__(self, service: Service, delivery: OutboundDelivery) -> None:
        self._service = service
        self._database = service.database
        self._delivery = delivery
        self._orphans = OrphanRecovery(service)
        self.filing = ProviderFiling(self._database, delivery.credentials, service.settings.allow_private_upstream)

    async def show_accounts(self) -> None:
        """Create the counters of each account: an alert on a counter needs its value before the first event."""
        async with self._database.statement() as connection:
            externals = await accounts.load_externals(connection)
        for external in externals:
            for relay in external.relays:
                for kind in KINDS:
                    ERRORS.labels(external.address, relay.server.host, kind)

    async def schedule_due(self) -> None:
        """Schedule the relays that have due mail, or have to be tried."""
        async with self._database.statement() as connection:
            due = await relay_queue.list_due_relays(connection)
        for external_id, position in due:
            self._delivery.schedule(external_id, position)

    async def renew_leases(self) -> None:
        """Renew the claims of this process, recover the expired claims of others, and release idle resources."""
        await self._delivery.claims.renew_leases()
        async with self._database.transaction() as connection:
            fixed = await relay_queue.fix_clock_jump(connection, CLAIM_SECONDS) + await relays.fix_clock_jump(
                connection
            )
        if fixed:
            log.warning("database clock jumped back, times fixed", mails=fixed)
        self._announce(await self._orphans.recover_expired())
        await self._delivery.release_idle()

    async def take_over_dead_senders(self) -> None:
        """Recover the claims of senders that died."""
        recovered = await self._orphans.recover_dead()
        self._announce(recovered)
        if recovered:
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
        async with self._database.statement() as connection:
            expired = await relay_notices.list_expired(connection, retry_policy.EXPIRY)
            delayed = await relay_notices.list_delayed(connection, retry_policy.FIRST_NOTICE, retry_policy.NEXT_NOTICE)
            cancelled = await relay_notices.list_cancelled(connection)
        await self._notify(expired, outcomes.expire_mails, self._delivery.claims.count_failure_of_unclaimed)
        await self._notify(delayed, outcomes.notify_delays, _log_fault)
        await self._notify(cancelled, outcomes.notify_cancelled, _log_fault)

    async def _notify(
        self,
        ids: Sequence[int],
        write: Callable[[Connection, Collection[int]], Awaitable[PostCommit]],
        on_fault: Callable[[int, Exception], Awaitable[object]],
    ) -> None:
        async def work(part: Sequence[int]) -> PostCommit:
            async with self._database.transaction() as connection:
                return await write(connection, part)

        self._announce(await run_in_halves(self._database, ids, work, on_fault))

    def _announce(self, recovered: Sequence[PostCommit]) -> None:
        for after in recovered:
            self._delivery.announce(after)

    async def end_idle_failures(self) -> None:
        """End the failures of accounts whose last waiting mail was cancelled or has expired."""
        async with self._database.transaction() as connection:
            await relays.end_idle_failures(connection)

    async def lift_limits(self) -> None:
        """Lift learnt limits: of connections for limited accounts, and of sizes that were refused long ago."""
        async with self._database.transaction() as connection:
            await relays.lift_limits(connection)
            await relays.forget_refused(connection)


async def _log_fault(submission_id: int, error: Exception) -> None:
    log.error("notice not written", submission_id=submission_id, error=repr(error))


async def run_background(service: Service, delivery: OutboundDelivery) -> None:
    """Run the periodic tasks until the service is to stop, then wait until the claimed mails are finished."""
    with hold_process_lock(service.settings.data / FOLDER, service.owner):  # before the first claim
        await _run_periodic_tasks(service, delivery)


async def _run_periodic_tasks(service: Service, delivery: OutboundDelivery) -> None:
    background = SenderBackground(service, delivery)
    until_finished = [
        asyncio.create_task(delivery.claims.run(), name="claims"),
        asyncio.create_task(
            run_periodically(RENEW_SECONDS, background.renew_leases, "lease renewal failed"), name="lease renewal"
        ),
    ]
    renewal = asyncio.create_task(  # not cancelled: an issuer may have replaced a refresh token that is not stored yet
        run_periodically(
            RENEWAL_SECONDS,
            delivery.credentials.renew_ahead,
            "token renewal failed",
            wait_for_stop=service.wait_for_stop,
        ),
        name="token renewal",
    )
    until_stop = [
        (DUE_SECONDS, background.schedule_due, "due account check failed", 0.0),
        (CHECK_SECONDS, background.take_over_dead_senders, "dead sender takeover failed", 0.0),
        (DUE_SECONDS, background.check_suspects, "suspect check failed", 0.0),
        (NOTIFY_SECONDS, background.notify_authors, "author notification failed", 0.0),
        (NOTIFY_SECONDS, background.end_idle_failures, "end of failures failed", 0.0),
        (SHOW_SECONDS, background.show_accounts, "account metrics failed", 0.0),
        (FILE_SECONDS, background.filing.file_due, "filing at providers failed", 0.0),
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
        await renewal
    finally:  # claims are renewed until the last mail is finished
        await cancel_tasks([*until_finished, renewal])
