"""Consumes a queue in batches, acknowledges after the commit, isolates mails that fail, and sweeps for lost messages.

    batch from the queue ─▶ handle: one transaction, committed ─▶ publish behind ─▶ acknowledge
                               │ Temporary: pause, then retry half the batch, as it may have been too large
                               └ other exception: halve down to the failing mail, count; parked at the fifth failure
    process crash ─▶ redelivered mails are marked, then handled; redelivered once more: retried alone (poison.py)
    queue empty ─▶ sweep: publish again the committed mails that still wait for this worker

A batch may be handled twice (a crash before the acknowledgement, a sweep beside a slow worker): handling is idempotent.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog
from prometheus_client import Counter

from shared.amqp.broker import Consumer, Delivery, Publication
from shared.amqp.payloads import WorkItem, read_payload
from shared.db.database import Connection, Database
from shared.errors import MAX_FAILURES, Permanent, Temporary
from shared.metrics import STAGE_SECONDS
from shared.runtime.process import Service
from shared.store import maillog, poison
from shared.store.maillog import MailEvent
from shared.store.poison import Suspect

FAILURES = Counter(
    "mailgroup_stage_failures_total", "Failed attempts of a stage.", ["stage", "kind"]
)  # temporary (database or broker), mail (a fault of ours with this mail), fault (of a check or a purge of the admin)

SWEEP_SECONDS = 2.0
"""Interval of the check whether the queue is empty."""
BUSY_SECONDS = 30.0
"""Interval of sweeps while mail keeps coming: a lost message must not wait until the queue is empty."""
RETRY_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after consecutive temporary failures: seconds; the last one repeats."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Handled:
    """The result of one call of ``QueueWorker.handle``, whose transaction is committed."""

    publications: Sequence[Publication] = ()  # to publish now
    remaining: Sequence[int] = ()  # ids without any work yet, because the call's budget was used up


class QueueWorker(Protocol):
    """Handles the mails of one queue, named by their row ids."""

    name: str
    queue: str
    batch: int
    """Limit of mails in one transaction."""

    async def handle(self, ids: Sequence[int]) -> Handled:
        """Process these rows in one transaction.

        A worker whose mails differ in cost may stop when its budget of time or memory is used up, after one row or
        more: the next call gets the ``remaining`` rows, in the same order.
        """

    async def count_failure(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        """Count failures of this row; park the mail at MAX_FAILURES (``FailureCounter``)."""

    async def sweep(self) -> Sequence[Publication]:
        """Return publications for at most 1,000 rows that are overdue; record the time, so none is returned again."""


@dataclass(frozen=True, slots=True)
class FailureCounter:
    """Counts failures of our own with a mail; parks the mail at MAX_FAILURES and logs that."""

    database: Database
    count: Callable[[Connection, int, str, str, int], Awaitable[bool]]  # of the store; returns True if parked now
    id_field: Literal["inbound_id", "submission_id"]  # field of the mail event that takes the row id

    async def __call__(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        """Count in one transaction.

        :param origin: service and worker. :param trace: traceback, or a reason. :param failures: to add.
        :raises Temporary: the database is unavailable.
        """
        async with self.database.transaction() as connection:
            parked = await self.count(connection, row, origin, trace, failures)
            events = [self._parked(row, origin)] if parked else []
            await maillog.record_events(connection, events)
        maillog.announce(events)

    def _parked(self, row: int, origin: str) -> MailEvent:
        if self.id_field == "inbound_id":
            return MailEvent("parked", inbound_id=row, reply=origin)
        return MailEvent("parked", submission_id=row, reply=origin)


async def run_worker(service: Service, worker: QueueWorker) -> None:
    """Consume until the service is to stop; finish the current batch first."""
    consumer = service.broker.consume(worker.queue, prefetch=2 * worker.batch)
    idle_since = [time.monotonic()]
    consuming = asyncio.create_task(_consume(service, worker, consumer, idle_since), name=worker.name)
    sweeping = asyncio.create_task(_sweep(service, worker, idle_since), name=f"{worker.name} sweep")
    await asyncio.gather(consuming, sweeping)


async def _consume(service: Service, worker: QueueWorker, consumer: Consumer, idle_since: list[float]) -> None:
    stopping = asyncio.create_task(service.stopping.wait())
    while not service.stopping.is_set():
        receiving = asyncio.create_task(consumer.batch(worker.batch))
        await asyncio.wait({receiving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not receiving.done():
            receiving.cancel()  # RabbitMQ requeues the unacknowledged messages when the channel closes
            break
        idle_since[0] = float("inf")
        await _handle(service, worker, consumer, receiving.result())
        idle_since[0] = time.monotonic()


async def _handle(service: Service, worker: QueueWorker, consumer: Consumer, batch: list[Delivery]) -> None:
    requested: list[int] = []
    redelivered: set[int] = set()  # in progress at a crash; not marked yet
    marked: set[int] = set()  # to be cleared once they are handled
    for delivery in batch:
        try:
            ids = read_payload(WorkItem, delivery.body).ids
        except Permanent as error:
            log.error("message rejected", stage=worker.name, error=str(error))
            consumer.reject(delivery)
            batch = [kept for kept in batch if kept is not delivery]
            continue
        requested.extend(ids)
        if delivery.redelivered:
            redelivered.update(ids)
    remaining = list(dict.fromkeys(requested))
    max_mails = min(len(remaining), worker.batch)
    pauses = iter(RETRY_PAUSES)
    while remaining:
        part, left = remaining[:max_mails], remaining[max_mails:]
        started = time.perf_counter()
        try:
            if unmarked := redelivered.intersection(part):
                isolated = await _mark_redelivered(service, worker, unmarked)
                redelivered -= unmarked
                marked |= unmarked - isolated
                remaining = [row for row in remaining if row not in isolated]
                continue
            async with service.exclusive:
                handled = await worker.handle(part)
        except Temporary as error:
            FAILURES.labels(worker.name, "temporary").inc()
            pause = next(pauses, RETRY_PAUSES[-1])
            log.warning("batch delayed", stage=worker.name, mails=len(part), retry_seconds=pause, error=str(error))
            if await service.wait_for_stop(pause):
                consumer.requeue(batch)
                return
            max_mails = max(1, max_mails // 2)
            continue
        except Exception as error:  # a fault of ours with one mail: halving finds which
            if len(part) == 1:
                await _count_failure(service, worker, part[0], error)
            else:
                log.warning("batch failed, halving it", stage=worker.name, mails=len(part), error=repr(error))
                await _handle_halves(service, worker, part)
        else:
            STAGE_SECONDS.labels(worker.name).observe(time.perf_counter() - started)
            service.broker.publish_behind(handled.publications)
            left = [*handled.remaining, *left]
        if survived := marked.intersection(part).difference(left):
            await _clear(service, worker, survived)
        remaining = left
    consumer.ack(batch)


async def _handle_halves(service: Service, worker: QueueWorker, ids: Sequence[int]) -> None:
    """Handle a failed batch in halves, so that healthy mails do not wait for one transaction per mail.

    A half that fails temporarily is left to the sweep: its mails are committed and unfinished.
    """
    middle = len(ids) // 2
    for half in (ids[:middle], ids[middle:]):
        try:
            async with service.exclusive:
                await _handle_all(service, worker, half)
        except Temporary as error:
            log.warning(
                "half batch left to the sweep", stage=worker.name, mails=len(half), id=half[0], error=str(error)
            )
        except Exception as error:  # a fault of ours with one mail, as above
            if len(half) > 1:
                await _handle_halves(service, worker, half)
            else:
                await _count_failure(service, worker, half[0], error)


async def _handle_all(service: Service, worker: QueueWorker, ids: Sequence[int]) -> None:
    while ids:
        handled = await worker.handle(ids)
        service.broker.publish_behind(handled.publications)
        ids = handled.remaining


async def _count_failure(service: Service, worker: QueueWorker, row: int, error: Exception) -> None:
    FAILURES.labels(worker.name, "mail").inc()
    trace = "".join(traceback.format_exception(error))
    log.error("mail failed", stage=worker.name, id=row, error=repr(error), traceback=trace)
    try:
        await worker.count_failure(row, f"{service.name}: {worker.name}", trace)
    except Temporary as unavailable:
        log.warning("failure not counted, database unavailable", stage=worker.name, id=row, error=str(unavailable))
    except Exception as fault:  # raised, it would end the service each time this mail is handled
        log.exception("failure count crashed", stage=worker.name, id=row, error=repr(fault))


# ------------------------------------------------------------------------------------------------ after a crash


async def _mark_redelivered(service: Service, worker: QueueWorker, ids: Collection[int]) -> set[int]:
    """Mark redelivered mails. Returns those that were marked before: they are retried alone, not in this batch."""
    async with service.database.statement() as connection:
        isolated = await poison.mark_redelivered(connection, worker.name, ids)
    if isolated:
        log.warning(
            "mails isolated after two crashes, retrying each alone",
            stage=worker.name,
            mails=len(isolated),
            first_id=min(isolated),
        )
    return isolated


async def _clear(service: Service, worker: QueueWorker, ids: Collection[int]) -> None:
    try:
        async with service.database.statement() as connection:
            await poison.clear_suspects(connection, worker.name, ids)
    except Temporary as error:
        log.warning("suspects not cleared, retrying each alone", stage=worker.name, mails=len(ids), error=str(error))


async def _retry_isolated(service: Service, worker: QueueWorker) -> None:
    """Handle the due suspects, each with no other mail in progress; batches are handled between them."""
    try:
        while not service.stopping.is_set():
            async with service.exclusive:
                async with service.database.statement() as connection:
                    suspect = await poison.claim_suspect(connection, worker.name)
                if suspect is None:
                    return
                await _retry_one(service, worker, suspect)
    except Temporary as error:
        log.warning("suspects delayed", stage=worker.name, error=str(error))
    except Exception as error:  # the next check may succeed, and the sweep has to go on
        log.exception("suspect retry crashed", stage=worker.name, error=repr(error))


async def _retry_one(service: Service, worker: QueueWorker, suspect: Suspect) -> None:
    if suspect.exhausted:
        log.error("mail parked, it crashes the process", stage=worker.name, id=suspect.id, crashes=suspect.crashes)
        await worker.count_failure(suspect.id, f"{service.name}: {worker.name}", suspect.reason, MAX_FAILURES)
    else:
        if suspect.crashes:
            log.warning("suspect retried alone", stage=worker.name, id=suspect.id, crashes=suspect.crashes)
        try:
            await _handle_all(service, worker, [suspect.id])
        except Temporary:
            async with service.database.statement() as connection:
                await poison.restore_count(connection, worker.name, suspect)
            raise
        except Exception as error:  # a fault of ours with this mail
            await _count_failure(service, worker, suspect.id, error)
    await _clear(service, worker, [suspect.id])


# ------------------------------------------------------------------------------------------------ sweeping


async def _sweep(service: Service, worker: QueueWorker, idle_since: list[float]) -> None:
    swept = time.monotonic()
    while not await service.wait_for_stop(SWEEP_SECONDS):
        await _retry_isolated(service, worker)
        now = time.monotonic()
        busy = now - idle_since[0] < SWEEP_SECONDS and now - swept < BUSY_SECONDS
        if busy or not service.broker.ready:
            continue
        try:
            ready, _ = await service.broker.queue_depth(worker.queue)
            if ready == 0:
                swept = now
                publications = await worker.sweep()
                if publications:
                    log.warning("lost messages published again", stage=worker.name, messages=len(publications))
                    await service.broker.publish(publications)
        except Temporary as error:
            log.warning("sweep delayed", stage=worker.name, error=str(error))
        except Exception as error:  # the next sweep may succeed, and nothing else finds lost messages
            log.exception("sweep crashed", stage=worker.name, error=repr(error))
