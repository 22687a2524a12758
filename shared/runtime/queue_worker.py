"""Consumes a queue in batches, acknowledges after the commit, isolates mails that fail, and sweeps for lost messages.

    batch from the queue ─▶ parts ─▶ handle: one transaction, committed ─▶ publish behind ─▶ acknowledge
                               │ Temporary: pause, then retry half the part, as it may have been too large
                               │ out of time: halve at once; a mail that is slow alone is isolated
                               └ other exception: halve down to the failing mail, count; parked at the fifth failure
    process crash ─▶ redelivered mails are marked, then replayed in small parts; in progress at the next crash: isolated
    isolated mail ─▶ retried with no other mail in progress; parked after the fifth crash or time-out of its own
    queue empty ─▶ sweep: publish again the committed mails that still wait for this worker

A batch may be handled twice (a crash before the acknowledgement, a sweep beside a slow worker): handling is idempotent.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import structlog
from prometheus_client import Counter

from shared.amqp.broker import Delivery, Publication
from shared.amqp.payloads import WorkItem, read_payload
from shared.db.database import Connection, Database
from shared.db.errors import DatabaseCorrupted
from shared.errors import MAX_FAILURES, Permanent, Temporary
from shared.metrics import STAGE_SECONDS
from shared.runtime.batch import Batch
from shared.runtime.process import Service
from shared.runtime.work_meter import WorkMeter
from shared.store import inbound, maillog, poison
from shared.store.maillog import MailEvent
from shared.store.poison import Suspect

FAILURES = Counter(
    "mailgroup_stage_failures_total", "Failed attempts of a stage.", ["stage", "kind"]
)  # temporary (database or broker), mail (a fault of ours with this mail)

SWEEP_SECONDS = 2.0
"""Interval of the check whether the queue is empty."""
SETTLE_SECONDS = 0.5
"""Pause between the replay of redelivered mails and the retry of an isolated one, which may crash the process: seconds.
Another batch of redelivered mails comes within it."""
BUSY_SECONDS = 30.0
"""Interval of sweeps while mail keeps coming: a lost message must not wait until the queue is empty."""
RETRY_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after consecutive temporary failures: seconds; the last one repeats."""
HANDLE_SECONDS = 10.0
"""Time limit of one call of ``handle``: seconds. A full batch takes a hundredth of it."""
CLAIM_SECONDS = 2.0
"""Time limit of the claim of an isolated mail: seconds; batches wait meanwhile."""
OWN_SECONDS = 2.0
"""Processor time of a mail that is out of time alone from which on the mail itself is the cause: seconds. A usual mail
takes a thousandth of it. With less, it waited for a server or a lock, and nothing is counted."""

log = structlog.get_logger()


class QueueWorker(Protocol):
    """Handles the mails of one queue, named by their row ids."""

    name: str
    queue: str
    batch: int
    """Limit of mails in one transaction."""

    def handle(self, ids: Sequence[int]) -> Coroutine[Any, Any, Sequence[Publication]]:
        """Process these rows in one transaction; return what to publish after it. Cancelled after HANDLE_SECONDS."""

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
            origins = await inbound.load_origins(connection, [row]) if parked else {}
            events = [self._parked(row, origin, origins.get(row))] if parked else []
            await maillog.record_events(connection, events)
        maillog.announce(events)

    def _parked(self, row: int, origin: str, origin_id: int | None) -> MailEvent:
        if self.id_field == "inbound_id":
            return MailEvent("parked", inbound_id=row, reply=origin, origin_id=origin_id)
        return MailEvent("parked", submission_id=row, reply=origin)


async def run_worker(service: Service, worker: QueueWorker) -> None:
    """Consume until the service is to stop; finish the current batch first."""
    await _Stage(service, worker).run()


class _OutOfTime(Temporary):
    """A call of ``handle`` took longer than HANDLE_SECONDS. own_seconds: its processor time."""

    def __init__(self, own_seconds: float) -> None:
        super().__init__(f"not finished within {HANDLE_SECONDS:g} s, {own_seconds:.1f} s of them processor time")
        self.own_seconds = own_seconds


class _Stage:
    """Runs a queue worker on its queue."""

    def __init__(self, service: Service, worker: QueueWorker) -> None:
        self._service = service
        self._worker = worker
        self._consumer = service.broker.consume(worker.queue, prefetch=2 * worker.batch)
        self._idle_since = time.monotonic()  # infinite while a batch is handled
        self._replayed_at = float("-inf")  # of the last batch with redelivered mails; infinite while it is handled
        self._has_isolated = False  # a mail was isolated, and no check for due ones has followed
        for kind in ("temporary", "mail"):
            FAILURES.labels(worker.name, kind)

    async def run(self) -> None:
        """Consume, sweep, and retry isolated mails."""
        name = self._worker.name
        await asyncio.gather(
            asyncio.create_task(self._consume(), name=name),
            asyncio.create_task(self._sweep(), name=f"{name} sweep"),
        )

    async def _consume(self) -> None:
        stopping = asyncio.create_task(self._service.stopping.wait())
        while not self._service.stopping.is_set():
            receiving = asyncio.create_task(self._consumer.batch(self._worker.batch))
            await asyncio.wait({receiving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                receiving.cancel()  # RabbitMQ requeues the unacknowledged messages when the channel closes
                break
            batch = self._decode(receiving.result())
            self._idle_since = float("inf")
            if batch.redelivered:
                self._replayed_at = float("inf")
            await self._run_with_retry(batch)
            self._idle_since = time.monotonic()
            if self._replayed_at == float("inf"):
                self._replayed_at = time.monotonic()

    def _decode(self, deliveries: Sequence[Delivery]) -> Batch:
        """Read the messages; reject those that are no work items."""
        batch = Batch(self._worker.batch)
        for delivery in deliveries:
            try:
                batch.add(delivery, read_payload(WorkItem, delivery.body).ids)
            except Permanent as error:
                log.error("message rejected", stage=self._worker.name, error=str(error))
                self._consumer.reject(delivery)
        return batch

    async def _run_with_retry(self, batch: Batch) -> None:
        """Handle a batch and acknowledge it; return it to the queue if the service is to stop before."""
        pauses = iter(RETRY_PAUSES)
        while not batch.divided or batch.part:
            try:
                if batch.divided:
                    await self._handle_part(batch)
                else:
                    batch.divide(await self._set_aside(batch.redelivered))
            except Temporary as error:
                FAILURES.labels(self._worker.name, "temporary").inc()
                pause = next(pauses, RETRY_PAUSES[-1])
                mails = len(batch.part)
                log.warning(
                    "batch delayed", stage=self._worker.name, mails=mails, retry_seconds=pause, error=str(error)
                )
                if await self._service.wait_for_stop(pause):
                    self._consumer.requeue(batch.deliveries)
                    return
                if mails:
                    batch.halve()
        if batch.passed:
            await self._clear(batch.passed)
        self._consumer.ack(batch.deliveries)

    async def _set_aside(self, redelivered: Collection[int]) -> dict[int, int | None]:
        """Mark redelivered mails. Returns the limit of mails to replay together with each; None: it is isolated."""
        if not redelivered:
            return {}
        async with self._service.database.statement() as connection:
            limits = await poison.mark_redelivered(connection, self._worker.name, redelivered)
        if isolated := [row for row, limit in limits.items() if limit is None]:
            lines = [await self._ids_of(row) for row in isolated]
            log.warning("mail isolated after a crash", stage=self._worker.name, lines=lines)
            self._has_isolated = True
        return limits

    async def _handle_part(self, batch: Batch) -> None:
        """Handle the next part of a batch.

        :raises Temporary: it has to be handled again after a pause.
        """
        part, worker = batch.part, self._worker
        if batch.is_replay:
            async with self._service.database.statement() as connection:
                await poison.begin_replay(connection, worker.name, batch.passed, part)
            batch.passed.clear()
        started = time.perf_counter()
        try:
            async with self._service.exclusive:
                publications = await self._attempt(part)
        except _OutOfTime as error:
            await self._divide_slow(batch, error)
        except DatabaseCorrupted as error:
            await self._divide_unreadable(batch, error)
        except Temporary:
            raise
        except Exception as error:  # a fault of ours with one mail: halving finds which
            if len(part) == 1:
                await self._count_failure(part[0], error)
                batch.finish()
            else:
                log.warning("batch failed, halving it", stage=worker.name, mails=len(part), error=repr(error))
                batch.halve()
        else:
            STAGE_SECONDS.labels(worker.name).observe(time.perf_counter() - started)
            self._service.broker.publish_behind(publications)
            batch.finish()

    async def _attempt(self, ids: Sequence[int]) -> Sequence[Publication]:
        """Call ``handle``. :raises _OutOfTime: it was cancelled."""
        meter = WorkMeter()
        try:
            async with asyncio.timeout(HANDLE_SECONDS):
                return await meter.measure(self._worker.handle(ids))
        except TimeoutError as error:
            raise _OutOfTime(meter.seconds) from error

    async def _divide_slow(self, batch: Batch, error: _OutOfTime) -> None:
        """Halve a part that is out of time; isolate a single mail, so that the others do not wait for it.

        :raises Temporary: the database does not answer, so no mail is at fault.
        """
        part = batch.part
        FAILURES.labels(self._worker.name, "temporary").inc()
        if len(part) > 1:
            log.warning("batch out of time, halving it", stage=self._worker.name, mails=len(part), error=str(error))
            batch.halve()
            return
        at_fault = error.own_seconds >= OWN_SECONDS
        if not at_fault and not await self._service.database.ready():
            raise error
        async with self._service.database.statement() as connection:
            await poison.isolate(connection, self._worker.name, part[0], int(at_fault))
        ids = await self._ids_of(part[0])
        log.warning("mail isolated, it is out of time alone", stage=self._worker.name, error=str(error), **ids)
        batch.isolate()

    async def _divide_unreadable(self, batch: Batch, error: DatabaseCorrupted) -> None:
        """Halve a part that meets corrupted data; isolate a single mail, uncounted: it waits until that is repaired.

        :raises Temporary: the database is unavailable.
        """
        part = batch.part
        FAILURES.labels(self._worker.name, "temporary").inc()
        if len(part) > 1:
            log.warning("batch unreadable, halving it", stage=self._worker.name, mails=len(part), error=str(error))
            batch.halve()
            return
        async with self._service.database.statement() as connection:
            await poison.isolate(connection, self._worker.name, part[0], 0)
        ids = await self._ids_of(part[0])
        log.warning("mail isolated, its data is corrupted", stage=self._worker.name, error=str(error), **ids)
        batch.isolate()

    async def _count_failure(self, row: int, error: Exception) -> None:
        name = self._worker.name
        FAILURES.labels(name, "mail").inc()
        trace = "".join(traceback.format_exception(error))
        ids = await self._ids_of(row)
        log.error("mail failed", stage=name, error=repr(error), traceback=trace, **ids)
        try:
            await self._worker.count_failure(row, f"{self._service.name}: {name}", trace)
        except Temporary as unavailable:
            log.warning("failure not counted, database unavailable", stage=name, error=str(unavailable), **ids)
        except Exception as fault:  # raised, it would end the service each time this mail is handled
            log.exception("failure count crashed", stage=name, error=repr(fault), **ids)

    async def _ids_of(self, row: int) -> dict[str, int]:
        """Return the fields that name a mail in the log. Without the database its own id is the trace_id."""
        try:
            async with self._service.database.statement(CLAIM_SECONDS) as connection:
                origins = await inbound.load_origins(connection, [row])
        except Temporary:
            origins = {}
        return {"id": row, "trace_id": origins.get(row, row)}

    async def _clear(self, ids: Collection[int]) -> None:
        name = self._worker.name
        try:
            async with self._service.database.statement() as connection:
                await poison.clear_suspects(connection, name, ids)
        except Temporary as error:
            log.warning("suspects not cleared, retrying each alone", stage=name, mails=len(ids), error=str(error))

    # -------------------------------------------------------------------------------------------- isolated mails

    async def _retry_isolated(self) -> None:
        """Handle the due suspects, each with no other mail in progress; batches are handled between them.

        Not while mails of a crash are replayed: a suspect that crashes the process again would delay them.
        """
        name = self._worker.name
        try:
            while not self._service.stopping.is_set() and not self._is_replaying:
                async with self._service.exclusive:
                    async with self._service.database.statement(CLAIM_SECONDS) as connection:
                        suspect = await poison.claim_suspect(connection, name)
                    if suspect is None:
                        self._has_isolated = False
                        return
                    await self._retry_one(suspect)
        except Temporary as error:
            log.warning("suspects delayed", stage=name, error=str(error))
        except Exception as error:  # the next check may succeed, and the sweep has to go on
            log.exception("suspect retry crashed", stage=name, error=repr(error))

    @property
    def _is_replaying(self) -> bool:
        return time.monotonic() - self._replayed_at < SETTLE_SECONDS

    async def _retry_one(self, suspect: Suspect) -> None:
        name = self._worker.name
        ids = await self._ids_of(suspect.id)
        if suspect.exhausted:
            log.error("mail parked, it crashes the process", stage=name, crashes=suspect.crashes, **ids)
            origin = f"{self._service.name}: {name}"
            await self._worker.count_failure(suspect.id, origin, suspect.reason, MAX_FAILURES)
        else:
            if suspect.crashes:
                log.warning("suspect retried alone", stage=name, crashes=suspect.crashes, **ids)
            try:
                self._service.broker.publish_behind(await self._attempt([suspect.id]))
            except _OutOfTime as error:
                if error.own_seconds >= OWN_SECONDS:  # the claim has counted this try
                    log.warning("suspect out of time", stage=name, error=str(error), **ids)
                    return
                await self._restore_count(suspect)
                raise
            except Temporary:
                await self._restore_count(suspect)
                raise
            except Exception as error:  # a fault of ours with this mail
                await self._count_failure(suspect.id, error)
        await self._clear([suspect.id])

    async def _restore_count(self, suspect: Suspect) -> None:
        async with self._service.database.statement() as connection:
            await poison.restore_count(connection, self._worker.name, suspect)

    # -------------------------------------------------------------------------------------------- sweeping

    async def _sweep(self) -> None:
        service, worker = self._service, self._worker
        swept = time.monotonic()
        while not await service.wait_for_stop(SETTLE_SECONDS if self._has_isolated else SWEEP_SECONDS):
            await self._retry_isolated()
            now = time.monotonic()
            busy = now - self._idle_since < SWEEP_SECONDS and now - swept < BUSY_SECONDS
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
