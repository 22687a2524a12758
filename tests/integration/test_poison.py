"""Mails that fail or crash the process: they are parked, shown and can be requeued; no other mail waits."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.machine import ports as free_ports
from services.admin.monitoring import problems
from services.admin.monitoring.status import find_account_problem
from services.mailbox.worker import MailboxWorker
from services.router import worker
from services.router.worker import RouterWorker
from shared.amqp import publications, topology
from shared.amqp.broker import Broker
from shared.db.database import Database
from shared.model import PollOutcome
from shared.runtime import queue_worker
from shared.runtime.process import Service
from shared.runtime.queue_worker import run_worker
from shared.settings import SERVICES, Settings
from shared.store import inbound, inbound_admin, poison, polls
from shared.store.poison import Suspect
from tests.company import COMPANY, KEY, SUPPORT, apply, arrive, everyone, mailbox_of
from tests.polling import until

ALEX = "alex@local.com"
ROOT = Path(__file__).parents[2]


def mail(subject: str, hops: int = 1) -> bytes:
    received = "Received: from here by there; Thu, 01 Oct 2026 10:00:00 +0000\r\n" * hops
    return f'{received}To: "Alex" <{SUPPORT}>\r\nSubject: {subject}\r\n\r\nHello\r\n'.encode()


@pytest.fixture
async def routing(database_url: str, broker_url: str) -> AsyncIterator[Service]:
    """A running router and mailbox service on a real broker."""
    services = [
        Service(name, Settings(database_url=database_url, broker_url=broker_url, secret_key=KEY))
        for name in ("router", "mailbox")
    ]
    for service in services:
        await service.database.open()
    work = [
        asyncio.create_task(run_worker(services[0], RouterWorker(services[0].database, 0.5))),
        asyncio.create_task(run_worker(services[1], MailboxWorker(services[1].database, 0.5))),
    ]
    await asyncio.sleep(0)
    for service in services:
        await service.broker.open()
        await service.broker.wait_until_ready(20)
    yield services[0]
    for service in services:
        service.stopping.set()
    await asyncio.gather(*work)
    for service in services:
        await service.broker.close()
        await service.database.close()


async def listed(database: Database) -> list[inbound_admin.ListedInbound]:
    async with database.transaction() as connection:
        return await inbound_admin.list_inbound(connection, "parked")


async def test_a_mail_that_fails_five_times_is_parked_alone_and_delays_no_other(
    routing: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a mail that the router cannot decide about, among others
    decide = worker._decide

    def fails(mail: inbound.FetchedMail, facts: Any, *rest: Any) -> Any:
        if mail.id == failing:
            raise ZeroDivisionError("of our own")
        return decide(mail, facts, *rest)

    monkeypatch.setattr(worker, "_decide", fails)
    monkeypatch.setattr(inbound, "SWEEP_AGAIN_SECONDS", 0.5)
    monkeypatch.setattr(queue_worker, "SWEEP_SECONDS", 0.3)
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f"m{number}") for number in range(200)])
    failing = rows[100]
    began = time.monotonic()
    await routing.broker.publish(publications.fetched((row, SUPPORT) for row in rows))
    # then the others are there at once
    while len(await mailbox_of(database, ALEX)) < 199:  # no notification exists
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < 25
    # and so is new mail that arrives while the failing mail is retried, until that is parked
    later = await arrive(database, externals[SUPPORT].id, [mail("later")])
    offered = time.monotonic()
    await routing.broker.publish(publications.fetched((row, SUPPORT) for row in later))
    while len(await mailbox_of(database, ALEX)) < 200:
        await asyncio.sleep(0.05)
        assert time.monotonic() - offered < 60
    while not (parked := await listed(database)):
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < 120
    assert [(each.id, each.failures) for each in parked] == [(failing, 5)]
    assert "ZeroDivisionError: of our own" in str(parked[0].error)
    # when the fault is fixed and the operator requeues the mail, it arrives
    monkeypatch.setattr(worker, "_decide", decide)
    async with database.transaction() as connection:
        assert await inbound_admin.requeue_inbound(connection, [failing]) == [failing]
    while len(await mailbox_of(database, ALEX)) < 201:
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < 240
    assert await listed(database) == []


@pytest.mark.parametrize(("hops", "loops"), [(50, False), (51, True)])
async def test_a_mail_loop_ends_in_parked(database: Database, hops: int, loops: bool) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail("round and round", hops), mail("another")])
    await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(rows)
    parked = await listed(database)
    assert [each.id for each in parked] == (rows[:1] if loops else [])
    assert len(await mailbox_of(database, ALEX)) == (1 if loops else 2)
    if loops:
        # the operator may requeue it nevertheless
        assert "mail loop" in str(parked[0].error)
        async with database.transaction() as connection:
            problem_texts = [problem.text for problem in problems.find_parked(await problems.load_facts(connection))]
            assert problem_texts == ["1 mail needs attention: in a mail loop"]
            await inbound_admin.requeue_inbound(connection, rows[:1])
        await RouterWorker(database, 5).handle(rows)
        await MailboxWorker(database, 5).handle(rows)
        assert len(await mailbox_of(database, ALEX)) == 2


@dataclass
class KilledRouter:
    """``python -m services.router`` in a process that a mail ends, and that is started again. deaths: so far."""

    environment: dict[str, str]
    deaths: int = 0
    process: asyncio.subprocess.Process | None = None

    def kill(self) -> None:
        """Kill the process as the kernel would for lack of memory."""
        assert self.process is not None
        self.process.kill()

    async def run(self) -> None:
        while True:
            self.process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.router", env=self.environment, stdout=asyncio.subprocess.DEVNULL
            )
            try:
                await process.wait()
                self.deaths += 1
            except asyncio.CancelledError:
                process.terminate()
                await process.wait()
                raise


@pytest.fixture
async def killed_router(database_url: str, broker_url: str, tmp_path: Path) -> AsyncIterator[KilledRouter]:
    """A router that dies of each mail with the word deadly, beside a mailbox service in this process."""
    (tmp_path / "router").write_text("deadly", encoding="ascii")
    service = Service("mailbox", Settings(database_url=database_url, broker_url=broker_url, secret_key=KEY))
    await service.database.open()
    delivering = asyncio.create_task(run_worker(service, MailboxWorker(service.database, 5.0)))
    await asyncio.sleep(0)
    await service.broker.open()
    await service.broker.wait_until_ready(20)
    router = KilledRouter(
        {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "faults" / "inject"), str(ROOT)]),
            "FAULTS_POISONS": str(tmp_path),
            "FAULTS_RETRY_SECONDS": "3600",  # a mail that waited for the retry of a suspect would never come
            "MAILGROUP_DATA": str(tmp_path),
            "MAILGROUP_DATABASE_URL": database_url,
            "MAILGROUP_BROKER_URL": broker_url,
            "MAILGROUP_METRICS_PORT": str(free_ports.choose(1, str(tmp_path))[0] - SERVICES.index("router")),
        }
    )
    running = asyncio.create_task(router.run())
    yield router
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    service.stopping.set()
    await delivering
    await service.broker.close()
    await service.database.close()


async def test_two_hundred_innocent_mails_pass_a_killer_in_their_batch(
    killed_router: KilledRouter, database: Database, broker_url: str
) -> None:
    # given a mail that ends each router which reads it, in the middle of 200 others, and the router takes all at once
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(
        database, externals[SUPPORT].id, [mail("deadly" if number == 100 else "m") for number in range(201)]
    )
    broker = Broker(broker_url, "test")
    await broker.open()
    await broker.wait_until_ready(20)
    await broker.publish(publications.fetched((row, SUPPORT) for row in rows))
    await broker.close()
    await until(lambda: killed_router.deaths)
    # then the others wait for one more crash, and for no pause
    await until(lambda: are_delivered(database), 300)
    assert killed_router.deaths == 2
    # and the mail at fault alone is isolated
    async with database.transaction() as connection:
        isolated = await (await connection.execute("select id from poison where max_mails is null")).fetchall()
    assert isolated in ([], [(rows[100],)])  # none yet: the router has not started again


async def test_mails_pass_at_once_after_kills_from_outside(
    killed_router: KilledRouter, database: Database, broker_url: str
) -> None:
    # given 200 mails, and a router that is killed from outside at any moment of its work on them
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail(f"m{number}") for number in range(200)])
    broker = Broker(broker_url, "test")
    await broker.open()
    await broker.wait_until_ready(20)
    for number in range(4):
        await broker.publish(publications.fetched((row, SUPPORT) for row in rows))
        await until(lambda: is_consumed(broker))
        await asyncio.sleep(0.1 * number)
        killed_router.kill()
        await until(lambda deaths=number: killed_router.deaths > deaths)
    await until(lambda: are_delivered(database), 300)
    await broker.close()
    assert await listed(database) == []


async def are_delivered(database: Database) -> bool:
    """Whether Alex has all 200 mails."""
    return len(await mailbox_of(database, ALEX)) >= 200


async def is_consumed(broker: Broker) -> bool:
    """Whether the router has taken every message."""
    return (await broker.queue_depth(topology.ROUTER))[0] == 0


async def test_mail_in_flight_at_two_crashes_is_isolated_and_counts_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poison, "REPLAY_PARTS", 20)
    async with database.transaction() as connection:
        # given sixty redelivered mails in twenty parts: one mail passed, forty were in progress at another crash
        mails = range(1, 61)
        assert await poison.mark_redelivered(connection, "router", mails) == dict.fromkeys(mails, 3)
        await poison.begin_replay(connection, "router", [], [60])
        await poison.begin_replay(connection, "router", [60], range(1, 41))
        limits = await poison.mark_redelivered(connection, "router", mails)
        # then those are replayed in smaller parts, and the others as before, whatever is redelivered again
        assert limits == dict.fromkeys(range(1, 41), 2) | dict.fromkeys(mails[40:], 3)
        await poison.begin_replay(connection, "router", [], [1, 3])
        assert await poison.mark_redelivered(connection, "router", mails) == limits | {1: 1, 3: 1}
        # when two of them were alone at a crash
        await poison.begin_replay(connection, "router", [], [1])
        assert await poison.mark_redelivered(connection, "router", [1, 2]) == {1: None, 2: 2}
        await poison.begin_replay(connection, "router", [], [2])
        assert await poison.mark_redelivered(connection, "router", [1, 2]) == {1: None, 2: None}
        # then these two are claimed, each once for now, and the crash counts for them
        assert await poison.claim_suspect(connection, "router") == Suspect(1, 1)
        assert await poison.claim_suspect(connection, "router") == Suspect(2, 1)
        assert await poison.claim_suspect(connection, "router") is None
        assert await poison.claim_suspect(connection, "mailbox") is None
        # and a mail that is redelivered from its own retry is not retried at once
        assert await poison.mark_redelivered(connection, "router", [1]) == {1: None}
        assert await poison.claim_suspect(connection, "router") is None
        # when one retry succeeded, and the other failed temporarily
        await poison.clear_suspects(connection, "router", [1])
        await poison.restore_count(connection, "router", Suspect(2, 1))
        await connection.execute("update poison set next_try_at = now() - interval '1 second' where id = 2")
        # then the first is no suspect, and the crash of the second is not counted
        assert await poison.claim_suspect(connection, "router") == Suspect(2, 1)
        assert await poison.mark_redelivered(connection, "router", [1]) == {1: 1}


async def test_no_sweep_publishes_a_suspect_with_other_mails(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    rows = await arrive(database, externals[SUPPORT].id, [mail("one"), mail("two")])
    async with database.transaction() as connection:
        await connection.execute("update inbound set state_at = now() - interval '1 hour'")
        await poison.add_suspects(connection, "router", rows[:1])
        assert [row for row, *_ in await inbound.list_overdue(connection, "fetched", 1.0)] == rows[1:]


async def test_an_account_whose_poll_kills_the_fetcher_is_shown_and_others_go_on(database: Database) -> None:
    await apply(database, COMPANY)
    externals, _ = await everyone(database)
    support = externals[SUPPORT].id
    waits = []
    async with database.transaction() as connection:
        # given a provider that was unavailable for long
        await connection.execute("update polls set active = external_id = %s, failures = 5000", (support,))
        for number in range(8):
            # and a fetcher that polls the account and crashes
            await connection.execute("update polls set next_poll_at = now()")
            [poll], _ = await polls.claim_due(connection, f"fetcher{number}/1", 10)
            assert poll.kills_process == (number >= 5)
            assert await polls.free_leases(connection, [f"fetcher{number}"]) == 1
            polled = (await polls.load_poll_states(connection, [support]))[support]
            assert find_account_problem(polled) == "fetching: the fetcher ended while it polled this account"
            waits.append(round((polled.next_poll_at - poll.now).total_seconds()))
        # then it is due at once at first, as the fetcher may have been killed from outside, and later each time
        assert waits == [0, 0, 4, 8, 16, 32, 60, 60]
        # when a poll succeeds, the crashes are forgotten
        await connection.execute("update polls set next_poll_at = now()")
        [poll], _ = await polls.claim_due(connection, "another/1", 10)
        await polls.record_outcome(connection, poll, PollOutcome(poll.now, 0, (), None, None, 0))
        assert find_account_problem((await polls.load_poll_states(connection, [support]))[support]) is None
