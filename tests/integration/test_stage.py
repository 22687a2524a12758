"""The loop of a stage on a real broker: batches, poison, strays, temporary failures, sweeps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest

from shared.amqp import topology
from shared.amqp.broker import Broker, Publication
from shared.amqp.payloads import FetchedItem
from shared.errors import Temporary
from shared.runtime.process import Service
from shared.runtime.queue_worker import run_worker
from shared.settings import Settings
from tests.polling import until


class Recorder:
    """A stage that writes down what it is asked. poison: rows that always fail. away: temporary failures to come."""

    name = "recorder"
    queue = topology.ROUTER
    batch = 50

    def __init__(self) -> None:
        self.handled: Counter[int] = Counter()
        self.blamed: Counter[int] = Counter()
        self.poison: set[int] = set()
        self.away = 0
        self.overdue: list[int] = []

    async def handle(self, ids: Sequence[int]) -> list[Publication]:
        if self.away:
            self.away -= 1
            raise Temporary("the database is away")
        if self.poison & set(ids):
            raise ZeroDivisionError("boom")
        self.handled.update(ids)
        return []

    async def count_failure(self, row: int, origin: str, trace: str, failures: int = 1) -> None:
        assert "ZeroDivisionError: boom" in trace
        self.blamed[row] += failures

    async def sweep(self) -> list[Publication]:
        swept, self.overdue = self.overdue, []
        return [fetched(row) for row in swept]


def fetched(row: int) -> Publication:
    return Publication("fetched.support@company.com", FetchedItem(id=row, external="support@company.com").to_json())


@pytest.fixture
async def stage(broker_url: str, database_url: str) -> AsyncIterator[tuple[Recorder, Broker]]:
    """A running stage and its broker."""
    recorder = Recorder()
    service = Service("test", Settings(database_url=database_url, broker_url=broker_url))
    running = asyncio.create_task(run_worker(service, recorder))
    await asyncio.sleep(0)
    await service.broker.open()
    await until(lambda: service.broker.ready)
    yield recorder, service.broker
    service.stopping.set()
    await running
    await service.broker.close()


async def test_everything_in_the_queue_is_handled_once_and_acknowledged(stage: tuple[Recorder, Broker]) -> None:
    recorder, broker = stage
    await broker.publish([fetched(row) for row in range(300)])
    await until(lambda: len(recorder.handled) == 300)
    assert set(recorder.handled.values()) == {1}


async def test_a_message_may_stand_for_more_rows_than_a_batch_takes(stage: tuple[Recorder, Broker]) -> None:
    recorder, broker = stage
    body = FetchedItem(id=1, more_ids=tuple(range(2, 121)), external="support@company.com").to_json()
    recorder.poison = {7}

    await broker.publish([Publication("fetched.support@company.com", body)])

    await until(lambda: len(recorder.handled) == 119 and recorder.blamed[7] == 1)
    assert set(recorder.handled.values()) == {1}


async def test_a_mail_that_fails_is_blamed_alone_and_its_neighbours_are_handled(stage: tuple[Recorder, Broker]) -> None:
    recorder, broker = stage
    recorder.poison = {7, 19}
    await broker.publish([fetched(row) for row in range(30)])
    await until(lambda: len(recorder.handled) == 28)
    assert set(recorder.blamed) == {7, 19}


async def test_a_temporary_failure_blames_nobody_and_is_tried_again(stage: tuple[Recorder, Broker]) -> None:
    recorder, broker = stage
    recorder.away = 3
    await broker.publish([fetched(1)])
    await until(lambda: recorder.handled[1])
    assert not recorder.blamed


async def test_a_message_that_is_no_envelope_goes_to_the_dead_letters_and_harms_nobody(
    stage: tuple[Recorder, Broker],
) -> None:
    recorder, broker = stage
    await broker.publish([fetched(1), Publication("fetched.x", b"no envelope"), fetched(2)])
    await until(lambda: len(recorder.handled) == 2)

    async def parked() -> bool:
        return (await broker.queue_depth(topology.DEAD_LETTERS))[0] == 1

    await until(parked)


async def test_an_idle_stage_sweeps_what_is_overdue(stage: tuple[Recorder, Broker]) -> None:
    recorder, _ = stage
    recorder.overdue = [4, 5]
    await until(lambda: recorder.handled[4] and recorder.handled[5])
