"""Mails that fail or crash the process: they are parked, shown and can be requeued; no other mail waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.admin.monitoring import problems
from services.admin.monitoring.status import find_account_problem
from services.mailbox.worker import MailboxWorker
from services.router import worker
from services.router.worker import RouterWorker
from shared.amqp import publications
from shared.db.database import Database
from shared.model import PollOutcome
from shared.runtime import queue_worker
from shared.runtime.process import Service
from shared.runtime.queue_worker import run_worker
from shared.settings import Settings
from shared.store import inbound, inbound_admin, poison, polls
from shared.store.poison import Suspect
from tests.company import COMPANY, KEY, SUPPORT, apply, arrive, everyone, mailbox_of

ALEX = "alex@local.com"


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
        assert time.monotonic() - began < 5
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
            assert problem_texts == ["1 mails need attention: they are in a mail loop"]
            await inbound_admin.requeue_inbound(connection, rows[:1])
        await RouterWorker(database, 5).handle(rows)
        await MailboxWorker(database, 5).handle(rows)
        assert len(await mailbox_of(database, ALEX)) == 2


async def test_mail_in_flight_at_two_crashes_is_isolated_and_counts_its_own(
    database: Database,
) -> None:
    async with database.transaction() as connection:
        # given three redelivered mails, two of them redelivered twice
        assert await poison.mark_redelivered(connection, "router", [1, 2, 3]) == set()
        assert await poison.mark_redelivered(connection, "router", [2, 1]) == {1, 2}
        # then these two are claimed, each once for now
        assert await poison.claim_suspect(connection, "router") == Suspect(1, 0)
        assert await poison.claim_suspect(connection, "router") == Suspect(2, 0)
        assert await poison.claim_suspect(connection, "router") is None
        assert await poison.claim_suspect(connection, "mailbox") is None
        # and a mail that is redelivered from its own retry is not retried at once
        assert await poison.mark_redelivered(connection, "router", [1]) == {1}
        assert await poison.claim_suspect(connection, "router") is None
        # when one retry succeeded, and the other failed temporarily
        await poison.clear_suspects(connection, "router", [1])
        await poison.restore_count(connection, "router", Suspect(2, 0))
        await connection.execute("update poison set next_try_at = now() - interval '1 second' where id = 2")
        # then the first is no suspect, and the crash of the second is not counted
        assert await poison.claim_suspect(connection, "router") == Suspect(2, 0)
        assert await poison.mark_redelivered(connection, "router", [1]) == set()


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
