"""shared/runtime/queue_worker.py on a real broker: batches, failing mails, foreign messages, retries, sweeps."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest

from shared.amqp import topology
from shared.amqp.broker import Broker, Publication
from shared.amqp.payloads import FetchedItem
from shared.errors import Temporary
from shared.runtime import queue_worker
from shared.runtime.process import Service
from shared.runtime.queue_worker import run_worker
from shared.settings import Settings
from shared.store import poison
from tests.polling import until


class Recorder:
    """A queue worker that records its calls."""

    name = "recorder"
    queue = topology.ROUTER
    batch = 50

    def __init__(self) -> None:
        self.handled: Counter[int] = Counter()
        self.counted: Counter[int] = Counter()  # failures by row
        self.failing: set[int] = set()  # rows that always fail
        self.temporary = 0  # temporary failures to raise
        self.overdue: list[int] = []
        self.waiting: set[int] = set()  # rows that wait for a lock
        self.burning: set[int] = set()  # rows that need more than the time limit, all of it processor time
        self.calls: list[Sequence[int]] = []

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        if self.temporary:
            self.temporary -= 1
            raise Temporary("database unavailable")
        if self.failing & set(ids):
            raise ZeroDivisionError("boom")
        self.calls.append(ids)
        if self.waiting & set(ids):
            await asyncio.sleep(3600)
        while self.burning & set(ids):
            started = time.thread_time()
            while time.thread_time() - started < 0.01:
                pass
            await asyncio.sleep(0)
        self.handled.update(ids)
        return []

    async def count_failure(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        assert "ZeroDivisionError: boom" in trace or "ran out of time" in trace
        self.counted[row] += failures

    async def sweep(self) -> list[Publication]:
        swept, self.overdue = self.overdue, []
        return [fetched(row) for row in swept]


def fetched(row: int) -> Publication:
    return Publication("fetched.support@company.com", FetchedItem(id=row, external="support@company.com").to_json())


@pytest.fixture
async def worker(broker_url: str, database_url: str) -> AsyncIterator[tuple[Recorder, Broker]]:
    """A running queue worker and its broker."""
    recorder = Recorder()
    service = Service("test", Settings(database_url=database_url, broker_url=broker_url))
    await service.database.open()
    running = asyncio.create_task(run_worker(service, recorder))
    await asyncio.sleep(0)
    await service.broker.open()
    await until(lambda: service.broker.ready)
    yield recorder, service.broker
    service.stopping.set()
    await running
    await service.broker.close()
    await service.database.close()


async def test_everything_in_the_queue_is_handled_once_and_acknowledged(
    worker: tuple[Recorder, Broker],
) -> None:
    recorder, broker = worker
    await broker.publish([fetched(row) for row in range(300)])
    await until(lambda: len(recorder.handled) == 300)
    assert set(recorder.handled.values()) == {1}


async def test_a_message_may_name_more_rows_than_a_batch_holds(worker: tuple[Recorder, Broker]) -> None:
    recorder, broker = worker
    body = FetchedItem(id=1, more_ids=tuple(range(2, 121)), external="support@company.com").to_json()
    recorder.failing = {7}

    await broker.publish([Publication("fetched.support@company.com", body)])

    await until(lambda: len(recorder.handled) == 119 and recorder.counted[7] == 1)
    assert set(recorder.handled.values()) == {1}


async def test_a_failure_counts_for_the_failing_mail_alone(
    worker: tuple[Recorder, Broker],
) -> None:
    recorder, broker = worker
    recorder.failing = {7, 19}
    await broker.publish([fetched(row) for row in range(30)])
    await until(lambda: len(recorder.handled) == 28)
    assert set(recorder.counted) == {7, 19}


async def test_a_temporary_failure_is_counted_for_no_mail_and_is_retried(
    worker: tuple[Recorder, Broker],
) -> None:
    recorder, broker = worker
    recorder.temporary = 3
    await broker.publish([fetched(1)])
    await until(lambda: recorder.handled[1])
    assert not recorder.counted


async def test_a_message_that_is_no_work_item_goes_to_the_dead_letters(
    worker: tuple[Recorder, Broker],
) -> None:
    recorder, broker = worker
    await broker.publish([fetched(1), Publication("fetched.x", b"no payload"), fetched(2)])
    await until(lambda: len(recorder.handled) == 2)

    async def dead_lettered() -> bool:
        return (await broker.queue_depth(topology.DEAD_LETTERS))[0] == 1

    await until(dead_lettered)


async def test_an_idle_worker_sweeps_overdue_rows(worker: tuple[Recorder, Broker]) -> None:
    recorder, _ = worker
    recorder.overdue = [4, 5]
    await until(lambda: recorder.handled[4] and recorder.handled[5])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits that a test can wait for."""
    monkeypatch.setattr(queue_worker, "HANDLE_SECONDS", 0.5)
    monkeypatch.setattr(queue_worker, "OWN_SECONDS", 0.01)  # a busy machine gives little more
    monkeypatch.setattr(queue_worker, "SWEEP_SECONDS", 0.2)
    monkeypatch.setattr(poison, "RETRY_SECONDS", 0.3)


async def test_a_mail_that_uses_up_its_time_is_parked_alone(impatient: None, worker: tuple[Recorder, Broker]) -> None:
    recorder, broker = worker
    recorder.burning = {17}
    await broker.publish([fetched(row) for row in range(50)])
    # then its neighbours pass after some halvings, six at most
    await until(lambda: len(recorder.handled) == 49)
    assert len([call for call in recorder.calls if 17 in call and len(call) > 1]) <= 6
    # and so does what comes while it is tried again, alone, until it is parked at the fifth time
    await broker.publish([fetched(100)])
    await until(lambda: recorder.handled[100] and recorder.counted[17])
    assert recorder.counted == {17: 5}
    assert [list(call) for call in recorder.calls].count([17]) == 5
    assert set(recorder.handled.values()) == {1}


async def test_a_mail_that_waits_for_a_lock_delays_no_other_and_counts_nothing(
    impatient: None, worker: tuple[Recorder, Broker]
) -> None:
    recorder, broker = worker
    recorder.waiting = {17}
    await broker.publish([fetched(row) for row in range(50)])
    await until(lambda: len(recorder.handled) == 49)
    await until(lambda: [list(call) for call in recorder.calls].count([17]) > 6)
    assert not recorder.counted
    recorder.waiting = set()
    await until(lambda: recorder.handled[17])
    assert not recorder.counted


async def test_no_mail_is_isolated_while_the_database_does_not_answer(
    impatient: None, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a stage whose database is away: every mail waits for it
    monkeypatch.setattr(queue_worker, "RETRY_PAUSES", (0.05,))
    recorder = Recorder()
    recorder.waiting = {1, 2}
    service = Service("test", Settings(database_url="postgresql://127.0.0.1:1/none", broker_url=broker_url))
    await service.database.open()
    running = asyncio.create_task(run_worker(service, recorder))
    await asyncio.sleep(0)
    await service.broker.open()
    await until(lambda: service.broker.ready)
    await service.broker.publish([fetched(1), fetched(2)])
    # when it is back after several time-outs of a mail alone
    await until(lambda: len([call for call in recorder.calls if len(call) == 1]) > 2)
    recorder.waiting = set()
    # then both mails are handled at once, from the queue's messages
    await until(lambda: len(recorder.handled) == 2)
    assert not recorder.counted
    service.stopping.set()
    await running
    await service.broker.close()
    await service.database.close()
