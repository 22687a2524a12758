"""How a stage works its queue off: batches, acknowledged after the commit; faults of single mails; sweeps.

    batch from the queue ─▶ handle: one transaction, committed ─▶ publish behind ─▶ acknowledge
                               │ Temporary: it waits and is tried again, in halves, as it may have been too much
                               └ anything else: in halves, down to the one at fault: blamed, parked at the fifth fault
    death ─▶ what was in hand comes back: noted, and handled; what comes back once more is tried alone (poison.py)
    queue empty ─▶ sweep: what is committed and waits for this stage is published again

A batch may be handled twice (a crash before the acknowledgement, a sweep beside a slow worker): handling is idempotent.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Collection, Sequence
from typing import Protocol

import structlog
from prometheus_client import Counter

from shared.amqp.broker import Consumer, Delivery, Publication
from shared.amqp.payloads import WorkItem, read_payload
from shared.errors import MAX_FAILURES, Permanent, Temporary
from shared.metrics import STAGE_SECONDS
from shared.runtime.process import Service
from shared.store import poison
from shared.store.poison import Suspect

FAILURES = Counter(
    "mailgroup_stage_failures_total", "Tries of a stage that failed.", ["stage", "kind"]
)  # temporary (database or broker), mail (a fault of its own), fault (of a look or a purge of the service admin)

SWEEP_SECONDS = 2.0
"""Between two looks whether the queue is empty."""
BUSY_SECONDS = 30.0
"""Between two sweeps while mail keeps coming: a lost message must not wait for the evening."""
RETRY_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds to wait after a temporary failure, the last one for ever."""

log = structlog.get_logger()


class QueueWorker(Protocol):
    """What a stage does with its rows, named by their ids."""

    name: str
    queue: str
    batch: int
    """The most mails in one transaction."""

    async def handle(self, ids: Sequence[int]) -> Sequence[Publication]:
        """Work on these rows in one transaction and return what is to be published after its commit."""

    async def count_failure(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        """Count faults of this one row; park it at MOST_FAULTS, with where and how it failed."""

    async def sweep(self) -> Sequence[Publication]:
        """Publications for rows that wait for this stage past the grace period; at most 1,000, their time recorded."""


async def run_worker(service: Service, stage: QueueWorker) -> None:
    """Work until the service is to stop; the batch in hand is finished first."""
    consumer = service.broker.consume(stage.queue, prefetch=2 * stage.batch)
    idle_since = [time.monotonic()]
    worker = asyncio.create_task(_work(service, stage, consumer, idle_since), name=stage.name)
    sweeper = asyncio.create_task(_sweep(service, stage, idle_since), name=f"{stage.name} sweep")
    await asyncio.gather(worker, sweeper)


async def _work(service: Service, stage: QueueWorker, consumer: Consumer, idle_since: list[float]) -> None:
    stopping = asyncio.create_task(service.stopping.wait())
    while not service.stopping.is_set():
        coming = asyncio.create_task(consumer.batch(stage.batch))
        await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            coming.cancel()  # what it would have taken goes back to the queue with the channel
            break
        idle_since[0] = float("inf")
        await _handle(service, stage, consumer, coming.result())
        idle_since[0] = time.monotonic()


async def _handle(service: Service, stage: QueueWorker, consumer: Consumer, batch: list[Delivery]) -> None:
    wanted: list[int] = []
    returned: set[int] = set()  # somebody had them before
    noted: set[int] = set()
    for delivery in batch:
        try:
            ids = read_payload(WorkItem, delivery.body).ids
        except Permanent as error:
            log.error("stray message", stage=stage.name, reason=str(error))
            consumer.reject(delivery)
            batch = [other for other in batch if other is not delivery]
            continue
        wanted.extend(ids)
        if delivery.redelivered:
            returned.update(ids)
    left = list(dict.fromkeys(wanted))
    most = min(len(left), stage.batch)
    pauses = iter(RETRY_PAUSES)
    while left:
        part = left[:most]
        started = time.perf_counter()
        try:
            if doubtful := returned.intersection(part):
                aside = await _mark_redelivered(service, stage, doubtful)
                returned -= doubtful
                noted |= doubtful - aside
                left = [row for row in left if row not in aside]
                continue
            async with service.exclusive:
                publications = await stage.handle(part)
        except Temporary as error:
            FAILURES.labels(stage.name, "temporary").inc()
            pause = next(pauses, RETRY_PAUSES[-1])
            log.warning("waiting", stage=stage.name, mails=len(part), seconds=pause, reason=str(error))
            if await service.wait_for_stop(pause):
                consumer.requeue(batch)
                return
            most = max(1, most // 2)
            continue
        except Exception as error:  # whatever it is: one mail is at fault, and is to be found
            if len(part) == 1:
                await _count_failure(service, stage, part[0], error)
            else:
                log.warning("batch failed, going by halves", stage=stage.name, mails=len(part), reason=repr(error))
                await _handle_halves(service, stage, part)
        else:
            STAGE_SECONDS.labels(stage.name).observe(time.perf_counter() - started)
            service.broker.publish_behind(publications)
        if survived := noted.intersection(part):
            await _clear(service, stage, survived)
        left = left[len(part) :]
    consumer.ack(batch)


async def _handle_halves(service: Service, stage: QueueWorker, ids: Sequence[int]) -> None:
    """A batch that failed: whoever is not at fault is not to wait for as many transactions as there are mails.

    What cannot be done now is left to the sweep: it is committed and unfinished.
    """
    middle = len(ids) // 2
    for half in (ids[:middle], ids[middle:]):
        try:
            async with service.exclusive:
                service.broker.publish_behind(await stage.handle(half))
        except Temporary as error:
            log.warning("left to the sweep", stage=stage.name, mails=len(half), first=half[0], reason=str(error))
        except Exception as error:  # as above
            if len(half) > 1:
                await _handle_halves(service, stage, half)
            else:
                await _count_failure(service, stage, half[0], error)


async def _count_failure(service: Service, stage: QueueWorker, row: int, error: Exception) -> None:
    FAILURES.labels(stage.name, "mail").inc()
    trace = "".join(traceback.format_exception(error))
    log.error("mail failed", stage=stage.name, id=row, reason=repr(error), traceback=trace)
    try:
        await stage.count_failure(row, f"{service.name}: {stage.name}", trace)
    except Temporary as unavailable:
        log.warning("fault not counted", stage=stage.name, id=row, reason=str(unavailable))
    except Exception:  # it would end the service, again and again, as the mail would come again
        log.exception("fault not counted", stage=stage.name, id=row)


# ------------------------------------------------------------------------------------------------ after a death


async def _mark_redelivered(service: Service, stage: QueueWorker, ids: Collection[int]) -> set[int]:
    """Note what came back; those that came back before are tried alone, and not with others."""
    async with service.database.statement() as connection:
        aside = await poison.mark_redelivered(connection, stage.name, ids)
    if aside:
        log.warning("in hand at two crashes, to be tried alone", stage=stage.name, mails=len(aside), first=min(aside))
    return aside


async def _clear(service: Service, stage: QueueWorker, ids: Collection[int]) -> None:
    try:
        async with service.database.statement() as connection:
            await poison.clear_suspects(connection, stage.name, ids)
    except Temporary as error:
        log.warning("left to be tried alone", stage=stage.name, mails=len(ids), reason=str(error))


async def _retry_isolated(service: Service, stage: QueueWorker) -> None:
    """Handle those that are due, each with nothing else in hand; what comes meanwhile has its turn between."""
    try:
        while not service.stopping.is_set():
            async with service.exclusive:
                async with service.database.statement() as connection:
                    suspect = await poison.claim_suspect(connection, stage.name)
                if suspect is None:
                    return
                await _retry_one(service, stage, suspect)
    except Temporary as error:
        log.warning("suspects not tried", stage=stage.name, reason=str(error))
    except Exception:  # the next look may go well, and the sweep goes on in any case
        log.exception("suspects not tried", stage=stage.name)


async def _retry_one(service: Service, stage: QueueWorker, suspect: Suspect) -> None:
    if suspect.exhausted:
        log.error("mail ends the process", stage=stage.name, id=suspect.id, crashes=suspect.crashes)
        await stage.count_failure(suspect.id, f"{service.name}: {stage.name}", suspect.reason, MAX_FAILURES)
    else:
        if suspect.crashes:
            log.warning("tried alone", stage=stage.name, id=suspect.id, crashes=suspect.crashes)
        try:
            service.broker.publish_behind(await stage.handle([suspect.id]))
        except Temporary:
            async with service.database.statement() as connection:
                await poison.restore_count(connection, stage.name, suspect)
            raise
        except Exception as error:  # whatever it is, this mail is at fault
            await _count_failure(service, stage, suspect.id, error)
    await _clear(service, stage, [suspect.id])


# ------------------------------------------------------------------------------------------------ sweeping


async def _sweep(service: Service, stage: QueueWorker, idle_since: list[float]) -> None:
    swept = time.monotonic()
    while not await service.wait_for_stop(SWEEP_SECONDS):
        await _retry_isolated(service, stage)
        now = time.monotonic()
        busy = now - idle_since[0] < SWEEP_SECONDS and now - swept < BUSY_SECONDS
        if busy or not service.broker.ready:
            continue
        try:
            ready, _ = await service.broker.queue_depth(stage.queue)
            if ready == 0:
                swept = now
                publications = await stage.sweep()
                if publications:
                    log.warning("swept", stage=stage.name, mails=len(publications))
                    await service.broker.publish(publications)
        except Temporary as error:
            log.warning("not swept", stage=stage.name, reason=str(error))
        except Exception:  # the next sweep may go well, and nobody else would find what was lost
            log.exception("sweep failed", stage=stage.name)
