"""Claims the accounts that are due and polls them concurrently, one task per account.

A provider that hangs occupies ``MAX_POLLS_OF_SERVER`` of the ``MAX_POLLS`` places at most, and delays no account of
another one. Each result of a poll is
recorded with its account and decides when the account is polled next (``poll_interval``).
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import random
import time
from collections import Counter as Counts
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from functools import partial

import structlog
from prometheus_client import REGISTRY, Gauge

from services.fetcher.mailbox_watch import MailboxWatch
from services.fetcher.memory_budget import OverflowBudget
from services.fetcher.poll import Polling
from services.fetcher.poll_interval import PollResult, after_failure, after_success, kind_of
from shared.account_counts import AccountCounts
from shared.db.database import Connection
from shared.errors import Permanent, Temporary
from shared.metrics import STAGE_SECONDS
from shared.model import External, Poll, PollOutcome
from shared.provider.credentials import RENEWAL_SECONDS, Credentials
from shared.runtime.liveness import CHECK_SECONDS, FOLDER, find_dead, forget_dead, hold_process_lock
from shared.runtime.periodic import run_periodically
from shared.runtime.process import Service
from shared.runtime.tasks import cancel_tasks
from shared.store import maillog, polls, uidl_ledger
from shared.store.accounts import list_external_addresses, load_externals
from shared.store.polls import LEASE_SECONDS, LeaseLost

KINDS = ("refused", "unreachable", "tls", "certificate", "timeout", "protocol", "policy", "busy", "internal")
"""Values of the label kind of mailgroup_fetch_errors_total."""
ERRORS = AccountCounts("mailgroup_fetch_errors_total", "Failed polls.", KINDS)
REGISTRY.register(ERRORS)
SKIPPED = Gauge("mailgroup_skipped_messages", "Mails that could not be fetched and that no operator has acknowledged.")

MEASURE_SECONDS = 15.0
"""Interval of the count of skipped mails, and of new accounts in the metrics: the usual interval of a scrape."""
MAX_POLLS = 64
"""Limit of concurrent polls in one process."""
MAX_POLLS_OF_SERVER = 48
"""Limit of concurrent polls of one server in one process: a quarter of all places is left to the others."""
LARGE_MAILS = 2
"""Memory limit of one process for mails being read or committed: this many mails of the largest allowed size. One more
may exceed the limit (``memory_budget``)."""
LONGEST_WAIT_SECONDS = 0.5
"""Upper limit of the pause between two checks for due accounts: an account that becomes due is polled this soon."""
SHORTEST_WAIT_SECONDS = 0.2
"""Lower limit of that pause: a check costs half as much as a poll without news, so one check claims together what
becomes due within this time. No account is polled later than this after its due time."""
CLOCK_SECONDS = 5.0
"""Interval of the check whether the database's clock jumped back."""
WRITE_SECONDS = 5.0
"""Time limit of one attempt to record the result of a poll."""
RETRY_PAUSES = (0.5, 1.0, 2.0)
"""Pauses after consecutive failures of the database: seconds; the last one repeats. Short, so that polling continues
soon after the database does."""
STOP_SECONDS = 8.0
"""Time limit for polls that transfer mail when the service stops; then they are cancelled."""

log = structlog.get_logger()


async def serve(service: Service, credentials: Credentials) -> None:
    """Poll until the service is to stop; then finish the mails being transferred, QUIT, and release the accounts."""
    take_over = partial(_take_over_dead_fetchers, service)
    background = [
        asyncio.create_task(
            run_periodically(CHECK_SECONDS, take_over, "dead fetcher takeover failed"), name="dead fetchers"
        ),
        asyncio.create_task(
            run_periodically(CLOCK_SECONDS, partial(_fix_clock_jump, service), "clock check failed"), name="clock"
        ),
        asyncio.create_task(
            run_periodically(MEASURE_SECONDS, partial(_measure, service), "measurement failed"), name="measure"
        ),
    ]
    renewal = asyncio.create_task(  # not cancelled: an issuer may have replaced a refresh token that is not stored yet
        run_periodically(
            RENEWAL_SECONDS, credentials.renew_ahead, "token renewal failed", wait_for_stop=service.wait_for_stop
        ),
        name="token renewal",
    )
    news = asyncio.Event()
    watch = MailboxWatch(service, credentials, news)
    background.append(asyncio.create_task(watch.run(), name="mailbox watch"))
    try:
        with hold_process_lock(service.settings.data / FOLDER, service.owner):
            await _poll_all(service, credentials, news)
            await renewal
    finally:
        await cancel_tasks([*background, renewal])
        await watch.release()


async def _take_over_dead_fetchers(service: Service) -> None:
    """Release the accounts of fetchers that have provably ended."""
    folder = service.settings.data / FOLDER
    dead = find_dead(folder, service.name)
    if not dead:
        return
    async with service.database.statement() as connection:
        if released := await polls.free_leases(connection, dead):
            log.warning("fetchers died, accounts released", owners=dead, accounts=released)
    forget_dead(folder, dead)


async def _fix_clock_jump(service: Service) -> None:
    async with service.database.statement() as connection:
        if fixed := await polls.fix_clock_jump(connection):
            log.warning("database clock jumped back, times fixed", accounts=fixed)


async def _measure(service: Service) -> None:
    async with service.database.statement() as connection:
        SKIPPED.set(await uidl_ledger.count_unacknowledged(connection))
        addresses = await list_external_addresses(connection)
    for address in addresses:  # an alert on a counter needs its value before the first event
        maillog.FETCHED.add_account(address)
        ERRORS.add_account(address)


async def _poll_all(service: Service, credentials: Credentials, news: asyncio.Event) -> None:
    running: dict[asyncio.Task[None], Polling] = {}
    servers: dict[asyncio.Task[None], tuple[str, int]] = {}  # of the running polls
    budget = OverflowBudget(LARGE_MAILS * service.settings.max_message_bytes)
    pauses = iter(RETRY_PAUSES)
    for turn in itertools.count():
        pause = LONGEST_WAIT_SECONDS
        try:
            if len(running) < MAX_POLLS:
                owner = f"{service.owner}/{turn}"
                claimed, pause = await _claim_due(service, owner, MAX_POLLS - len(running), servers.values())
                for account, poll in claimed:
                    polling = Polling(service, credentials, account, poll, budget)
                    task = asyncio.create_task(_poll(service, account, poll, polling), name=f"poll {account.address}")
                    running[task], servers[task] = polling, _server(account)
                    task.add_done_callback(running.pop)
                    task.add_done_callback(servers.pop)
            pauses = iter(RETRY_PAUSES)
        except Temporary as error:
            pause = next(pauses, RETRY_PAUSES[-1])
            log.warning("due accounts not claimed, retrying", error=str(error), retry_seconds=pause)
        except Exception as error:  # a fault of ours: the next claim may succeed, and running polls go on
            log.exception("claim of due accounts crashed, retrying", error=repr(error), retry_seconds=pause)
        if await _wait(service, news, pause):
            break
    for task, polling in list(running.items()):
        if not polling.transferring:
            task.cancel()
    if running:
        _, unfinished = await asyncio.wait(set(running), timeout=STOP_SECONDS)
        await cancel_tasks(unfinished)


async def _wait(service: Service, news: asyncio.Event, seconds: float) -> bool:
    """Wait for so long, or until an account has news. Return whether the service is to stop."""
    waiting = [asyncio.ensure_future(event.wait()) for event in (service.stopping, news)]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    news.clear()
    return service.stopping.is_set()


async def _claim_due(
    service: Service, owner: str, max_accounts: int, polled: Iterable[tuple[str, int]]
) -> tuple[list[tuple[External, Poll]], float]:
    """Claim due accounts. Returns them, and the seconds to wait before the next call.

    :param polled: the server of each running poll. A server gets no more than MAX_POLLS_OF_SERVER of them.
    """
    polls_of = Counts(polled)
    full = [server for server, count in polls_of.items() if count >= MAX_POLLS_OF_SERVER]
    async with service.database.statement() as connection:
        claimed, seconds = await polls.claim_due(connection, owner, max_accounts, full)
        by_account = {poll.external_id: poll for poll in claimed}
        accounts = await load_externals(connection, list(by_account)) if by_account else []
        allowed = []
        for account in accounts:
            polls_of[_server(account)] += 1
            if polls_of[_server(account)] <= MAX_POLLS_OF_SERVER:
                allowed.append((account, by_account.pop(account.id)))
        if by_account:
            await polls.return_claims(connection, owner, list(by_account))
    pause = LONGEST_WAIT_SECONDS if seconds is None else min(LONGEST_WAIT_SECONDS, max(SHORTEST_WAIT_SECONDS, seconds))
    return allowed, pause


def _server(account: External) -> tuple[str, int]:
    return account.incoming.host, account.incoming.port


async def _poll(service: Service, account: External, poll: Poll, polling: Polling) -> None:
    """Poll one account and record the result. Raises nothing but CancelledError."""
    began = time.monotonic()
    failure: Exception | None = None
    try:
        await _while_leased(service, poll, polling.run())
    except LeaseLost as error:
        log.warning("poll lease lost", external=account.address, error=str(error))
        await _release_lease(service, account, poll)  # we may still own the lease: the account was disabled
        return
    except asyncio.CancelledError:
        # A cancelled task gets no database connection: another task releases the lease.
        await asyncio.create_task(_release_lease(service, account, poll))
        raise
    except (Temporary, Permanent) as error:
        failure = error
        log.warning("poll failed", external=account.address, kind=kind_of(error), error=str(error))
    except Exception as error:  # a fault of ours: this account is retried later, the other accounts are not affected
        failure = error
        log.exception("poll crashed", external=account.address, kind=kind_of(error), error=repr(error))
    STAGE_SECONDS.labels("poll").observe(time.monotonic() - began)
    result = PollResult(
        poll.now,
        poll.now + datetime.timedelta(seconds=time.monotonic() - began),
        polling.login_delay,
        polling.backlog,
        polling.more,
    )
    if failure is None:
        outcome = after_success(account, result)
        if polling.unchanged is not None:
            quiet = polling.unchanged
            outcome = replace(outcome, quiet_list=quiet.digest, quiet_until=quiet.until, quiet_state=quiet.state)
    else:
        ERRORS.count(account.address, kind_of(failure))
        outcome = after_failure(account, poll, result, failure, random.random())
    await _record_outcome(service, account, poll, outcome)


async def _while_leased(service: Service, poll: Poll, work: Coroutine[None, None, None]) -> None:
    """Run ``work`` and renew the lease concurrently; cancel ``work`` when the lease is lost."""
    working = asyncio.create_task(work)
    renewing = asyncio.create_task(_renew_lease(service, poll))
    try:
        await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, renewing):
            task.cancel()
        await asyncio.gather(working, renewing, return_exceptions=True)
    await (renewing if working.cancelled() else working)


async def _renew_lease(service: Service, poll: Poll) -> None:
    while True:
        await asyncio.sleep(LEASE_SECONDS / 3)
        try:
            async with service.database.statement(LEASE_SECONDS / 3) as connection:
                await polls.renew_lease(connection, poll)
        except LeaseLost:
            raise
        except Temporary as error:  # the next commit checks the lease
            log.warning("poll lease not renewed", external_id=poll.external_id, error=str(error))


async def _record_outcome(service: Service, account: External, poll: Poll, outcome: PollOutcome) -> None:
    await _write(service, account, partial(polls.record_outcome, poll=poll, outcome=outcome))


async def _release_lease(service: Service, account: External, poll: Poll) -> None:
    await _write(service, account, partial(polls.release_lease, poll=poll))


async def _write(service: Service, account: External, work: Callable[[Connection], Awaitable[None]]) -> None:
    """Execute ``work`` as soon as the database is available. Stop trying after LEASE_SECONDS: the lease has expired."""
    deadline = time.monotonic() + LEASE_SECONDS
    pauses = iter(RETRY_PAUSES)
    while True:
        try:
            async with service.database.statement(WRITE_SECONDS) as connection:
                await work(connection)
            return
        except Temporary as error:
            log.warning("poll not recorded", external=account.address, error=str(error))
        except Exception as error:  # a fault of ours: the lease expires, and the account is polled again
            log.exception("record of a poll crashed", external=account.address, error=repr(error))
            return
        if time.monotonic() > deadline or await service.wait_for_stop(next(pauses, RETRY_PAUSES[-1])):
            return
