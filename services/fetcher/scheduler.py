"""Claims the accounts that are due and polls them side by side, each in a task of its own.

One provider that hangs takes one place of many and delays nobody else. Whatever ends a poll is written down with the
account and decides when it is polled next (``schedule``).
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial

import structlog
from prometheus_client import Counter, Gauge

from services.fetcher.memory_budget import MemoryBudget
from services.fetcher.poll import Polling
from services.fetcher.poll_interval import PollResult, after_failure, after_success, kind_of
from shared.db.database import Connection
from shared.db.liveness import CHECK_SECONDS, DeadOwnerDetector, hold_liveness_lock
from shared.errors import Permanent, Temporary
from shared.metrics import STAGE_SECONDS
from shared.model import External, Poll, PollOutcome
from shared.provider.credentials import Credentials
from shared.runtime.process import Service
from shared.store import polls, uidl_ledger
from shared.store.accounts import load_externals
from shared.store.polls import LEASE_SECONDS, LeaseLost

LAST_SUCCESS = Gauge(
    "mailgroup_fetch_last_success_timestamp_seconds", "When an account was last polled well.", ["external"]
)
ERRORS = Counter(
    "mailgroup_fetch_errors_total", "Polls that failed.", ["external", "kind"]
)  # refused, unreachable, tls, timeout, protocol, policy, busy, internal

SKIPPED = Gauge(
    "mailgroup_skipped_messages", "Mails that could not be fetched, and of which nobody has said that it is known."
)

MEASURE_SECONDS = 15.0
POLLS = 64
"""Polls at the same time in one process."""
LARGE_MAILS = 2
"""So many of the largest mails are held at once in one process, whoever's they are, and one more."""
LONGEST_WAIT_SECONDS = 0.5
"""The longest time between two looks for accounts that are due."""
SHORTEST_WAIT_SECONDS = 0.2
"""The shortest: of a thousand accounts some fall due at any time, and one look claims them together, as a look costs
half as much as the poll of a maildrop without news. No account is polled later than it is due by more than this."""
CLOCK_SECONDS = 5.0
WRITE_SECONDS = 5.0
AGAIN_SECONDS = 0.5
"""Between two tries to write down how a poll ended."""
STOP_SECONDS = 8.0
"""A poll that has not finished the mails in hand by then is cut when the service stops."""

log = structlog.get_logger()


async def serve(service: Service, credentials: Credentials) -> None:
    """Poll until the service is to stop; then finish what is in hand, QUIT, and give the accounts back."""
    others = [
        asyncio.create_task(hold_liveness_lock(service.database, service.owner), name="presence"),
        asyncio.create_task(
            _every(CHECK_SECONDS, partial(_take_over_dead_fetchers, service, DeadOwnerDetector())), name="inherit"
        ),
        asyncio.create_task(_every(CLOCK_SECONDS, partial(_fix_clock_jump, service)), name="clock"),
        asyncio.create_task(_every(MEASURE_SECONDS, partial(_measure, service)), name="measure"),
    ]
    try:
        await _poll_all(service, credentials)
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do it for ever, whatever happens."""
    while True:
        try:
            await work()
        except Temporary as error:
            log.warning("waiting", reason=str(error))
        except Exception:  # a fault here is no reason to end the fetcher
            log.exception("upkeep failed")
        await asyncio.sleep(seconds)


async def _take_over_dead_fetchers(service: Service, absentees: DeadOwnerDetector) -> None:
    """Free the accounts of fetchers that died."""
    async with service.database.statement() as connection:
        gone = absentees.dead(await polls.list_dead_owners(connection, service.owner))
        if gone:
            log.warning("fetchers are gone", owners=gone, accounts=await polls.free_leases(connection, gone))


async def _fix_clock_jump(service: Service) -> None:
    async with service.database.statement() as connection:
        if mended := await polls.fix_clock_jump(connection):
            log.warning("the clock was set back", accounts=mended)


async def _measure(service: Service) -> None:
    async with service.database.statement() as connection:
        SKIPPED.set(await uidl_ledger.count_unacknowledged(connection))


async def _poll_all(service: Service, credentials: Credentials) -> None:
    running: dict[asyncio.Task[None], Polling] = {}
    budget = MemoryBudget(LARGE_MAILS * service.settings.max_message_bytes)
    for turn in itertools.count():
        pause = LONGEST_WAIT_SECONDS
        try:
            if len(running) < POLLS:
                claimed, pause = await _claim_due(service, f"{service.owner}/{turn}", POLLS - len(running))
                for account, poll in claimed:
                    polling = Polling(service, credentials, account, poll, budget)
                    task = asyncio.create_task(_poll(service, account, poll, polling), name=f"poll {account.address}")
                    running[task] = polling
                    task.add_done_callback(running.pop)
        except Temporary as error:
            log.warning("waiting", reason=str(error))
        if await service.wait_for_stop(pause):
            break
    for task, polling in list(running.items()):
        if not polling.transferring:
            task.cancel()
    if running:
        _, cut = await asyncio.wait(set(running), timeout=STOP_SECONDS)
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)


async def _claim_due(service: Service, owner: str, most: int) -> tuple[list[tuple[External, Poll]], float]:
    """Claim the accounts that are due; and how many seconds to wait before the next look."""
    async with service.database.statement() as connection:
        claimed, seconds = await polls.claim_due(connection, owner, most)
        by_account = {poll.external_id: poll for poll in claimed}
        accounts = await load_externals(connection, list(by_account)) if by_account else []
    pause = LONGEST_WAIT_SECONDS if seconds is None else min(LONGEST_WAIT_SECONDS, max(SHORTEST_WAIT_SECONDS, seconds))
    return [(account, by_account[account.id]) for account in accounts], pause


async def _poll(service: Service, account: External, poll: Poll, polling: Polling) -> None:
    """Poll one account and write down how it went. Raises nothing but cancellation."""
    began = time.monotonic()
    failure: Exception | None = None
    try:
        await _while_leased(service, poll, polling.run())
    except LeaseLost as error:
        log.warning("poll given up", external=account.address, reason=str(error))
        await _release_lease(service, account, poll)  # it may still be ours: the account was disabled
        return
    except asyncio.CancelledError:
        await asyncio.create_task(
            _release_lease(service, account, poll)
        )  # this task counts as cancelled: no connection
        raise
    except (Temporary, Permanent) as error:
        failure = error
        log.warning("poll failed", external=account.address, kind=kind_of(error), reason=str(error))
    except Exception as error:  # whatever it is: this account waits and is tried again, the others are not touched
        failure = error
        log.exception("poll failed", external=account.address, kind=kind_of(error))
    STAGE_SECONDS.labels("poll").observe(time.monotonic() - began)
    course = PollResult(
        poll.now,
        poll.now + datetime.timedelta(seconds=time.monotonic() - began),
        polling.login_delay,
        polling.backlog,
        polling.more,
    )
    if failure is None:
        LAST_SUCCESS.labels(account.address).set_to_current_time()
        outcome = after_success(account, course)
        if polling.quiet is not None:
            outcome = replace(outcome, quiet_list=polling.quiet.digest, quiet_until=polling.quiet.until)
    else:
        ERRORS.labels(account.address, kind_of(failure)).inc()
        outcome = after_failure(account, poll, course, failure, random.random())
    await _finish(service, account, poll, outcome)


async def _while_leased(service: Service, poll: Poll, work: Coroutine[None, None, None]) -> None:
    """Run ``work`` and renew the lease beside it; when the lease is lost, so is the work."""
    working = asyncio.create_task(work)
    keeping = asyncio.create_task(_renew_lease(service, poll))
    try:
        await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, keeping):
            task.cancel()
        await asyncio.gather(working, keeping, return_exceptions=True)
    await (keeping if working.cancelled() else working)


async def _renew_lease(service: Service, poll: Poll) -> None:
    while True:
        await asyncio.sleep(LEASE_SECONDS / 3)
        try:
            async with service.database.statement(LEASE_SECONDS / 3) as connection:
                await polls.renew_lease(connection, poll)
        except LeaseLost:
            raise
        except Temporary as error:  # the next commit will tell
            log.warning("lease not renewed", reason=str(error))


async def _finish(service: Service, account: External, poll: Poll, outcome: PollOutcome) -> None:
    await _write(service, account, partial(polls.record_outcome, poll=poll, outcome=outcome))


async def _release_lease(service: Service, account: External, poll: Poll) -> None:
    await _write(service, account, partial(polls.release_lease, poll=poll))


async def _write(service: Service, account: External, work: Callable[[Connection], Awaitable[None]]) -> None:
    """Let go of the account as soon as the database answers. When that takes too long the lease has ended by itself."""
    deadline = time.monotonic() + LEASE_SECONDS
    while True:
        try:
            async with service.database.statement(WRITE_SECONDS) as connection:
                await work(connection)
            return
        except Temporary as error:
            log.warning("poll not recorded", external=account.address, reason=str(error))
        if time.monotonic() > deadline or await service.wait_for_stop(AGAIN_SECONDS):
            return
